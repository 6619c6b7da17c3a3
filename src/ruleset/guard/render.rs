//! The guard as input of `nft -f`.
//!
//! Two tables, both called `towpath`. That of the bridge family sees frames that enter by ports of bridges, and those
//! that pass between two of them. That of the netdev family has a chain for each guarded link that is not a port of a
//! bridge. The sets and the checks are the same in both.
//!
//! ```text
//! bridge prerouting, netdev ingress
//!   IPv4: ICMP errors -> their own checks; (interface, hardware address, source) in sources4 -> accept
//!   IPv6: ICMP errors and neighbour discovery -> their own checks; (..., source) in sources6 -> accept
//!   ARP:  sender's addresses in sources4   -> accept
//!   anything else from a guarded interface -> count, drop
//! bridge forward
//!   (interface, destination) in destinations4 or destinations6 -> accept
//!   from or to the interface of an isolated pod: discovery     -> accept; multicast, broadcast, link-local -> drop
//!   between two guarded interfaces, for another pod or no pod  -> drop
//! ```
//!
//! What a process must know of the one before it is the same in every version, whatever else is in the tables:
//!
//! - every table of ours is called [`TABLE`] or [`TRIAL`], in any family;
//! - the sets `sources4` and `sources6` have interface, hardware address and source address of what may send, in this
//!   order; `guarded` has the guarded interfaces, and `frames` those that may send, with their hardware address.
//!   Whatever is in `guarded` and not in `frames` is closed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{Bindings, Mac, Port};
use crate::{
    model::{Direction, Family, layout as versions},
    policy::digest::digest,
};

/// The name of our tables, in each family.
pub const TABLE: &str = "towpath";

/// The name of tables to which rules are written for a trial. No packet reaches them.
pub const TRIAL: &str = "towpath-trial";

/// The families in which we have a table, as nft calls them.
pub const FAMILIES: [&str; 2] = ["bridge", "netdev"];

/// Before the bridge's own filtering, and before iptables sees bridged packets (which is at 0).
const PRIORITY: i32 = -300;

/// The longest IPv6 payload of a neighbour solicitation: 24 bytes, and room for the options that hosts send with it
/// (hardware address, nonce), but not for messages of another kind.
const DISCOVERY_PAYLOAD: u16 = 48;

/// The longest ARP message: 28 bytes, padded to the shortest frame.
const ARP_LENGTH: u16 = 46;

/// The types of the sets, by name.
///
/// A set of one part is written as `typeof`, and there is no verdict map: otherwise nft 1.1 stores them in a form on
/// which nft 1.0.6 crashes when it lists any table of the node, and other programs on the node may use that version.
const SETS: [(&str, &str); 12] = [
    ("guarded", "typeof iif"),
    ("frames", "type iface_index . ether_addr"),
    ("sources4", "type iface_index . ether_addr . ipv4_addr"),
    ("sources6", "type iface_index . ether_addr . ipv6_addr"),
    ("macs", "typeof iif . @th,208,48"),
    ("quoted4", "typeof iif . @th,192,32"),
    ("targets6", "typeof iif . @th,64,128"),
    ("destinations4", "type iface_index . ipv4_addr"),
    ("destinations6", "type iface_index . ipv6_addr"),
    ("links6", "type iface_index . ipv6_addr"),
    ("egress-isolated", "typeof iif"),
    ("ingress-isolated", "typeof iif"),
];

/// Why frames are dropped, by the name of the counter.
pub const COUNTERS: [(&str, &str); 7] = [
    ("frame", "neither IPv4 nor IPv6 nor ARP, with a VLAN tag, or a host's address in a group's frame"),
    ("source", "a source address that is not the pod's"),
    ("claim", "an ARP claim that is not the pod's"),
    ("discovery", "a neighbour discovery message that claims what is not the pod's, or that no pod sends"),
    ("router", "a router's message"),
    ("bridge-only", "between pods of a bridge, past the addresses of pods"),
    ("dhcp", "an offer of a DHCP server"),
];

