//! Writes the interface guard: the tables `bridge towpath` and `netdev towpath`, through `nft`.
//!
//! Each change is one transaction. The kernel announces changes of these tables by other programs; then both are
//! rewritten, again in one transaction, so that they always exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::Arc,
};

use nix::errno::Errno;
use tracing::debug;

use super::{
    netlink::{Message, Netlink, messages, text},
    watch::{self, Journal},
};
use crate::{
    dataplane::{DataplaneError, command::Commands},
    ruleset::guard::{
        Mac,
        render::{COUNTERS, FAMILIES, Guard, TABLE, TRIAL, closed, has_all_rules, removal_of, tables, trial},
    },
};

/// The multicast group of nftables' notifications.
const GROUP: u32 = 7;
const SUBSYSTEM: u16 = 10 << 8;
const NEW_GENERATION: u16 = SUBSYSTEM | 15;
/// In every message about a table, a chain, a rule or a set: the name of the table.
const TABLE_NAME: u16 = 1;
/// How often something is read again because a transaction fell into it.
const LISTINGS: usize = 20;
/// The family numbers in messages.
const BRIDGE: u8 = 7;
const NETDEV: u8 = 5;

/// Which changes of nftables' rules this process made for the guard.
#[derive(Clone, Debug)]
pub struct Changes(Arc<Journal>);

/// What a previous process let an interface use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreviousBinding {
    /// The hardware address.
    pub mac: Mac,
    /// The addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// What a previous process left, of whichever version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreviousGuard {
    /// What it let each interface use, by the interface's name.
    pub bindings: BTreeMap<String, PreviousBinding>,
    /// The interfaces that it had closed.
    pub closed: BTreeSet<u32>,
}

/// What nft printed.
struct NftListing {
    text: String,
    /// Whether no transaction fell into it: if one does, nft may leave out rules and elements, without an error.
    is_whole: bool,
}

/// The guard in the kernel.
#[derive(Debug)]
pub struct GuardTables {
    commands: Arc<Commands>,
    changes: Changes,
    /// What this process has written; `None` before the first write, or when another program may have changed it.
    written: Option<Guard>,
    /// How nft prints the rules; every check compares them.
    rules: Option<String>,
    /// Removes the tables of ours that this version does not have, with the next write.
    strays: String,
}

impl GuardTables {
    /// Creates it without writing anything.
    ///
    /// # Errors
    /// If the netlink socket of netfilter cannot be opened.
    pub fn new(commands: Arc<Commands>) -> io::Result<Self> {
        let changes = Changes(Arc::new(Journal::open()?));
        Ok(Self { commands, changes, written: None, rules: None, strays: String::new() })
    }

    /// Which changes are this process' own.
    #[must_use]
    pub fn changes(&self) -> Changes {
        self.changes.clone()
    }

    /// Checks whether the kernel accepts such tables. Nothing is written.
    ///
    /// # Errors
    /// If `nft` is not installed, or refuses them.
    pub fn probe(&self) -> Result<(), DataplaneError> {
        self.commands.run("nft", &["-c", "-f", "-"], &Guard::default().whole())?.checked().map(drop)
    }

    /// Takes over what a previous process wrote, if it has the checks that we would write: the next
    /// [`apply`](Self::apply) then writes only the difference. `interfaces` holds interface indices by name.
    ///
    /// Returns what that process let each interface use, and which it had closed, whether or not its tables could be
    /// taken over. If transactions of other programs fall into every listing, all that was listed counts.
    ///
    /// # Errors
    /// If `nft` cannot be run.
    pub fn take_over(&mut self, interfaces: &BTreeMap<String, u32>) -> Result<PreviousGuard, DataplaneError> {
        let mut found = PreviousGuard::default();
        let is_stray = |table: &(String, String)| table.1 != TABLE || !FAMILIES.contains(&&*table.0);
        let strays = our_tables(&self.commands)?.into_iter().filter(is_stray);
        self.strays = strays.map(|(family, name)| removal_of(&family, &name)).collect();
        for _ in 0..LISTINGS {
            let [bridge, netdev] = self.list(TABLE)?;
            bindings(&bridge.text, &mut found.bindings);
            bindings(&netdev.text, &mut found.bindings);
            found.closed = &closed(&bridge.text, interfaces) | &closed(&netdev.text, interfaces);
            if bridge.is_whole && netdev.is_whole {
                self.rules = self.try_reference();
                if self.rules == Some(rules(&bridge.text) + &rules(&netdev.text)) {
                    self.written = Guard::read(&bridge.text, &netdev.text, interfaces);
                }
                break;
            }
        }
        Ok(found)
    }

