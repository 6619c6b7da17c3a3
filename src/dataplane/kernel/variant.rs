//! The two variants of iptables, and which of them this node uses.
//!
//! Rules of both variants apply at the same time, but each variant's programs see only their own. So our rules belong
//! where kubelet and kube-proxy have theirs; an administrator who runs `iptables -S` expects them there.

use std::{fmt, fs, path::Path, str::FromStr};

use crate::{
    dataplane::{DataplaneError, command::Commands},
    model::Family,
    ruleset::ChainName,
};

/// A variant of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// `iptables-nft`: tables of nftables.
    Nft,
    /// `iptables-legacy`: the kernel's older tables.
    Legacy,
}

impl Variant {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Nft, Self::Legacy];

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Nft => Self::Legacy,
            Self::Legacy => Self::Nft,
        }
    }

    /// As in the names of the programs: `nft`, `legacy`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The requested variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Backend {
    /// The one that kubelet and kube-proxy use; without them, the one with more rules.
    #[default]
    Auto,
    /// This one.
    Only(Variant),
}

/// `auto`, `nft`, `legacy`.
impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(variant) => variant.fmt(f),
        }
    }
}

/// Parses `auto`, `nft` and `legacy`.
impl FromStr for Backend {
    type Err = BackendError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "nft" => Ok(Self::Only(Variant::Nft)),
            "legacy" => Ok(Self::Only(Variant::Legacy)),
            other => Err(BackendError(other.to_owned())),
        }
    }
}

/// A text that is not a backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no iptables backend: want auto, nft or legacy")]
pub struct BackendError(String);

/// The programs of one variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tools {
    pub(super) variant: Variant,
    /// The part between `iptables` and `-restore`: `-nft`, `-legacy`, or nothing.
    suffix: &'static str,
}

impl Tools {
    pub(super) fn of(variant: Variant) -> Self {
        let suffix = match variant {
            Variant::Nft => "-nft",
            Variant::Legacy => "-legacy",
        };
        Self { variant, suffix }
    }

    /// `iptables-nft`
    pub(super) fn main(&self, family: Family) -> String {
        let program = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{program}{}", self.suffix)
    }

    /// `iptables-nft-save`
    pub(super) fn save(&self, family: Family) -> String {
        format!("{}-save", self.main(family))
    }

    /// `iptables-nft-restore`
    pub(super) fn restore(&self, family: Family) -> String {
        format!("{}-restore", self.main(family))
    }

    /// Whether this family's `table` may hold anything. Merely reading a legacy table creates it in the kernel and
    /// hooks it into the path of every packet; so it is not read without need.
    pub(super) fn may_hold(&self, family: Family, table: &str) -> bool {
        if self.variant == Variant::Nft {
            return true;
        }
        let file = match family {
            Family::V4 => "/proc/thread-self/net/ip_tables_names",
            Family::V6 => "/proc/thread-self/net/ip6_tables_names",
        };
        fs::read_to_string(file).is_ok_and(|names| names.lines().any(|name| name == table))
    }

    /// One table as text; `None` if it holds nothing.
    pub(super) fn saved(
        &self,
        commands: &Commands,
        family: Family,
        table: &str,
    ) -> Result<Option<String>, DataplaneError> {
        if !self.may_hold(family, table) {
            return Ok(None);
        }
        commands.run(&self.save(family), &["-t", table], "")?.checked().map(Some)
    }
}

/// Whether the kernel supports IPv6 in this network namespace.
pub(super) fn kernel_has_ipv6() -> bool {
    Path::new("/proc/thread-self/net/if_inet6").exists()
}

/// The families that this kernel and these programs support.
pub(super) fn usable_families(commands: &Commands, tools: &Tools) -> Vec<Family> {
    let is_usable = |family: &Family| match family {
        Family::V4 => true,
        Family::V6 => {
            kernel_has_ipv6()
                && [tools.main(Family::V6), tools.save(Family::V6), tools.restore(Family::V6)]
                    .iter()
                    .all(|program| commands.has(program))
        }
    };
    Family::BOTH.into_iter().filter(is_usable).collect()
}

/// The variants whose programs are installed, the usual one first.
pub(super) fn installed(commands: &Commands) -> Result<Vec<Tools>, DataplaneError> {
    let named: Vec<Tools> =
        Variant::BOTH.map(Tools::of).into_iter().filter(|tools| is_complete(commands, tools)).collect();
    if !named.is_empty() {
        return Ok(named);
    }
    let variant = plain(commands)?;
    Ok(vec![Tools { variant, suffix: "" }])
}

