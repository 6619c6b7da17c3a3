//! The API server's validation rules for single values. An error says what is wrong in words that follow the value.

use std::net::IpAddr;

use ipnet::IpNet;

/// A value that the API server would reject. The text follows the value: `"-a" must begin with ...`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

fn refuse<T>(value: &str, why: &str) -> Result<T, Invalid> {
    Err(Invalid(format!("{value:?} {why}")))
}

fn is_lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn ends_with_alphanumeric(text: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    ends(text.as_bytes().first()) && ends(text.as_bytes().last())
}

/// A DNS label (RFC 1123): the name of a namespace.
///
/// # Errors
/// Anything but 1 to 63 lower case letters, digits and dashes, with a letter or digit at both ends.
pub fn dns_label(value: &str) -> Result<(), Invalid> {
    let good = value.bytes().all(|byte| is_lower(byte) || byte == b'-') && ends_with_alphanumeric(value);
    if value.len() > 63 {
        return refuse(value, "has more than 63 characters");
    }
    if good {
        return Ok(());
    }
    refuse(value, "must be lower case letters, digits and dashes, with a letter or digit at both ends")
}

/// A DNS subdomain (RFC 1123): the name of a pod or policy, and the prefix of a label's key.
///
/// # Errors
/// Anything but 1 to 253 characters of labels joined by dots.
pub fn dns_subdomain(value: &str) -> Result<(), Invalid> {
    if value.len() > 253 {
        return refuse(value, "has more than 253 characters");
    }
    let label =
        |part: &str| part.bytes().all(|byte| is_lower(byte) || byte == b'-') && ends_with_alphanumeric(part);
    if value.split('.').all(label) {
        return Ok(());
    }
    refuse(
        value,
        "must be lower case letters, digits, dashes and dots, with a letter or digit at both ends of each part",
    )
}

fn is_name_character(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
}

/// The key of a label: a name, after an optional prefix and a slash.
///
/// # Errors
/// A prefix that is not a DNS subdomain; a name that is empty, longer than 63 characters, or not made of letters,
/// digits, dashes, underscores and dots with a letter or digit at both ends.
pub fn label_key(value: &str) -> Result<(), Invalid> {
    let name = match value.split_once('/') {
        None => value,
        Some((prefix, name)) => {
            if prefix.is_empty() || dns_subdomain(prefix).is_err() {
                return refuse(value, "is no label key: what stands before the slash must be a DNS name");
            }
            name
        }
    };
    if name.contains('/') {
        return refuse(value, "is no label key: it has more than one slash");
    }
    if name.is_empty() {
        return refuse(value, "is no label key: it has no name");
    }
    if name.len() > 63 {
        return refuse(value, "is no label key: its name has more than 63 characters");
    }
    if name.bytes().all(is_name_character) && ends_with_alphanumeric(name) {
        return Ok(());
    }
    refuse(
        value,
        "is no label key: it must be letters, digits, dashes, underscores and dots, with a letter or digit at both ends",
    )
}

/// The value of a label; it may be empty.
///
/// # Errors
/// More than 63 characters, or characters that [`label_key`] does not accept in a name.
pub fn label_value(value: &str) -> Result<(), Invalid> {
    if value.len() > 63 {
        return refuse(value, "is no label value: it has more than 63 characters");
    }
    if value.is_empty() || (value.bytes().all(is_name_character) && ends_with_alphanumeric(value)) {
        return Ok(());
    }
    refuse(
        value,
        "is no label value: it must be letters, digits, dashes, underscores and dots, with a letter or digit at both ends",
    )
}

/// The name of a port, as IANA registers service names (RFC 6335).
///
/// # Errors
/// More than 15 characters; characters other than lower case letters, digits and dashes; no letter; a dash at an end;
/// two dashes in a row.
pub fn port_name(value: &str) -> Result<(), Invalid> {
    if value.is_empty() {
        return refuse(value, "is no port name: it is empty");
    }
    if value.len() > 15 {
        return refuse(value, "is no port name: it has more than 15 characters");
    }
    if value.bytes().all(|byte| byte.is_ascii_digit()) {
        return refuse(
            value,
            &format!("is no port name: it has no letter; for the number, write {value} without quotes"),
        );
    }
    if !value.bytes().all(|byte| is_lower(byte) || byte == b'-') {
        return refuse(value, "is no port name: it must be lower case letters, digits and dashes");
    }
    if !value.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return refuse(value, "is no port name: it has no letter");
    }
    if value.contains("--") {
        return refuse(value, "is no port name: it has two dashes in a row");
    }
    if !ends_with_alphanumeric(value) {
        return refuse(value, "is no port name: it begins or ends with a dash");
    }
    Ok(())
}

/// The number of a port.
///
/// # Errors
/// Less than 1 or more than 65535.
pub fn port_number(value: i32) -> Result<u16, Invalid> {
    match u16::try_from(value) {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(Invalid(format!("{value} is no port: ports go from 1 to 65535"))),
    }
}

