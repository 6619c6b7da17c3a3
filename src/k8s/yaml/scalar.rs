//! What an unquoted YAML scalar means to the API server.
//!
//! `kubectl` and the API server read YAML 1.1 as go-yaml does, not YAML 1.2: an unquoted `y`, `no` or `on` is a boolean
//! and `010` is eight. Reading them any other way would enforce something else than the cluster would.

/// What a scalar means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScalarKind {
    /// `null`, `~`, or nothing at all.
    Null,
    /// `true`, `yes`, `on`, `y` and their opposites.
    Bool(bool),
    /// A whole number that fits 64 bits, signed or not.
    Integer(i128),
    /// Any other number.
    Float(f64),
    /// Text, quoted or not.
    String,
}

/// What the plain (unquoted, untagged) scalar `text` means.
#[must_use]
pub fn resolve(text: &str) -> ScalarKind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return ScalarKind::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return ScalarKind::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return ScalarKind::Bool(false);
        }
        ".nan" | ".NaN" | ".NAN" => return ScalarKind::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return ScalarKind::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return ScalarKind::Float(f64::NEG_INFINITY),
        _ => {}
    }
    match text.as_bytes().first() {
        Some(b'0'..=b'9' | b'+' | b'-') => {
            let digits = without_underscores(text);
            integer(&digits).map(ScalarKind::Integer).or_else(|| float(&digits).map(ScalarKind::Float))
        }
        Some(b'.') => float(text).map(ScalarKind::Float),
        _ => None,
    }
    .unwrap_or(ScalarKind::String)
}

fn without_underscores(text: &str) -> std::borrow::Cow<'_, str> {
    if text.contains('_') { text.replace('_', "").into() } else { text.into() }
}

/// An integer in Go's notation: decimal, `0x`, `0b`, `0o`, and a leading zero for octal.
fn integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.get(..2).map(str::to_ascii_lowercase);
    let (radix, digits) = match lower.as_deref() {
        Some("0x") => (16, &digits[2..]),
        Some("0b") => (2, &digits[2..]),
        Some("0o") => (8, &digits[2..]),
        Some(_) if digits.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    if !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    let magnitude = i128::from(u64::from_str_radix(digits, radix).ok()?);
    let value = if negative { -magnitude } else { magnitude };
    (value >= i128::from(i64::MIN)).then_some(value)
}

/// `1.5`, `.5`, `1.`, `1e3`; not the words that Rust would accept as well.
fn float(text: &str) -> Option<f64> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let number = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'-' | b'+'));
    if !number || !digits.bytes().any(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_1_1_booleans_are_booleans() {
        for word in ["y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE"] {
            assert_eq!(resolve(word), ScalarKind::Bool(true), "{word}");
        }
        for word in ["n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE"] {
            assert_eq!(resolve(word), ScalarKind::Bool(false), "{word}");
        }
        for word in ["yEs", "tRUE", "oN", "nope"] {
            assert_eq!(resolve(word), ScalarKind::String, "{word}");
        }
    }

    #[test]
    fn empty_text_and_null_words_are_null() {
        for word in ["", "~", "null", "Null", "NULL"] {
            assert_eq!(resolve(word), ScalarKind::Null, "{word:?}");
        }
        assert_eq!(resolve("nULL"), ScalarKind::String);
    }

    #[test]
    fn integers_are_parsed_like_in_go() {
        for (text, value) in [
            ("0", 0),
            ("80", 80),
            ("+80", 80),
            ("-1", -1),
            ("010", 8),
            ("0o17", 15),
            ("0x1F", 31),
            ("0b101", 5),
            ("1_000", 1000),
            ("18446744073709551615", i128::from(u64::MAX)),
        ] {
            assert_eq!(resolve(text), ScalarKind::Integer(value), "{text}");
        }
    }

    #[test]
    fn similar_texts_are_not_integers() {
        assert_eq!(resolve("08"), ScalarKind::Float(8.0));
        assert_eq!(resolve("1e3"), ScalarKind::Float(1000.0));
        assert_eq!(resolve(".5"), ScalarKind::Float(0.5));
        for text in
            ["0x", "1.2.3", "10.0.0.1", "-", "+", ".", "1-2", "80/TCP", "2020-01-02", "infinity", "nan"]
        {
            assert_eq!(resolve(text), ScalarKind::String, "{text}");
        }
    }
}