    /// Makes the kernel hold `guard`. Returns whether it wrote anything.
    ///
    /// # Errors
    /// If `nft` is not installed, or refuses it: then nothing has changed.
    pub fn apply(&mut self, guard: &Guard) -> Result<bool, DataplaneError> {
        if let Some(written) = &self.written {
            let difference = guard.difference(written) + &self.strays;
            if difference.is_empty() {
                return Ok(false);
            }
            if self.run(&difference)?.is_ok() {
                self.written = Some(guard.clone());
                self.strays.clear();
                return Ok(true);
            }
            // An interface disappeared meanwhile with its chain, or another program changed the tables.
        }
        self.written = None;
        self.run(&(guard.whole() + &self.strays))??;
        self.written = Some(guard.clone());
        self.strays.clear();
        Ok(true)
    }

    /// Forgets what was written, so that the next [`apply`](Self::apply) rewrites everything.
    pub fn distrust(&mut self) {
        self.written = None;
    }

    /// Whether the kernel still holds what was written: the same elements, and the same rules. `interfaces` holds
    /// interface indices by name.
    ///
    /// # Errors
    /// If `nft` cannot be run.
    pub fn check(&mut self, interfaces: &BTreeMap<String, u32>) -> Result<bool, DataplaneError> {
        let Some(written) = &self.written else { return Ok(false) };
        let mut reference = self.rules.clone();
        let mut same = false;
        for _ in 0..LISTINGS {
            let [bridge, netdev] = self.list(TABLE)?;
            same = Guard::read(&bridge.text, &netdev.text, interfaces).as_ref() == Some(written);
            if same && reference.is_none() {
                // Without one, the elements and the numbers of rules are compared.
                reference = self.try_reference();
            }
            same &= reference.as_ref().is_none_or(|all| *all == rules(&bridge.text) + &rules(&netdev.text));
            if same || bridge.is_whole && netdev.is_whole {
                break;
            }
        }
        self.rules = reference;
        Ok(same)
    }

    /// [`Self::reference`], or `None` if it cannot be had now.
    fn try_reference(&self) -> Option<String> {
        let reference = self.reference();
        reference.inspect_err(|error| debug!(%error, "cannot read how nft prints the guard's rules")).ok()
    }

    /// How this version of nft prints our rules: those of tables that no packet reaches.
    fn reference(&self) -> Result<String, DataplaneError> {
        let remove: String = FAMILIES.iter().map(|family| removal_of(family, TRIAL)).collect();
        // First remove a table that a process left when it was killed here.
        self.run(&(remove.clone() + &trial(TRIAL)))??;
        let listed = self.list_trial();
        self.run(&remove)??;
        let [bridge, netdev] = listed?;
        Ok(rules(&bridge) + &rules(&netdev))
    }

    /// The trial tables with all their rules.
    fn list_trial(&self) -> Result<[String; 2], DataplaneError> {
        for _ in 0..LISTINGS {
            let [bridge, netdev] = self.list(TRIAL)?;
            if has_all_rules("bridge", &bridge.text) && has_all_rules("netdev", &netdev.text) {
                return Ok([bridge.text, netdev.text]);
            }
        }
        let source = io::Error::other(format!("nftables rules changed during all {LISTINGS} attempts"));
        Err(DataplaneError::System { doing: "listing the tables for a trial".to_owned(), source })
    }

    /// Both tables as nft prints them, without counters; empty if they do not exist.
    fn list(&self, table: &str) -> Result<[NftListing; 2], DataplaneError> {
        let [bridge, netdev] =
            FAMILIES.map(|family| self.read(&["-n", "-s", "list", "table", family, table]));
        Ok([bridge?, netdev?])
    }