/// The content of the guard's tables: the elements of its sets and its chains for single links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    bridge: Elements,
    netdev: Elements,
    /// The names of the guarded separate links, by index.
    links: BTreeMap<u32, String>,
}

/// The elements of one table's sets, by set.
type Elements = BTreeMap<&'static str, BTreeSet<String>>;

/// A text in the layout of this process: in the other one, some chains and sets have other names.
fn spelled(text: String) -> String {
    if versions::is_other() {
        text.replace("destinations", "targets-of-").replace("from-", "enter-")
    } else {
        text
    }
}

/// The name of the chain that identifies the checks of a table: with other checks, the table is rewritten.
fn layout() -> String {
    format!("layout-{}", digest(&(SETS, FAMILIES.map(checks), bridge_chains())))
}

impl Guard {
    /// Reads the guard that is in the kernel, if it has the checks that we would write: `bridge` and `netdev` as
    /// `nft -n list table` prints them, `interfaces` the indices by name.
    #[must_use]
    pub fn read(bridge: &str, netdev: &str, interfaces: &BTreeMap<String, u32>) -> Option<Self> {
        let marker = format!("chain {} {{", layout());
        let is_ours = |text: &str| text.lines().any(|line| line.trim() == marker);
        if !is_ours(bridge) || !is_ours(netdev) {
            return None;
        }
        let hooked = ["prerouting", "forward"]
            .iter()
            .all(|hook| bridge.contains(&format!("chain {hook} {{\n\t\ttype filter hook {hook} ")));
        if !hooked || !has_all_rules("bridge", bridge) || !has_all_rules("netdev", netdev) {
            return None;
        }
        let mut guard = Self::default();
        read_elements(bridge, interfaces, &mut guard.bridge)?;
        read_elements(netdev, interfaces, &mut guard.netdev)?;
        let mut chain = None;
        for line in netdev.lines().map(str::trim) {
            if let Some(index) = line.strip_prefix("chain ingress-") {
                chain = index.strip_suffix(" {").and_then(|index| index.parse().ok());
                guard.links.extend(chain.map(|index| (index, String::new())));
            } else if let (Some(index), Some((_, rest))) = (chain, line.split_once("hook ingress device \""))
            {
                guard.links.insert(index, rest.split('"').next()?.to_owned());
            }
        }
        Some(guard)
    }

    /// The guard for these interfaces.
    #[must_use]
    pub fn new(bindings: &Bindings) -> Self {
        let mut guard = Self::default();
        for (index, port) in &bindings.ports {
            if port.bridge.is_some() {
                elements(*index, port, &mut guard.bridge);
            } else {
                elements(*index, port, &mut guard.netdev);
                guard.links.insert(*index, port.name.clone());
            }
        }
        guard
    }

    /// The text that writes both tables, in one transaction that replaces what is there.
    #[must_use]
    pub fn whole(&self) -> String {
        let mut text = removal();
        for (family, elements) in [("bridge", &self.bridge), ("netdev", &self.netdev)] {
            line(&mut text, format_args!("table {family} {TABLE} {{"));
            text.push_str(&body(family, elements));
            text.push_str("}\n");
        }
        for (index, name) in &self.links {
            link(&mut text, *index, name);
        }
        text
    }

    /// The text that leads from `before`, which is in the kernel, to this; empty if nothing differs. One transaction.
    #[must_use]
    pub fn difference(&self, before: &Self) -> String {
        let mut text = String::new();
        let gone = before.links.iter().filter(|(index, name)| self.links.get(index) != Some(name));
        for (index, _) in gone {
            let chain = link_chain(*index);
            line(&mut text, format_args!("add chain netdev {TABLE} {chain}"));
            line(&mut text, format_args!("delete chain netdev {TABLE} {chain}"));
        }
        for (family, now, then) in
            [("bridge", &self.bridge, &before.bridge), ("netdev", &self.netdev, &before.netdev)]
        {
            let none = BTreeSet::new();
            for (verb, from, to) in [("add", then, now), ("delete", now, then)] {
                for (set, _) in SETS {
                    let (from, to) = (from.get(set).unwrap_or(&none), to.get(set).unwrap_or(&none));
                    let difference: BTreeSet<String> = to.difference(from).cloned().collect();
                    if !difference.is_empty() {
                        let members = list(&difference);
                        let set = spelled(set.to_owned());
                        line(
                            &mut text,
                            format_args!("{verb} element {family} {TABLE} {set} {{ {members} }}"),
                        );
                    }
                }
            }
        }
        let new = self.links.iter().filter(|(index, name)| before.links.get(index) != Some(name));
        for (index, name) in new {
            link(&mut text, *index, name);
        }
        text
    }
}

