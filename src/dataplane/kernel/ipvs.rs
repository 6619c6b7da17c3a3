//! Whether this node uses IPVS for Services.
//!
//! With IPVS, a pod's packet to the address of a Service goes to INPUT, is forwarded by IPVS and leaves through OUTPUT:
//! it never traverses FORWARD, where policy is enforced.

use std::{fs, path::Path};

/// Where the kernel lists the Services of IPVS, for the reader's network namespace. Missing without the module.
pub const PROC_IP_VS: &str = "/proc/net/ip_vs";

/// How many Services IPVS balances, as `file` lists them; 0 without the module.
#[must_use]
pub fn services(file: &Path) -> usize {
    let Ok(text) = fs::read_to_string(file) else { return 0 };
    let is_service =
        |line: &&str| ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|kind| line.starts_with(kind));
    text.lines().filter(is_service).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_counted_without_their_backends() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ip_vs");
        assert_eq!(services(&file), 0);
        let head = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  \
                    -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n";
        fs::write(&file, head).unwrap();
        assert_eq!(services(&file), 0);
        let some = "TCP  0A600001:01BB rr\n  -> C0A84D01:192B      Masq    1      0          0\n\
                    UDP  0A60000A:0035 rr\n  -> 0AF40102:0035      Masq    1      0          0\n";
        fs::write(&file, format!("{head}{some}")).unwrap();
        assert_eq!(services(&file), 2);
    }
}
