//! Sets: `ipset restore`, `ipset save` and `ipset list`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    thread,
    time::Duration,
};

use ipnet::IpNet;

use crate::{
    dataplane::{ApplyError, DataplaneError, Difference, Refusal, command::Commands, command::Output},
    model::Protocol,
    ruleset::{IpSet, Member, Object, SetKind, SetName, names, plan::SetEdit, render},
};

/// After this many refused entries of one set, the rest of that set is not tried.
const REFUSED_ENTRIES: usize = 16;

/// How often edits are retried without the refused one. Each one runs everything again, so it must not be as often as a
/// tenant can get edits refused. After the last one, sets with edits after the refused one are given up at once.
const TRIES: usize = 24;

/// After this many sets that could not be created, no other is tried: the kernel has no room for more.
const REFUSED_SETS: usize = 4;

/// Up to so many sets are read one by one.
const READ_ALONE: usize = 8;

/// The successive waits for the kernel to release sets. The nft variant frees the rules of a transaction after it, and
/// these hold their sets until then: a few milliseconds, more on a busy machine.
const RELEASE_WAITS: [Duration; 3] =
    [Duration::from_millis(10), Duration::from_millis(40), Duration::from_millis(100)];

/// Our sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Saved {
    /// Those that this version would have created like this.
    pub(super) sets: BTreeMap<SetName, IpSet>,
    /// Those that another version created.
    pub(super) others: BTreeSet<SetName>,
}

/// Parses our sets in the output of `ipset save`. A member that cannot be parsed is left out.
pub(super) fn parse(text: &str) -> Saved {
    let mut sets: BTreeMap<SetName, IpSet> = BTreeMap::new();
    let mut others = BTreeSet::new();
    // Members follow their set, so that the set need not be looked up for each.
    let mut current: Option<(SetName, SetKind, Vec<Member>)> = None;
    let mut finish = |set: Option<(SetName, SetKind, Vec<Member>)>| {
        if let Some((name, kind, members)) = set {
            sets.insert(name, IpSet { kind, members: members.into_iter().collect() });
        }
    };
    for line in text.lines() {
        let mut words = line.split(' ');
        match (words.next(), words.next(), words.next()) {
            (Some("create"), Some(name), Some(kind)) => {
                let set = match (SetName::new(name), options(kind, words)) {
                    (Some(name), Some(kind)) if names::is_usual(&name, kind) => {
                        Some((name, kind, Vec::new()))
                    }
                    (name, _) => {
                        others.extend(name);
                        None
                    }
                };
                finish(std::mem::replace(&mut current, set));
            }
            (Some("add"), Some(name), Some(entry)) => {
                if let Some((set, kind, members)) = &mut current
                    && set.as_str() == name
                {
                    members.extend(member(*kind, entry));
                }
            }
            _ => {}
        }
    }
    finish(current);
    Saved { sets, others }
}

/// The kind of a set, from its type and the options that it was created with; `None` if we have no such kind.
fn options<'a>(kind: &str, options: impl Iterator<Item = &'a str>) -> Option<SetKind> {
    let mut counters = false;
    for option in options {
        match option {
            "counters" => counters = true,
            "timeout" | "comment" | "skbinfo" => return None,
            _ => {}
        }
    }
    match (kind, counters) {
        ("hash:ip", true) => Some(SetKind::CountedAddresses),
        ("hash:ip", false) => Some(SetKind::Addresses),
        ("hash:net", false) => Some(SetKind::Networks),
        ("hash:ip,port", false) => Some(SetKind::Endpoints),
        ("hash:net,port", false) => Some(SetKind::NetworkEndpoints),
        ("bitmap:port", false) => Some(SetKind::Ports),
        _ => None,
    }
}

fn member(kind: SetKind, entry: &str) -> Option<Member> {
    match kind {
        SetKind::Addresses | SetKind::CountedAddresses => entry.parse().ok().map(Member::Address),
        SetKind::Networks => network(entry).map(Member::Network),
        SetKind::Endpoints => {
            let (address, protocol, port) = endpoint(entry)?;
            Some(Member::Endpoint(address.parse().ok()?, protocol, port))
        }
        SetKind::Ports => entry.parse().ok().map(Member::Port),
        SetKind::NetworkEndpoints => {
            let (address, protocol, port) = endpoint(entry)?;
            Some(Member::NetworkEndpoint(network(address)?, protocol, port))
        }
    }
}

