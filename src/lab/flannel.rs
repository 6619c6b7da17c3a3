//! The iptables rules that a real node has before towpath starts: flannel's and kube-proxy's.

use std::fmt::Write;

use crate::model::Family;

use super::{LabError, Netns, topology::Layout};

/// Which of the two iptables a node's programs use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// `iptables-nft`: rules in `nf_tables`.
    Nft,
    /// `iptables-legacy`: rules in the older kernel interface.
    Legacy,
}

impl Variant {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Nft, Self::Legacy];

    /// As `--iptables-backend` accepts it: `nft`, `legacy`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }

    /// The program of this variant and family; `suffix` is empty, `-restore` or `-save`.
    #[must_use]
    pub fn program(self, family: Family, suffix: &str) -> String {
        let stem = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{stem}-{}{suffix}", self.name())
    }
}

/// The rules that flannel and kube-proxy keep on every node.
///
/// The policy of FORWARD is DROP, as Docker and hardened hosts set it; `FLANNEL-FWD`, appended, accepts packets from or
/// to a pod, `KUBE-FORWARD` packets of a known connection, and `FLANNEL-POSTRTG` masquerades pods behind their node
/// when they leave the cluster. kubelet's hint chain exists too, by which other programs find out the variant in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlannelRules {
    /// The variant in which they are written.
    pub variant: Variant,
    /// Whether pods are masqueraded towards the external host, as flannel would. With `false` it sees their own
    /// addresses, which makes it an ordinary peer.
    pub masquerade_external: bool,
}

impl FlannelRules {
    /// These rules, without masquerading towards the external host.
    #[must_use]
    pub const fn new(variant: Variant) -> Self {
        Self { variant, masquerade_external: false }
    }

    /// Writes them in a node's namespace.
    pub(super) fn install(self, netns: &Netns, layout: Layout, node: usize) -> Result<(), LabError> {
        layout.families.list().iter().try_for_each(|&family| {
            let program = self.variant.program(family, "-restore");
            netns.succeed(&program, &["--noflush", "-w"], &self.text(family, node)).map(drop)
        })
    }

    fn text(self, family: Family, node: usize) -> String {
        let cluster = Layout::cluster_cidr(family);
        let own = Layout::pod_cidr(family, node);
        let multicast = if family == Family::V4 { "224.0.0.0/4" } else { "ff00::/8" };
        let mut text = format!(
            "*mangle\n\
             :KUBE-IPTABLES-HINT -\n\
             :KUBE-KUBELET-CANARY -\n\
             COMMIT\n\
             *filter\n\
             :FORWARD DROP\n\
             :KUBE-FORWARD -\n\
             :FLANNEL-FWD -\n\
             -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
             -A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n\
             -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
             -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
             -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A FLANNEL-FWD -s {cluster} -j ACCEPT\n\
             -A FLANNEL-FWD -d {cluster} -j ACCEPT\n\
             COMMIT\n\
             *nat\n\
             :FLANNEL-POSTRTG -\n\
             -A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n\
             -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN\n\
             -A FLANNEL-POSTRTG -s {own} -d {cluster} -j RETURN\n\
             -A FLANNEL-POSTRTG -s {cluster} -d {own} -j RETURN\n\
             -A FLANNEL-POSTRTG ! -s {cluster} -d {own} -j RETURN\n"
        );
        if !self.masquerade_external {
            // Packets that leave through eth0 and not through the tunnel are for the external host.
            text.push_str("-A FLANNEL-POSTRTG -o eth0 -j RETURN\n");
        }
        // Writing to a String cannot fail.
        let _infallible = write!(
            text,
            "-A FLANNEL-POSTRTG -s {cluster} ! -d {multicast} -j MASQUERADE --random-fully\n\
             -A FLANNEL-POSTRTG ! -s {cluster} -d {cluster} -j MASQUERADE --random-fully\n\
             COMMIT\n"
        );
        text
    }
}