/// An address.
///
/// # Errors
/// Anything but an IPv4 or IPv6 address: leading zeros, a zone, a mask.
pub fn address(value: &str) -> Result<IpAddr, Invalid> {
    match value.parse::<IpAddr>() {
        Ok(address) => Ok(address.to_canonical()),
        Err(_) => refuse(value, "is no IP address"),
    }
}

/// An address block, host bits kept.
///
/// # Errors
/// Anything but a CIDR; leading zeros, which some programs read as octal; IPv4-mapped IPv6.
pub fn cidr(value: &str) -> Result<IpNet, Invalid> {
    let example = "such as 10.0.0.0/8 or fd00::/8";
    let Some((address, bits)) = value.split_once('/') else {
        if let Ok(address) = value.parse::<IpAddr>() {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            return refuse(
                value,
                &format!("has no prefix length: for this one address, write {value}/{bits}"),
            );
        }
        return refuse(value, &format!("is no CIDR, {example}"));
    };
    let zero = |part: &str| part.len() > 1 && part.starts_with('0');
    if !address.contains(':') && (address.split('.').any(zero) || zero(bits)) || zero(bits) {
        return refuse(value, "has leading zeros, which some read as octal: leave them out");
    }
    let (true, Ok(net)) = (bits.bytes().all(|byte| byte.is_ascii_digit()), value.parse::<IpNet>()) else {
        return refuse(value, &format!("is no CIDR, {example}"));
    };
    match net.addr() {
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => {
            refuse(value, "is an IPv4 address written as IPv6: write it as IPv4")
        }
        _ => Ok(net),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: fn(&str) -> Result<(), Invalid>, good: &[&str], bad: &[&str]) {
        for value in good {
            assert_eq!(rule(value), Ok(()), "{value}");
        }
        for value in bad {
            assert!(rule(value).is_err(), "{value:?} was accepted");
        }
    }

    #[test]
    fn names_are_dns_names() {
        let (longest, label) = (["a".repeat(63).as_str(); 4].join(".")[..253].to_owned(), "a".repeat(63));
        check(
            dns_subdomain,
            &["a", "a-b.c0", "0", &longest],
            &["", "A", "a_b", "-a", "a.", ".a", "a..b", "a-.b"],
        );
        check(dns_subdomain, &[], &[&format!("{longest}a")]);
        check(dns_label, &["a", "a-b", &label], &["", "a.b", "A", "-a", "a-", &format!("{label}a")]);
    }

    #[test]
    fn label_key_is_a_name_with_an_optional_prefix() {
        let name = "a".repeat(63);
        let good = ["app", "App_1.x-y", "kubernetes.io/metadata.name", &format!("a.io/{name}"), "0"];
        check(label_key, &good, &["", "-a", "a-", "a b", "a=b", "/a", "a/", "a/b/c", "A.io/b", "a_b/c"]);
        check(label_key, &[], &[&format!("{name}a")]);
    }

    #[test]
    fn label_value_is_at_most_63_characters_and_can_be_empty() {
        check(
            label_value,
            &["", "a", "1.2_3-x", &"a".repeat(63)],
            &["-", "a-", "_a", "a b", "a/b", &"a".repeat(64)],
        );
    }

    #[test]
    fn port_name_is_an_iana_service_name() {
        check(
            port_name,
            &["http", "a", "0a", "a-b-c", "123456789012345"[..14].to_owned().replace('4', "x").as_str()],
            &["", "80", "HTTP", "a--b", "-a", "a-", "a_b", "1-2", "abcdefghijklmnop", "!@#$"],
        );
    }

    #[test]
    fn port_is_between_1_and_65535() {
        assert_eq!((port_number(1), port_number(65535)), (Ok(1), Ok(65535)));
        for bad in [0, -1, 65536, i32::MAX] {
            assert!(port_number(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cidr_with_leading_zeros_or_mapped_ipv4_is_invalid() {
        for good in ["10.0.0.0/8", "10.0.0.5/24", "0.0.0.0/0", "fd00:0a::/64", "::/0", "1.2.3.4/32"] {
            assert!(cidr(good).is_ok(), "{good}: {:?}", cidr(good));
        }
        for bad in [
            "",
            " ",
            "10.0.0.0",
            "fd00::",
            "001.002.003.000/0",
            "10.0.0.0/08",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "::ffff:1.2.3.4/120",
            "fe80::1%eth0/64",
            "10.0.0.0/+8",
            "10.0.0.0/8 ",
            "300.1.1.1/8",
            "10.0.0.0/",
        ] {
            assert!(cidr(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(cidr("10.0.0.1").is_err_and(|error| error.to_string().contains("write 10.0.0.1/32")));
    }

    #[test]
    fn address_is_ipv4_or_ipv6() {
        assert!(address("10.0.0.1").is_ok());
        assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
        for bad in ["", "10.0.0.01", "10.0.0.1/32", "fe80::1%eth0", "localhost"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