fn is_complete(commands: &Commands, tools: &Tools) -> bool {
    [tools.main(Family::V4), tools.save(Family::V4), tools.restore(Family::V4)]
        .iter()
        .all(|program| commands.has(program))
}

/// The variant of plain `iptables`.
fn plain(commands: &Commands) -> Result<Variant, DataplaneError> {
    let version = commands.run("iptables", &["--version"], "")?.checked()?;
    // Before 1.8 there was only the one that is now called legacy.
    Ok(if version.contains("nf_tables") { Variant::Nft } else { Variant::Legacy })
}

/// The variant to use.
pub(super) fn choose(commands: &Commands, backend: Backend) -> Result<Tools, DataplaneError> {
    let installed = installed(commands)?;
    if let Backend::Only(variant) = backend {
        let found = installed.into_iter().find(|tools| tools.variant == variant);
        return found.ok_or_else(|| DataplaneError::Missing {
            program: Tools::of(variant).restore(Family::V4),
            package: "iptables",
        });
    }
    if let [only] = &*installed {
        tracing::info!(variant = %only.variant, reason = "it is the only one installed", "chose the iptables variant");
        return Ok(only.clone());
    }
    for tools in &installed {
        if has_hint(commands, tools)? {
            tracing::info!(variant = %tools.variant, reason = "kubelet uses it", "chose the iptables variant");
            return Ok(tools.clone());
        }
    }
    let mut counts = Vec::new();
    for tools in &installed {
        counts.push((foreign_rules(commands, tools)?, tools));
    }
    let most = counts.iter().map(|(rules, _)| *rules).max().unwrap_or(0);
    let mut leading = counts.iter().filter(|(rules, _)| *rules == most);
    if let (Some((_, only)), None) = (leading.next(), leading.next()) {
        tracing::info!(variant = %only.variant, rules = most, reason = "it has more rules", "chose the iptables variant");
        return Ok((*only).clone());
    }
    let variant = if commands.has("iptables") { plain(commands)? } else { Variant::Nft };
    tracing::info!(%variant, reason = "both are empty, and `iptables` is this one", "chose the iptables variant");
    Ok(installed.into_iter().find(|tools| tools.variant == variant).unwrap_or_else(|| Tools::of(variant)))
}

/// Whether kubelet left its hint in this variant. Older kubelets left another hint than newer ones.
fn has_hint(commands: &Commands, tools: &Tools) -> Result<bool, DataplaneError> {
    for family in usable_families(commands, tools) {
        if !tools.may_hold(family, "mangle") {
            continue;
        }
        for chain in ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"] {
            if commands.ask(&tools.main(family), "mangle", &format!("-S {chain}"))?.success {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// How many rules of other programs there are. Ours do not count, or a wrong choice would confirm itself.
fn foreign_rules(commands: &Commands, tools: &Tools) -> Result<usize, DataplaneError> {
    let mut rules = 0;
    for family in usable_families(commands, tools) {
        for table in ["filter", "nat", "mangle"] {
            let saved = tools.saved(commands, family, table)?.unwrap_or_default();
            rules += saved.lines().filter(|line| is_foreign_rule(line)).count();
        }
    }
    Ok(rules)
}

fn is_foreign_rule(line: &str) -> bool {
    line.starts_with("-A ") && !line.split(' ').any(|word| ChainName::new(word).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend_survives_formatting_and_parsing() {
        for text in ["auto", "nft", "legacy"] {
            assert_eq!(text.parse::<Backend>().unwrap().to_string(), text);
        }
        assert!("iptables".parse::<Backend>().is_err());
    }

    #[test]
    fn our_own_rules_do_not_select_a_variant() {
        assert!(is_foreign_rule("-A FORWARD -j KUBE-FORWARD"));
        assert!(!is_foreign_rule("-A FORWARD -j TOWPATH-FORWARD"));
        assert!(!is_foreign_rule("-A TP-GI-aaaabbbbccccdddd -j DROP"));
        assert!(is_foreign_rule("-A TP-LINK -j DROP"));
        assert!(!is_foreign_rule(":FORWARD ACCEPT [0:0]"));
    }
}