    fn read(&self, arguments: &[&str]) -> Result<NftListing, DataplaneError> {
        let before = self.changes.0.generation();
        let output = self.commands.run("nft", arguments, "")?;
        let is_whole = before.is_some() && before == self.changes.0.generation();
        Ok(NftListing { text: if output.success { output.stdout } else { String::new() }, is_whole })
    }

    /// Dropped frames since the tables were last rewritten, by reason.
    ///
    /// # Errors
    /// If `nft` cannot be run.
    pub fn drops(&self) -> Result<BTreeMap<&'static str, u64>, DataplaneError> {
        let mut drops: BTreeMap<&'static str, u64> = BTreeMap::new();
        for family in FAMILIES {
            let text =
                self.commands.run("nft", &["list", "counters", "table", family, TABLE], "")?.checked()?;
            for (name, packets) in counters(&text) {
                *drops.entry(name).or_default() += packets;
            }
        }
        Ok(drops)
    }

    fn run(&self, text: &str) -> Result<Result<(), DataplaneError>, DataplaneError> {
        let transaction = || self.commands.run("nft", &["-f", "-"], text);
        let output = self.changes.0.record(transaction, |output| output.as_ref().is_ok_and(|o| o.success))?;
        Ok(output.checked().map(drop))
    }
}

/// Our tables, of whichever version: their families and names.
fn our_tables(commands: &Commands) -> Result<BTreeSet<(String, String)>, DataplaneError> {
    Ok(tables(&commands.run("nft", &["list", "tables"], "")?.checked()?))
}

/// Removes all our tables, of whichever version. Returns how many existed.
///
/// # Errors
/// If `nft` refuses it. Where it is not installed there is nothing to remove.
pub fn remove(commands: &Commands) -> Result<usize, DataplaneError> {
    if !commands.has("nft") {
        return Ok(0);
    }
    let there = our_tables(commands)?;
    if !there.is_empty() {
        let removal: String = there.iter().map(|(family, name)| removal_of(family, name)).collect();
        commands.run("nft", &["-f", "-"], &removal)?.checked()?;
    }
    Ok(there.len())
}

/// The rules in the output of `nft list table`, without those of single links, which come and go.
pub(super) fn rules(text: &str) -> String {
    let mut chain = None;
    let mut rules = String::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ") {
            chain = Some(name).filter(|name| !name.starts_with("ingress-"));
        } else if line == "}" {
            chain = None;
        } else if let Some(chain) = chain
            && !line.is_empty()
            && !line.starts_with("type ")
        {
            rules.push_str(chain);
            rules.push_str(line);
            rules.push('\n');
        }
    }
    rules
}

/// The parts of one line of `nft list table`: its elements one by one, or the line.
fn elements(line: &str) -> Vec<String> {
    let line = line.trim();
    let list = line.strip_prefix("elements = {").unwrap_or(line);
    list.trim_end_matches('}').split(',').map(|part| part.trim().to_owned()).collect()
}

/// Parses the elements that `nft list set` prints: `"veth" . 02:00:00:00:00:01 . 10.244.1.2`.
pub(super) fn bindings(text: &str, found: &mut BTreeMap<String, PreviousBinding>) {
    for element in text.lines().flat_map(elements) {
        let mut parts = element.split(" . ");
        let (Some(name), Some(mac), Some(address)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        // Behind it there may be a counter or a verdict.
        let address = address.split(' ').next().unwrap_or(address);
        let (Some(mac), Ok(address)) = (mac_of(mac), address.parse::<IpAddr>()) else { continue };
        let name = name.trim_matches('"').to_owned();
        let former = found.entry(name).or_insert_with(|| PreviousBinding { mac, addresses: BTreeSet::new() });
        former.addresses.insert(address);
    }
}

fn mac_of(text: &str) -> Option<Mac> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok().map(Mac)
}

/// Parses the output of `nft list counters`.
pub(super) fn counters(text: &str) -> impl Iterator<Item = (&'static str, u64)> {
    let mut current = None;
    text.lines().filter_map(move |line| {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("counter"), Some(name)) => {
                current = COUNTERS.iter().find(|(known, _)| *known == name).map(|(known, _)| *known);
                None
            }
            (Some("packets"), Some(count)) => Some((current?, count.parse().ok()?)),
            _ => None,
        }
    })
}