/// A network of a single address is printed without its prefix length.
fn network(text: &str) -> Option<IpNet> {
    text.parse().or_else(|_| text.parse().map(|address: IpAddr| IpNet::from(address))).ok()
}

/// The part before the comma, and the protocol and port after it.
fn endpoint(entry: &str) -> Option<(&str, Protocol, u16)> {
    let (address, port) = entry.split_once(',')?;
    let (protocol, port) = port.split_once(':')?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    Some((address, protocol, port.parse().ok()?))
}

/// What the header of a set says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// How many rules use it.
    pub(super) references: usize,
    /// How many members it has.
    pub(super) entries: usize,
    /// Whether this version would have created it like this.
    pub(super) is_usual: bool,
}

/// Parses the headers of our sets in the output of `ipset list -t`.
pub(super) fn parse_heads(text: &str) -> BTreeMap<SetName, Head> {
    let mut heads: BTreeMap<SetName, Head> = BTreeMap::new();
    for set in text.split("\n\n") {
        let value = |key: &str| {
            set.lines()
                .find_map(|line| line.split_once(": ").filter(|(found, _)| *found == key))
                .map(|(_, v)| v)
        };
        let number = |key| value(key).and_then(|text| text.parse().ok()).unwrap_or(0);
        let (Some(name), Some(kind)) = (value("Name"), value("Type")) else { continue };
        let kind = options(kind, value("Header").unwrap_or_default().split(' '));
        if let Some(name) = SetName::new(name) {
            let head = Head {
                references: number("References"),
                entries: number("Number of entries"),
                is_usual: kind.is_some_and(|kind| names::is_usual(&name, kind)),
            };
            heads.insert(name, head);
        }
    }
    heads
}

/// Our sets with their members.
pub(super) fn read(commands: &Commands) -> Result<Saved, DataplaneError> {
    // Sets of other programs are printed too and skipped: 100,000 entries cost 60 ms, once; one process for each of our
    // sets would cost as much.
    Ok(parse(&commands.run("ipset", &["save"], "")?.checked()?))
}

/// Reads the members of the sets of which only the number is known, if they are few. A process for each of many would
/// cost more than reading all sets.
pub(super) fn read_members(
    commands: &Commands,
    differences: &mut [Difference],
) -> Result<(), DataplaneError> {
    let is_counted = |difference: &&mut Difference| matches!(difference, Difference::Members(_));
    if differences.iter_mut().filter(is_counted).count() > READ_ALONE {
        return Ok(());
    }
    for difference in differences.iter_mut().filter(is_counted) {
        let Difference::Members(name) = difference else { continue };
        let output = commands.run("ipset", &["save", name.as_str()], "")?;
        // It may just have been destroyed.
        if output.success
            && let Some(found) = parse(&output.stdout).sets.remove(name)
        {
            *difference = Difference::Set { name: name.clone(), found: Some(found) };
        }
    }
    Ok(())
}

/// The headers of our sets.
pub(super) fn read_heads(commands: &Commands) -> Result<BTreeMap<SetName, Head>, DataplaneError> {
    Ok(parse_heads(&commands.run("ipset", &["list", "-terse"], "")?.checked()?))
}

fn restore(commands: &Commands, text: &str) -> Result<Output, DataplaneError> {
    commands.run("ipset", &["restore", "-exist"], text)
}

