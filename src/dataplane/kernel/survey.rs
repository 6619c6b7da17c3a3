//! What a bug report needs from this node: read, never changed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::variant::{Tools, installed, usable_families};
use crate::{
    dataplane::command::{Commands, Output},
    model::Family,
    ruleset::{
        SetName,
        guard::render::{FAMILIES, TABLE},
    },
};

/// One item of the survey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sheet {
    /// A name that is valid as a file name.
    pub name: String,
    /// What was found, or why it could not be read.
    pub found: Result<String, String>,
}

impl Sheet {
    /// The result under this name.
    #[must_use]
    pub fn new(name: impl Into<String>, found: Result<String, String>) -> Self {
        Self { name: name.into(), found }
    }
}

/// Files that show the kernel's configuration.
const FILES: [(&str, &str); 6] = [
    ("kernel.txt", "/proc/version"),
    ("modules.txt", "/proc/modules"),
    ("conntrack-count.txt", "/proc/sys/net/netfilter/nf_conntrack_count"),
    ("conntrack-max.txt", "/proc/sys/net/netfilter/nf_conntrack_max"),
    ("ip-forward.txt", "/proc/sys/net/ipv4/ip_forward"),
    ("os-release.txt", "/etc/os-release"),
];

/// The folder with the switches of `br_netfilter`.
const BRIDGE: &str = "/proc/sys/net/bridge";

/// Collects everything. A failure is reported in its place, and the rest is collected.
#[must_use]
pub fn survey(commands: &Commands) -> Vec<Sheet> {
    let mut sheets: Vec<Sheet> = FILES.iter().map(|(name, file)| Sheet::new(*name, read(file))).collect();
    sheets.push(Sheet::new("bridge-switches.txt", switches(Path::new(BRIDGE))));
    sheets.push(Sheet::new("versions.txt", Ok(versions(commands))));
    match installed(commands) {
        Ok(variants) => variants.iter().for_each(|tools| sheets.extend(tables(commands, tools))),
        Err(error) => sheets.push(Sheet::new("iptables.txt", Err(error.to_string()))),
    }
    for family in FAMILIES {
        let found = said(commands, "nft", &["list", "table", family, TABLE]);
        sheets.push(Sheet::new(format!("nft-{family}-towpath.txt"), found));
    }
    sheets.push(Sheet::new("ipset.txt", said(commands, "ipset", &["list"]).map(|text| ours(&text))));
    sheets
}

fn read(file: &str) -> Result<String, String> {
    fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))
}

fn switches(folder: &Path) -> Result<String, String> {
    let folder = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files: Vec<_> = folder.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let line = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let value =
            fs::read_to_string(file).map_or_else(|error| error.to_string(), |value| value.trim().to_owned());
        format!("{name} = {value}\n")
    };
    Ok(files.iter().map(line).collect())
}

fn versions(commands: &Commands) -> String {
    let mut lines = vec![format!("towpath {}", env!("CARGO_PKG_VERSION"))];
    for (program, question) in [
        ("iptables", "--version"),
        ("iptables-nft", "--version"),
        ("iptables-legacy", "--version"),
        ("ipset", "version"),
        ("nft", "--version"),
    ] {
        let answer = said(commands, program, &[question]).unwrap_or_else(|error| error);
        lines.push(format!("{program}: {}", answer.trim().replace('\n', "; ")));
    }
    lines.join("\n") + "\n"
}

/// The filter tables of one variant, with counters. An unused legacy table is not read: reading would create it.
fn tables(commands: &Commands, tools: &Tools) -> Vec<Sheet> {
    let sheet = |family| {
        let program = tools.save(family);
        let found = if tools.may_hold(family, "filter") {
            said(commands, &program, &["-c", "-t", "filter"])
        } else {
            Ok("this table is not in use\n".to_owned())
        };
        let family = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        Sheet::new(format!("{family}-{}-filter.txt", tools.variant), found)
    };
    usable_families(commands, tools).into_iter().map(sheet).collect()
}

fn said(commands: &Commands, program: &str, arguments: &[&str]) -> Result<String, String> {
    commands.run(program, arguments, "").and_then(Output::checked).map_err(|error| error.to_string())
}

/// Our sets in the output of `ipset list`.
pub(super) fn ours(text: &str) -> String {
    let is_ours = |set: &&str| {
        let name = set.lines().find_map(|line| line.strip_prefix("Name: "));
        name.is_some_and(|name| SetName::new(name).is_some())
    };
    text.split("\n\n").filter(is_ours).flat_map(|set| [set.trim_end(), "\n\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_sets_are_shown() {
        let list = "Name: KUBE-X\nType: hash:ip\nMembers:\n10.0.0.1\n\n\
                    Name: tp4-nodes\nType: hash:ip\nMembers:\n10.0.0.2\n\n\
                    Name: tp6-nodes\nType: hash:ip\nMembers:\n";
        let shown = "Name: tp4-nodes\nType: hash:ip\nMembers:\n10.0.0.2\n\nName: tp6-nodes\nType: hash:ip\nMembers:\n\n";
        assert_eq!(ours(list), shown);
    }

    #[test]
    fn unreadable_parts_are_reported_and_others_are_included() {
        let sheets = survey(&Commands::new("/nonexistent".into()));
        let found = |name: &str| &sheets.iter().find(|sheet| sheet.name == name).unwrap().found;
        assert!(found("ipset.txt").as_ref().unwrap_err().contains("ipset was not found"));
        assert!(found("iptables.txt").as_ref().unwrap_err().contains("iptables was not found"));
        assert!(found("kernel.txt").as_ref().unwrap().contains("Linux"));
        assert!(found("versions.txt").as_ref().unwrap().contains("ipset was not found"));
    }

    #[test]
    fn each_switch_of_the_bridge_module_is_shown_with_its_value() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("bridge-nf-call-iptables"), "1\n").unwrap();
        fs::write(folder.path().join("bridge-nf-call-arptables"), "0\n").unwrap();
        let shown = "bridge-nf-call-arptables = 0\nbridge-nf-call-iptables = 1\n";
        assert_eq!(switches(folder.path()), Ok(shown.to_owned()));
        let missing = switches(&folder.path().join("none")).unwrap_err();
        assert!(missing.contains("none: No such file"), "{missing}");
    }
}