/// Waits until another program changes our tables, and then calls `notify`, until that returns `false`.
///
/// # Errors
/// If a system call fails.
pub fn follow(changes: &Changes, notify: &dyn Fn() -> bool) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    netlink.socket.add_membership(GROUP)?;
    let mut concerned = false;
    loop {
        let mut foreign = false;
        match netlink.receive() {
            Ok(datagram) => {
                for message in messages(datagram) {
                    if message.kind == NEW_GENERATION {
                        let number = watch::generation(&message);
                        foreign |= std::mem::take(&mut concerned)
                            && !number.is_some_and(|number| changes.0.is_ours(number));
                    } else {
                        concerned |= is_ours(&message);
                    }
                }
            }
            // More notifications were sent than the socket could hold: some of them may have been about our tables.
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => foreign = true,
            Err(error) => return Err(error),
        }
        if foreign && !notify() {
            return Ok(());
        }
    }
}

pub(super) fn is_ours(message: &Message<'_>) -> bool {
    matches!(message.family, BRIDGE | NETDEV)
        && message.attributes().any(|(kind, value)| kind == TABLE_NAME && text(value) == TABLE)
}

#[cfg(test)]
mod tests {
    use super::{
        super::netlink::{encode, put},
        *,
    };

    #[test]
    fn counters_are_parsed_by_name() {
        let text = "table bridge towpath {\n\tcounter frame {\n\t\tpackets 3 bytes 180\n\t}\n\tcounter source {\n\
                    \t\tpackets 7 bytes 420\n\t}\n\tcounter other {\n\t\tpackets 9 bytes 1\n\t}\n}\n";
        let found: Vec<_> = counters(text).collect();
        assert_eq!(found, [("frame", 3), ("source", 7)]);
    }

    #[test]
    fn state_of_a_previous_process_is_parsed_by_interface() {
        let text = "table bridge towpath {\n\tset sources4 {\n\t\ttype iface_index . ether_addr . ipv4_addr\n\
                    \t\telements = { \"vetha\" . 56:ae:7a:82:dc:6f . 10.244.1.2,\n\
                    \t\t\t     9 . 8a:c2:4c:69:52:9a . 10.244.1.3 }\n\t}\n}\n";
        let mut found = BTreeMap::new();
        bindings(text, &mut found);
        let expected = PreviousBinding {
            mac: Mac([0x56, 0xae, 0x7a, 0x82, 0xdc, 0x6f]),
            addresses: BTreeSet::from(["10.244.1.2".parse().unwrap()]),
        };
        assert_eq!(found.get("vetha"), Some(&expected));
        assert_eq!(found.len(), 2);
        let mut other = BTreeMap::new();
        bindings(
            "elements = { \"vetha\" . 56:ae:7a:82:dc:6f . 10.244.1.2 counter packets 0 bytes 0 : accept }",
            &mut other,
        );
        assert_eq!(
            other,
            BTreeMap::from([("vetha".to_owned(), expected)]),
            "with what another version may add"
        );
    }

    #[test]
    fn elements_are_compared_regardless_of_order() {
        let parts = |line| elements(line);
        assert_eq!(parts("\t\telements = { 3 . 10.0.0.1,"), ["3 . 10.0.0.1", ""]);
        assert_eq!(parts("4 . 10.0.0.2 }"), ["4 . 10.0.0.2"]);
        assert_eq!(parts("\t\tcounter name \"source\" drop"), ["counter name \"source\" drop"]);
    }

    #[test]
    fn our_tables_are_recognised_by_family_and_name() {
        let concerns = |family: u8, kind: u16, name: &[u8]| {
            let mut attributes = Vec::new();
            put(&mut attributes, kind, name);
            is_ours(&messages(&encode(SUBSYSTEM, 0, 1, family, &attributes)).next().unwrap())
        };
        let ipv4 = 2;
        assert!(concerns(BRIDGE, TABLE_NAME, b"towpath\0") && concerns(NETDEV, TABLE_NAME, b"towpath\0"));
        assert!(!concerns(ipv4, TABLE_NAME, b"towpath\0"));
        assert!(!concerns(BRIDGE, TABLE_NAME, b"filter\0"));
        assert!(!concerns(BRIDGE, TABLE_NAME + 1, b"towpath\0"), "the name of a chain, for example");
    }
}
