//! The switches that make bridged packets pass through iptables.
//!
//! A packet between two pods on one bridge is switched, not routed. It traverses the rules of FORWARD only while the
//! module `br_netfilter` is loaded and `net.bridge.bridge-nf-call-iptables` (and `-ip6tables`) is 1. A packet in a
//! frame with a VLAN tag or in a `PPPoE` session traverses them only while `bridge-nf-filter-vlan-tagged` and
//! `-pppoe-tagged` are 1 as well: a receiver strips the tag of VLAN 0. (A frame with two tags never does. The interface
//! guard drops all tagged frames of pods; these switches are for nodes without it.) All exist once per network
//! namespace. A bridge has its own `nf_call_iptables` and `nf_call_ip6tables`, which can only add to these.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::variant::kernel_has_ipv6;
use crate::dataplane::{DataplaneError, command::Commands};

/// The kernel's network sysctls. It shows those of the reader's network namespace. In a container this is read-only; a
/// mount of the node's folder in another place is not.
pub const PROC_SYS_NET: &str = "/proc/sys/net";

/// The module that provides them.
const MODULE: &str = "br_netfilter";

/// The switches of `br_netfilter`.
#[derive(Clone, Debug)]
pub struct Bridge {
    folder: PathBuf,
    switches: Vec<&'static str>,
}

impl Default for Bridge {
    fn default() -> Self {
        Self::below(Path::new(PROC_SYS_NET))
    }
}

impl Bridge {
    /// The switches in the folder `bridge` of `folder`, which is [`PROC_SYS_NET`] or a mount of it.
    #[must_use]
    pub fn below(folder: &Path) -> Self {
        let mut switches = vec!["bridge-nf-call-iptables"];
        if kernel_has_ipv6() {
            switches.push("bridge-nf-call-ip6tables");
        }
        switches.extend(["bridge-nf-filter-vlan-tagged", "bridge-nf-filter-pppoe-tagged"]);
        Self { folder: folder.join("bridge"), switches }
    }

    /// Loads the module if it is not loaded. Returns whether it was loaded now.
    ///
    /// # Errors
    /// If it cannot be loaded; the text says how an administrator can do it.
    pub fn load(&self, commands: &Commands) -> Result<bool, DataplaneError> {
        if self.folder.exists() {
            return Ok(false);
        }
        load(commands, &self.folder)?;
        Ok(true)
    }

    /// Loads the module if needed and sets the switches to 1. Returns what was changed, each as a sentence.
    ///
    /// # Errors
    /// If the module cannot be loaded or a switch cannot be set; the text says how an administrator can do it.
    pub fn ensure(&self, commands: &Commands) -> Result<Vec<String>, DataplaneError> {
        let mut changes = Vec::new();
        if self.load(commands)? {
            changes.push(format!("loaded the kernel module {MODULE}"));
        }
        for switch in &self.switches {
            let file = self.folder.join(switch);
            if read(&file)? != "1" {
                fs::write(&file, "1").map_err(|source| DataplaneError::Unsupported {
                    what: format!("net.bridge.{switch} cannot be set to 1 ({source})"),
                    remedy: "set it on the node with sysctl -w, or give towpath a folder in which it may: --proc-sys-net",
                })?;
                changes.push(format!("set net.bridge.{switch} to 1"));
            }
        }
        Ok(changes)
    }

    /// What is wrong, each as a sentence; empty if bridged packets pass through iptables. Starts no process.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        if !self.folder.exists() {
            return vec![format!("the kernel module {MODULE} is not loaded")];
        }
        let fault = |switch: &&str| match read(&self.folder.join(switch)) {
            Ok(value) if value == "1" => None,
            Ok(value) => Some(format!("net.bridge.{switch} is {value} instead of 1")),
            Err(error) => Some(error.to_string()),
        };
        self.switches.iter().filter_map(fault).collect()
    }
}

fn read(file: &Path) -> Result<String, DataplaneError> {
    let text = fs::read_to_string(file)
        .map_err(|source| DataplaneError::System { doing: format!("reading {}", file.display()), source })?;
    Ok(text.trim().to_owned())
}

fn load(commands: &Commands, folder: &Path) -> Result<(), DataplaneError> {
    let what = |why: String| DataplaneError::Unsupported {
        what: format!("the kernel module {MODULE} is not loaded, and could not be ({why})"),
        remedy: "load it on the node: modprobe br_netfilter, and name it in /etc/modules-load.d to keep it",
    };
    let output = commands.run("modprobe", &[MODULE], "").map_err(|error| what(error.to_string()))?;
    if !output.success {
        return Err(what(output.into_error().to_string()));
    }
    if !folder.exists() {
        return Err(what(io::Error::from(io::ErrorKind::NotFound).to_string()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge(folder: &Path) -> Bridge {
        Bridge {
            folder: folder.to_owned(),
            switches: vec!["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"],
        }
    }

    #[test]
    fn disabled_switches_are_found_and_set() {
        let folder = tempfile::tempdir().unwrap();
        let bridge = bridge(folder.path());
        fs::write(folder.path().join("bridge-nf-call-iptables"), "0\n").unwrap();
        fs::write(folder.path().join("bridge-nf-call-ip6tables"), "1\n").unwrap();
        assert_eq!(bridge.check(), ["net.bridge.bridge-nf-call-iptables is 0 instead of 1"]);
        let commands = Commands::default();
        assert_eq!(bridge.ensure(&commands).unwrap(), ["set net.bridge.bridge-nf-call-iptables to 1"]);
        assert!(bridge.check().is_empty());
        assert!(bridge.ensure(&commands).unwrap().is_empty());
        assert_eq!(commands.started(), 0);
    }

    #[test]
    fn module_that_cannot_be_loaded_is_named_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let bridge = bridge(&folder.path().join("bridge"));
        let error = bridge.ensure(&Commands::new("/nonexistent".into())).unwrap_err().to_string();
        assert!(error.contains("install the package kmod"), "{error}");
        assert!(error.contains("modprobe br_netfilter"), "{error}");
        assert_eq!(bridge.check(), ["the kernel module br_netfilter is not loaded"]);
    }

    /// A `modprobe` that runs this line of shell.
    fn modprobe(folder: &Path, line: &str) -> Commands {
        use std::os::unix::fs::PermissionsExt as _;
        let program = folder.join("modprobe");
        fs::write(&program, format!("#!/bin/sh\ncd {}\n{line}\n", folder.display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Commands::new(folder.into())
    }

    #[test]
    fn missing_module_is_loaded_before_its_sysctls_are_set() {
        let folder = tempfile::tempdir().unwrap();
        let bridge = bridge(&folder.path().join("bridge"));
        let loads = "mkdir bridge && cd bridge && echo 0 > bridge-nf-call-iptables && echo 1 > bridge-nf-call-ip6tables";
        let commands = modprobe(folder.path(), loads);
        let changes =
            ["loaded the kernel module br_netfilter", "set net.bridge.bridge-nf-call-iptables to 1"];
        assert_eq!(bridge.ensure(&commands).unwrap(), changes);
        assert!(bridge.ensure(&commands).unwrap().is_empty());
    }

    #[test]
    fn module_that_fails_to_load_or_has_no_sysctls_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let bridge = bridge(&folder.path().join("bridge"));
        let error = |line: &str| bridge.ensure(&modprobe(folder.path(), line)).unwrap_err().to_string();
        let fails = error("echo no such module >&2; exit 1");
        assert!(fails.contains("no such module"), "{fails}");
        let does_nothing = error("exit 0");
        assert!(does_nothing.contains("entity not found"), "{does_nothing}");
    }
}