/// Whether a listing of a family's table has as many rules in each chain as we write. nft leaves some out, without an
/// error, if another program changes rules meanwhile.
#[must_use]
pub fn has_all_rules(family: &str, listing: &str) -> bool {
    let there = chains(listing);
    let ours = body(family, &Elements::new());
    chains(&ours).into_iter().all(|(name, rules)| there.get(name) == Some(&rules))
}

/// How many rules each chain has in a table, as we write it or as nft prints it.
fn chains(text: &str) -> BTreeMap<&str, usize> {
    let mut chains = BTreeMap::new();
    let mut chain = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ") {
            chain = Some(name.trim_end_matches(['{', '}', ' ']));
            chains.insert(chain.unwrap_or_default(), 0);
        } else if line == "}" {
            chain = None;
        } else if let Some(count) = chain.and_then(|chain| chains.get_mut(chain)) {
            *count += usize::from(!line.starts_with("type "));
        }
    }
    chains
}

/// Reads the elements of all sets from the output of `nft -n list table`. `None` if one of them is not ours.
fn read_elements(text: &str, interfaces: &BTreeMap<String, u32>, elements: &mut Elements) -> Option<()> {
    for (set, element) in listed(text) {
        elements.entry(set).or_default().insert(read_element(set, &element, interfaces)?);
    }
    Some(())
}

/// The guarded interfaces that may send nothing, in the output of `nft -n list table`, whichever version wrote it.
#[must_use]
pub fn closed(text: &str, interfaces: &BTreeMap<String, u32>) -> BTreeSet<u32> {
    let of = |set: &str| -> BTreeSet<u32> {
        let first =
            |element: &str| element.split_whitespace().next().map(|name| name.trim_matches('"').to_owned());
        let names = listed(text).into_iter().filter(|(name, _)| *name == set).filter_map(|(_, e)| first(&e));
        names.filter_map(|name| interfaces.get(&name).copied().or_else(|| name.parse().ok())).collect()
    };
    &of("guarded") - &of("frames")
}

/// The elements of our sets in the output of `nft list table`, each with its set.
fn listed(text: &str) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let (mut set, mut inside) = (None, false);
    for line in text.lines().map(str::trim) {
        if let Some((_, name)) = line.strip_suffix(" {").and_then(|line| line.split_once(' ')) {
            let is_set = line.starts_with("set ");
            let named = |known: &&str| is_set && spelled((*known).to_owned()) == name;
            set = SETS.iter().map(|(known, _)| *known).find(named);
            continue;
        }
        let Some(set) = set else { continue };
        let list = match line.strip_prefix("elements = {") {
            Some(list) => list,
            None if inside => line,
            None => continue,
        };
        inside = !list.ends_with('}');
        let parts = list.trim_end_matches('}').split(',').map(str::trim).filter(|part| !part.is_empty());
        found.extend(parts.map(|element| (set, element.to_owned())));
    }
    found
}

/// One element as we write it. nft prints the interface by its name, and by its index once it is gone.
fn read_element(set: &str, element: &str, interfaces: &BTreeMap<String, u32>) -> Option<String> {
    let mut parts = element.split(" . ");
    let name = parts.next()?;
    let index = match interfaces.get(name.trim_matches('"')) {
        Some(index) => *index,
        None => name.parse().ok()?,
    };
    let number = |text: &str| u128::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let rest: Option<Vec<String>> = parts
        .map(|part| match set {
            "macs" => number(part).map(|number| format!("{number:#014x}")),
            "quoted4" => number(part).map(|number| format!("{number:#010x}")),
            "targets6" => number(part).map(|number| format!("{number:#034x}")),
            _ => Some(part.to_owned()),
        })
        .collect();
    Some(std::iter::once(index.to_string()).chain(rest?).collect::<Vec<_>>().join(" . "))
}