/// Carries out edits, in their order. Refused ones are left out, and the rest is carried out.
///
/// `ipset restore` stops at the first line that it cannot execute, and lines that it read just before may be lost too.
/// So everything except that line runs again from the start: with `-exist` this is idempotent. That is tried a bounded
/// number of times; then everything that may be refused and is not known to be done is given up together. A plan closes
/// first, so that part is done by then.
pub(super) fn apply(commands: &Commands, edits: &[SetEdit]) -> Result<(), ApplyError> {
    let text = render::sets(edits);
    let mut output = restore(commands, &text)?;
    if output.success {
        return Ok(());
    }
    let mut lines: Vec<(&str, &SetEdit)> = text.lines().zip(edits).collect();
    let mut refused: BTreeMap<&SetName, Vec<String>> = BTreeMap::new();
    let (mut tries, mut sets) = (0, 0);
    while !output.success {
        let Some((line, reason)) = culprit(&output.stderr).filter(|(line, _)| *line < lines.len()) else {
            return Err(output.into_error().into());
        };
        let (text, edit) = lines.remove(line);
        let set = edit.set();
        tracing::warn!(%set, edit = text, reason, "kernel refused a set edit");
        let reasons = refused.entry(set).or_default();
        reasons.push(format!("{text}: {reason}"));
        tries += 1;
        let is_new = matches!(edit, SetEdit::Create(..));
        sets += usize::from(is_new);
        if is_new || reasons.len() >= REFUSED_ENTRIES {
            lines.retain(|(_, edit)| edit.set() != set);
        }
        if tries >= TRIES || sets >= REFUSED_SETS {
            let given_up = give_up(&lines, line.min(lines.len()), tries < TRIES);
            tracing::warn!(
                sets = given_up.len(),
                reason,
                "too many set edits refused; giving up on the remaining sets"
            );
            for set in &given_up {
                refused
                    .entry(set)
                    .or_insert_with(|| vec![format!("not tried after others were refused: {reason}")]);
            }
            lines.retain(|(_, edit)| !given_up.contains(edit.set()));
        }
        if lines.is_empty() {
            break;
        }
        let rest: String = lines.iter().flat_map(|(text, _)| [*text, "\n"]).collect();
        output = restore(commands, &rest)?;
    }
    Err(refusals(refused))
}

/// The sets that are given up after refusals up to the line `from`: those with later edits that rules can do without;
/// if `only_new`, only those that are still to be created.
fn give_up<'a>(lines: &[(&str, &'a SetEdit)], from: usize, only_new: bool) -> BTreeSet<&'a SetName> {
    let behind = lines.get(from..).unwrap_or_default().iter().map(|(_, edit)| *edit);
    behind
        .filter(|edit| !only_new || matches!(edit, SetEdit::Create(..)))
        .map(SetEdit::set)
        .filter(|set| names::may_break(set))
        .collect()
}

fn refusals(refused: BTreeMap<&SetName, Vec<String>>) -> ApplyError {
    let refusal = |(set, reasons): (&SetName, Vec<String>)| Refusal {
        object: Object::Set(set.clone()),
        reason: reasons.join("; "),
    };
    ApplyError::Refused(refused.into_iter().map(refusal).collect())
}

/// The line of the input, counted from 0, that `ipset restore` stopped at, and why.
pub(super) fn culprit(stderr: &str) -> Option<(usize, String)> {
    let (_, rest) = stderr.split_once("Error in line ")?;
    let (line, reason) = rest.split_once(':')?;
    let line: usize = line.trim().parse().ok()?;
    Some((line.checked_sub(1)?, reason.trim().to_owned()))
}

/// Destroys sets that nothing uses any more; those in use are refused.
pub(super) fn gc(commands: &Commands, edits: &[SetEdit]) -> Result<(), ApplyError> {
    if restore(commands, &render::sets(edits))?.success {
        return Ok(());
    }
    let mut waits = RELEASE_WAITS.iter();
    let in_use = loop {
        let heads = read_heads(commands)?;
        let in_use: BTreeSet<&SetName> = edits
            .iter()
            .map(SetEdit::set)
            .filter(|set| heads.get(*set).is_some_and(|head| head.references > 0))
            .collect();
        match waits.next() {
            Some(wait) if !in_use.is_empty() => thread::sleep(*wait),
            _ => break in_use,
        }
    };
    let free: Vec<SetEdit> = edits.iter().filter(|edit| !in_use.contains(edit.set())).cloned().collect();
    let mut refused: BTreeMap<&SetName, Vec<String>> = in_use
        .into_iter()
        .map(|set| (set, vec!["a rule still uses it, which may be one of somebody else".to_owned()]))
        .collect();
    match apply(commands, &free) {
        Ok(()) => {}
        Err(ApplyError::Refused(more)) => {
            let reason = |set: &SetName| {
                let same = |refusal: &&Refusal| refusal.object == Object::Set(set.clone());
                more.iter().find(same).map(|refusal| refusal.reason.clone())
            };
            for edit in &free {
                refused.extend(reason(edit.set()).map(|reason| (edit.set(), vec![reason])));
            }
        }
        Err(failed) => return Err(failed),
    }
    if refused.is_empty() { Ok(()) } else { Err(refusals(refused)) }
}

#[cfg(test)]
mod tests;