/// Tables called `name` that no packet passes, with the same rules: nft prints these as it prints ours.
#[must_use]
pub fn trial(name: &str) -> String {
    let mut text = String::new();
    for family in FAMILIES {
        line(&mut text, format_args!("table {family} {name} {{"));
        let body = body(family, &Elements::new());
        body.lines()
            .filter(|line| !line.starts_with("type "))
            .for_each(|rule| line(&mut text, format_args!("{rule}")));
        text.push_str("}\n");
    }
    text
}

/// The content of one family's table, without the chains of single links.
fn body(family: &str, elements: &Elements) -> String {
    let mut text = String::new();
    line(&mut text, format_args!("chain {} {{", layout()));
    text.push_str("}\n");
    for (name, _) in COUNTERS {
        line(&mut text, format_args!("counter {name} {{ }}"));
    }
    for (name, kind) in SETS {
        let members = elements.get(name).map(list).unwrap_or_default();
        let members =
            if members.is_empty() { String::new() } else { format!(" elements = {{ {members} }};") };
        line(&mut text, format_args!("set {name} {{ {kind};{members} }}"));
    }
    text.push_str(&checks(family));
    if family == "bridge" {
        text.push_str(&bridge_chains());
    }
    spelled(text)
}

/// Removes both tables, whether or not they exist.
#[must_use]
pub fn removal() -> String {
    FAMILIES.iter().map(|family| removal_of(family, TABLE)).collect()
}

/// Removes a table, whether or not it exists.
#[must_use]
pub fn removal_of(family: &str, table: &str) -> String {
    // Declaring it first makes deleting it succeed if there is none.
    format!("table {family} {table}\ndelete table {family} {table}\n")
}

/// Our tables in the output of `nft list tables`, of whichever version: their families and names.
#[must_use]
pub fn tables(listing: &str) -> BTreeSet<(String, String)> {
    let table = |line: &str| {
        let (family, name) = line.trim().strip_prefix("table ")?.split_once(' ')?;
        [TABLE, TRIAL].contains(&name).then(|| (family.to_owned(), name.to_owned()))
    };
    listing.lines().filter_map(table).collect()
}

fn elements(index: u32, port: &Port, elements: &mut Elements) {
    let mut add = |set: &'static str, element: String| {
        elements.entry(set).or_default().insert(element);
    };
    add("guarded", index.to_string());
    for (direction, set) in [(Direction::Egress, "egress-isolated"), (Direction::Ingress, "ingress-isolated")]
    {
        if port.isolated(direction) {
            add(set, index.to_string());
        }
    }
    for address in &port.addresses {
        let set = match Family::of(*address) {
            Family::V4 => "destinations4",
            Family::V6 => "destinations6",
        };
        add(set, format!("{index} . {address}"));
    }
    for address in &port.link_local {
        add("links6", format!("{index} . {address}"));
    }
    let Some(mac) = port.mac else { return };
    add("frames", format!("{index} . {mac}"));
    let Mac(bytes) = mac;
    let number = bytes.iter().fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    add("macs", format!("{index} . {number:#014x}"));
    let link_local = port.link_local.iter().map(|address| (*address).into());
    for address in port.addresses.iter().copied().chain(link_local) {
        match address {
            std::net::IpAddr::V4(address) => {
                add("sources4", format!("{index} . {mac} . {address}"));
                add("quoted4", format!("{index} . {:#010x}", address.to_bits()));
            }
            std::net::IpAddr::V6(address) => {
                add("sources6", format!("{index} . {mac} . {address}"));
                add("targets6", format!("{index} . {:#034x}", address.to_bits()));
            }
        }
    }
}

/// The chains that check what enters, the same in both families.
///
/// No anonymous set contains a range: the kernel makes such sets visible a moment after the rules that look them up.
///
/// A frame to a group's hardware address must carry a packet to a group: with the address of a host in it, the bridge's
/// own copy would create a connection although the rules drop the packet, and what the other end then sends would pass
/// as a reply.
///
/// An ICMP error quotes the packet that it is about. A pod is not a router: it can only have received a packet that was
/// for itself, so the quoted packet must go to its own address. Router redirects and advertisements come from no pod.
///
/// Frames that enter by unguarded ports leave these chains at once in the bridge family. A chain of the netdev family
/// sees no others, and must not check this: a lookup that misses while a table is replaced would let frames through.
fn checks(family: &str) -> String {
    let pass_unguarded = if family == "bridge" { "iif != @guarded accept\n" } else { "" };
    format!(
        "chain from-ip {{
meta pkttype {{ broadcast, multicast }} ip daddr != 224.0.0.0/4 ip daddr != 255.255.255.255 iif @guarded counter name frame drop
icmp type {{ 3, 4, 5, 9, 11, 12 }} goto from-icmp
iif . ether saddr . ip saddr @sources4 accept
iif @guarded counter name source drop
}}
chain from-icmp {{
{pass_unguarded}icmp type {{ 5, 9 }} counter name router drop
iif . @th,192,32 @quoted4 iif . ether saddr . ip saddr @sources4 accept
counter name source drop
}}
chain from-ip6 {{
meta pkttype {{ broadcast, multicast }} ip6 daddr != ff00::/8 iif @guarded counter name frame drop
icmpv6 type {{ 1, 2, 3, 4, 130, 131, 132, 133, 134, 135, 136, 137, 138, 141, 142, 143, 148, 149, 151, 152, 153 }} goto from-icmp6
iif . ether saddr . ip6 saddr @sources6 accept
iif @guarded counter name source drop
}}
chain from-icmp6 {{
{pass_unguarded}icmpv6 type {{ 1, 2, 3, 4 }} iif . @th,256,128 @targets6 iif . ether saddr . ip6 saddr @sources6 accept
icmpv6 type {{ 1, 2, 3, 4 }} counter name source drop
icmpv6 type {{ 134, 137 }} counter name router drop
ip6 nexthdr icmpv6 ip6 hoplimit 255 icmpv6 type 133 goto router-solicit
ip6 nexthdr icmpv6 ip6 hoplimit 255 icmpv6 type 135 goto neighbour-solicit
ip6 nexthdr icmpv6 ip6 hoplimit 255 icmpv6 type 136 goto neighbour-advert
icmpv6 type {{ 131, 132, 143 }} ip6 hoplimit 1 ip6 daddr ff02::/16 goto from-own-or-no-address
counter name discovery drop
}}
chain router-solicit {{
ip6 daddr != ff02::2 counter name discovery drop
ip6 length 8 goto from-own-or-no-address
ip6 length 16 @th,64,16 0x0101 iif . @th,80,48 @macs goto from-own-or-no-address
counter name discovery drop
}}
chain neighbour-solicit {{
ip6 length > {DISCOVERY_PAYLOAD} counter name discovery drop
ip6 saddr :: ip6 length 24 iif . ether saddr @frames iif . @th,64,128 @targets6 accept
ip6 saddr :: @th,192,16 != 0x0101 iif . ether saddr @frames iif . @th,64,128 @targets6 accept
ip6 length >= 32 @th,192,16 0x0101 iif . @th,208,48 @macs iif . ether saddr . ip6 saddr @sources6 accept
ip6 length >= 32 @th,192,16 0x0101 counter name discovery drop
ip6 length {{ 24, 32 }} iif . ether saddr . ip6 saddr @sources6 accept
counter name discovery drop
}}
chain neighbour-advert {{
iif . @th,64,128 != @targets6 counter name discovery drop
ip6 length 24 iif . ether saddr . ip6 saddr @sources6 accept
ip6 length 32 @th,192,16 0x0201 iif . @th,208,48 @macs iif . ether saddr . ip6 saddr @sources6 accept
counter name discovery drop
}}
chain from-own-or-no-address {{
iif . ether saddr . ip6 saddr @sources6 accept
ip6 saddr :: iif . ether saddr @frames accept
counter name discovery drop
}}
chain from-arp {{
meta length > {ARP_LENGTH} iif @guarded counter name claim drop
iif . ether saddr @frames iif . arp saddr ether . arp saddr ip @sources4 accept
iif . ether saddr @frames arp saddr ip 0.0.0.0 iif . arp saddr ether . arp daddr ip @sources4 accept
iif @guarded counter name claim drop
}}
"
    )
}

/// The chains of the bridge family: for frames that enter by ports, and for those that pass between two of them.
///
/// Between two pods, a frame must go to an address of the pod behind the port that it leaves by. Multicast and
/// broadcast are only for pods that no policy isolates.
fn bridge_chains() -> String {
    format!(
        "chain prerouting {{
type filter hook prerouting priority {PRIORITY}; policy accept;
ether type ip goto from-ip
ether type ip6 goto from-ip6
ether type arp goto from-arp
iif @guarded counter name frame drop
}}
chain forward {{
type filter hook forward priority {PRIORITY}; policy accept;
ether type ip goto to-ip
ether type ip6 goto to-ip6
ether type arp accept
iif @egress-isolated counter name bridge-only drop
oif @ingress-isolated counter name bridge-only drop
}}
chain to-ip {{
oif . ip daddr @destinations4 accept
iif @guarded udp sport 67 udp dport 68 counter name dhcp drop
oif @ingress-isolated counter name bridge-only drop
iif @egress-isolated oif @guarded counter name bridge-only drop
iif @egress-isolated meta pkttype {{ broadcast, multicast }} counter name bridge-only drop
iif @egress-isolated ip daddr 224.0.0.0/4 counter name bridge-only drop
iif @egress-isolated ip daddr 255.255.255.255 counter name bridge-only drop
iif @guarded oif @guarded ip daddr != 224.0.0.0/4 ip daddr != 255.255.255.255 counter name bridge-only drop
}}
chain to-ip6 {{
ip6 saddr fe80::/10 goto to-ip6-link
ip6 saddr :: goto to-ip6-link
oif . ip6 daddr @destinations6 accept
goto to-ip6-link
}}
chain to-ip6-link {{
ip6 nexthdr icmpv6 icmpv6 type {{ 135, 136 }} ip6 hoplimit 255 ip6 length <= {DISCOVERY_PAYLOAD} accept
ip6 nexthdr icmpv6 icmpv6 type 134 ip6 hoplimit 255 iif != @guarded accept
icmpv6 type 130 ip6 hoplimit 1 iif != @guarded accept
iif @guarded udp sport 547 udp dport 546 counter name dhcp drop
oif @ingress-isolated counter name bridge-only drop
iif @egress-isolated oif @guarded counter name bridge-only drop
iif @egress-isolated meta pkttype {{ broadcast, multicast }} counter name bridge-only drop
iif @egress-isolated ip6 saddr fe80::/10 counter name bridge-only drop
iif @egress-isolated ip6 saddr :: counter name bridge-only drop
iif @egress-isolated ip6 daddr fe80::/10 counter name bridge-only drop
iif @egress-isolated ip6 daddr ff00::/8 counter name bridge-only drop
iif @guarded oif @guarded ip6 daddr != ff00::/8 oif . ip6 daddr != @destinations6 oif . ip6 daddr != @links6 counter name bridge-only drop
}}
"
    )
}

fn link_chain(index: u32) -> String {
    format!("ingress-{index}")
}

fn link(text: &mut String, index: u32, name: &str) {
    let chain = link_chain(index);
    line(
        text,
        format_args!(
            "add chain netdev {TABLE} {chain} {{ type filter hook ingress device \"{name}\" priority {PRIORITY}; policy drop; }}"
        ),
    );
    let enter = spelled("from-".to_owned());
    for protocol in ["ip", "ip6", "arp"] {
        line(
            text,
            format_args!("add rule netdev {TABLE} {chain} ether type {protocol} goto {enter}{protocol}"),
        );
    }
    line(text, format_args!("add rule netdev {TABLE} {chain} counter name frame drop"));
}

fn list(members: &BTreeSet<String>) -> String {
    members.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{arguments}");
}
