//! Sets: `ipset restore`, `ipset save` and `ipset list`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    thread,
    time::Duration,
};

use ipnet::IpNet;

use crate::{
    dataplane::{ApplyError, DataplaneError, Refusal, command::Commands, command::Output},
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

/// The successive waits for the kernel to release sets. The nft variant frees the rules of a transaction after it, and
/// these hold their sets until then: a few milliseconds, more on a busy machine.
const RELEASE_WAITS: [Duration; 3] =
    [Duration::from_millis(10), Duration::from_millis(40), Duration::from_millis(100)];

/// Parses our sets in the output of `ipset save`.
///
/// A set with a name of ours that we would not have created like this is not ours, and is left out: if we need the
/// name, creating it fails with the reason. A member that cannot be parsed is left out too.
pub(super) fn parse(text: &str) -> BTreeMap<SetName, IpSet> {
    let mut sets: BTreeMap<SetName, IpSet> = BTreeMap::new();
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
                let set = ours(name, kind, words).map(|(name, kind)| (name, kind, Vec::new()));
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
    sets
}

/// A set of ours, by its name, its type, and the options that it was created with: another program may use the name.
fn ours<'a>(name: &str, kind: &str, options: impl Iterator<Item = &'a str>) -> Option<(SetName, SetKind)> {
    let name = SetName::new(name)?;
    let mut counters = false;
    for option in options {
        match option {
            "counters" => counters = true,
            "timeout" | "comment" | "skbinfo" => return None,
            _ => {}
        }
    }
    let kind = match (kind, counters) {
        ("hash:ip", true) => SetKind::CountedAddresses,
        ("hash:ip", false) => SetKind::Addresses,
        ("hash:net", false) => SetKind::Networks,
        ("hash:ip,port", false) => SetKind::Endpoints,
        ("hash:net,port", false) => SetKind::NetworkEndpoints,
        ("bitmap:port", false) => SetKind::Ports,
        _ => return None,
    };
    (kind == names::kind(name.role())).then_some((name, kind))
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
        let options = value("Header").unwrap_or_default().split(' ');
        if let Some((name, _)) = ours(name, kind, options) {
            let head = Head { references: number("References"), entries: number("Number of entries") };
            heads.insert(name, head);
        }
    }
    heads
}

/// Our sets with their members.
pub(super) fn read(commands: &Commands) -> Result<BTreeMap<SetName, IpSet>, DataplaneError> {
    // Sets of other programs are printed too and skipped: 100,000 entries cost 60 ms, once; one process for each of our
    // sets would cost as much.
    Ok(parse(&commands.run("ipset", &["save"], "")?.checked()?))
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
fn culprit(stderr: &str) -> Option<(usize, String)> {
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
mod tests {
    use super::*;

    fn name(text: &str) -> SetName {
        SetName::new(text).unwrap()
    }

    #[test]
    fn members_of_every_kind_are_parsed_and_foreign_sets_are_skipped() {
        let sets = parse(
            "create KUBE-LOOP-BACK hash:ip,port,ip family inet hashsize 1024 maxelem 65536\n\
             add KUBE-LOOP-BACK 10.0.0.1,tcp:80,10.0.0.1\n\
             create tp4-nets-xxxxxxxxxxxxxxxx hash:net family inet hashsize 1024 maxelem 4194304 bucketsize 12 initval 0x1\n\
             add tp4-nets-xxxxxxxxxxxxxxxx 10.0.0.0/8\n\
             add tp4-nets-xxxxxxxxxxxxxxxx 192.0.2.1\n\
             create tp4-drops hash:ip family inet hashsize 1024 maxelem 65536 counters bucketsize 12\n\
             add tp4-drops 10.244.0.7 packets 3 bytes 180\n\
             create tp4-ports-xxxxxxxxxxxxxxxx bitmap:port range 0-65535\n\
             add tp4-ports-xxxxxxxxxxxxxxxx 80\n\
             create tp6-named-xxxxxxxxxxxxxxxx hash:ip,port family inet6 hashsize 1024 maxelem 65536\n\
             add tp6-named-xxxxxxxxxxxxxxxx fd00::7,sctp:8080\n\
             create tp6-netports-xxxxxxxxxxxxxxxx hash:net,port family inet6 hashsize 1024 maxelem 65536\n\
             add tp6-netports-xxxxxxxxxxxxxxxx 2001:db8::/32,udp:53\n\
             add tp6-netports-xxxxxxxxxxxxxxxx 2001:db8::7,sctp:9\n\
             create tp6-nodes hash:ip family inet6 hashsize 1024 maxelem 65536\n\
             create tp6-odd hash:mac hashsize 1024 maxelem 65536\n\
             add tp6-odd 01:02:03:04:05:06\n",
        );
        let expected = [
            (
                "tp4-nets-xxxxxxxxxxxxxxxx",
                SetKind::Networks,
                vec![
                    Member::Network("10.0.0.0/8".parse().unwrap()),
                    Member::Network("192.0.2.1/32".parse().unwrap()),
                ],
            ),
            ("tp4-drops", SetKind::CountedAddresses, vec![Member::Address("10.244.0.7".parse().unwrap())]),
            ("tp4-ports-xxxxxxxxxxxxxxxx", SetKind::Ports, vec![Member::Port(80)]),
            (
                "tp6-named-xxxxxxxxxxxxxxxx",
                SetKind::Endpoints,
                vec![Member::Endpoint("fd00::7".parse().unwrap(), Protocol::Sctp, 8080)],
            ),
            (
                "tp6-netports-xxxxxxxxxxxxxxxx",
                SetKind::NetworkEndpoints,
                vec![
                    Member::NetworkEndpoint("2001:db8::/32".parse().unwrap(), Protocol::Udp, 53),
                    Member::NetworkEndpoint("2001:db8::7/128".parse().unwrap(), Protocol::Sctp, 9),
                ],
            ),
            ("tp6-nodes", SetKind::Addresses, vec![]),
        ];
        let expected: BTreeMap<SetName, IpSet> = expected
            .into_iter()
            .map(|(set, kind, members)| (name(set), IpSet { kind, members: members.into_iter().collect() }))
            .collect();
        assert_eq!(sets, expected);
    }

    #[test]
    fn headers_contain_member_and_reference_counts() {
        let heads = parse_heads(
            "Name: KUBE-X\nType: hash:ip\nReferences: 9\nNumber of entries: 9\n\n\
             Name: tp4-nodes\nType: hash:ip\nRevision: 6\nHeader: family inet hashsize 1024\n\
             Size in memory: 216\nReferences: 2\nNumber of entries: 31\n",
        );
        assert_eq!(heads, BTreeMap::from([(name("tp4-nodes"), Head { references: 2, entries: 31 })]));
    }

    #[test]
    fn line_number_of_an_error_is_parsed() {
        let stderr = "ipset v7.17: Error in line 3: Syntax error: cannot parse 1.2.3.4: resolving failed";
        let (line, reason) = culprit(stderr).unwrap();
        assert_eq!((line, &*reason), (2, "Syntax error: cannot parse 1.2.3.4: resolving failed"));
        assert_eq!(culprit("ipset v7.17: Kernel error received: Operation not permitted"), None);
    }

    /// An `ipset` that refuses lines beginning with one of `refused`, and records each run and each line that it
    /// carries out. What it lists is in the file `heads`, and from the second time on in `later`, if that is there.
    fn refusing(folder: &std::path::Path, refused: &str) -> Commands {
        use std::os::unix::fs::PermissionsExt as _;
        let script = format!(
            "#!/bin/sh\ncd {}\nif [ \"$1\" = list ]; then echo >> lists; cat heads; [ ! -e later ] || cp later heads; exit; fi\n\
             echo run >> runs\nn=0\nwhile read -r line; do n=$((n+1)); case \"$line\" in\n\
             {refused}) echo \"ipset v7.17: Error in line $n: no room\" >&2; exit 1;; esac\n\
             echo \"$line\" >> lines; done\n",
            folder.display()
        );
        let program = folder.join("ipset");
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = std::env::var_os("PATH").unwrap();
        Commands::new(
            std::env::join_paths([folder.to_owned()].into_iter().chain(std::env::split_paths(&path)))
                .unwrap(),
        )
    }

    /// How many lines one of its files has.
    fn count(folder: &tempfile::TempDir, file: &str) -> usize {
        std::fs::read_to_string(folder.path().join(file)).unwrap_or_default().lines().count()
    }

    fn add(set: &SetName, last: u8) -> SetEdit {
        SetEdit::Add(set.clone(), Member::Address([10, 0, 0, last].into()))
    }

    fn refused(result: Result<(), ApplyError>) -> BTreeSet<String> {
        let Err(ApplyError::Refused(refusals)) = result else { panic!("{result:?}") };
        refusals.iter().map(|refusal| refusal.object.to_string()).collect()
    }

    /// A set of pods; names ascend with the numbers.
    fn numbered(at: usize) -> SetName {
        let letters: String =
            format!("{at:016}").bytes().map(|digit| char::from(digit - b'0' + b'a')).collect();
        name(&format!("tp4-pods-{letters}"))
    }

    #[test]
    fn sets_without_room_are_found_in_few_runs_and_closing_edits_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let commands = refusing(folder.path(), "\"create tp4-pods-\"*");
        let sets = (0..1000).map(|at| SetEdit::Create(numbered(at), SetKind::Addresses));
        let closing = SetEdit::Create(name("tp4-nodes"), SetKind::Addresses);
        let edits: Vec<SetEdit> = std::iter::once(closing).chain(sets).collect();
        assert_eq!(refused(apply(&commands, &edits)).len(), 1000);
        assert_eq!(count(&folder, "runs"), 1 + REFUSED_SETS);
    }

    #[test]
    fn refused_entries_are_found_in_few_runs_and_earlier_sets_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let commands = refusing(folder.path(), "\"add tp4-pods-\"*\" 10.0.0.66\"*");
        let edits: Vec<SetEdit> = (0..100)
            .flat_map(|at| {
                let set = numbered(at);
                let member = |last: u8| SetEdit::Add(set.clone(), Member::Address([10, 0, 0, last].into()));
                let last = if at < 10 { 1 } else { 66 };
                [SetEdit::Create(set.clone(), SetKind::Addresses), member(last)]
            })
            .collect();
        let refused = refused(apply(&commands, &edits));
        assert_eq!(refused.len(), 90, "{refused:?}");
        let is_refused = |at| refused.contains(&format!("set {}", numbered(at)));
        assert!(!is_refused(9) && is_refused(10));
        assert_eq!(count(&folder, "runs"), 1 + TRIES);
    }

    #[test]
    fn set_with_unknown_options_is_not_ours() {
        for option in ["timeout 60", "comment", "skbinfo"] {
            assert!(
                parse(&format!("create tp4-nodes hash:ip family inet hashsize 1024 {option}\n")).is_empty()
            );
        }
        assert_eq!(parse("create tp4-nodes hash:ip family inet hashsize 1024\n").len(), 1);
    }

    #[test]
    fn endpoints_of_every_protocol_are_read() {
        for (text, protocol) in [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)] {
            let read = member(SetKind::Endpoints, &format!("10.0.0.1,{text}:80"));
            assert_eq!(read, Some(Member::Endpoint([10, 0, 0, 1].into(), protocol, 80)));
        }
        assert_eq!(member(SetKind::Endpoints, "10.0.0.1,icmp:80"), None);
    }

    #[test]
    fn of_a_set_that_cannot_be_created_nothing_is_tried_and_all_others_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let (bad, good) = (numbered(0), numbered(1));
        let commands = refusing(folder.path(), &format!("\"create {bad} \"*"));
        let create = |set: &SetName| SetEdit::Create(set.clone(), SetKind::Addresses);
        let edits = [create(&bad), add(&bad, 1), create(&good), add(&bad, 2), add(&good, 1)];
        assert_eq!(refused(apply(&commands, &edits)), BTreeSet::from([format!("set {bad}")]));
        let lines = std::fs::read_to_string(folder.path().join("lines")).unwrap();
        assert!(!lines.contains(bad.as_str()), "{lines}");
        assert!(lines.ends_with(&format!("add {good} 10.0.0.1\n")), "{lines}");
    }

    #[test]
    fn after_sixteen_refused_entries_of_a_set_the_rest_of_it_is_not_tried() {
        let folder = tempfile::tempdir().unwrap();
        let (bad, good) = (numbered(0), numbered(1));
        let commands = refusing(folder.path(), &format!("\"add {bad} \"*"));
        let edits: Vec<SetEdit> = (0..40).map(|last| add(&bad, last)).chain([add(&good, 1)]).collect();
        assert_eq!(refused(apply(&commands, &edits)), BTreeSet::from([format!("set {bad}")]));
        assert_eq!(count(&folder, "runs"), 1 + REFUSED_ENTRIES);
        assert_eq!(count(&folder, "lines"), 1);
    }

    #[test]
    fn without_room_for_new_sets_those_that_are_there_are_still_filled() {
        let folder = tempfile::tempdir().unwrap();
        let commands = refusing(folder.path(), "\"create \"*");
        let new = (0..REFUSED_SETS + 2).map(|at| SetEdit::Create(numbered(at), SetKind::Addresses));
        let there = numbered(100);
        let edits: Vec<SetEdit> = new.chain([add(&there, 1)]).collect();
        let refused = refused(apply(&commands, &edits));
        assert_eq!(refused.len(), REFUSED_SETS + 2);
        assert!(!refused.contains(&format!("set {there}")));
        assert_eq!(count(&folder, "lines"), 1);
    }

    #[test]
    fn sets_still_in_use_are_given_up_after_the_last_try() {
        let folder = tempfile::tempdir().unwrap();
        let commands = refusing(folder.path(), "\"add \"*\" 10.0.0.66\"");
        let bad = (1..=100).map(|at| add(&numbered(at), 66));
        let edits: Vec<SetEdit> = std::iter::once(add(&numbered(0), 1)).chain(bad).collect();
        assert_eq!(refused(apply(&commands, &edits)).len(), 100);
        assert_eq!(count(&folder, "runs"), 1 + TRIES);
    }

    #[test]
    fn error_in_an_unknown_line_fails_the_whole_batch() {
        let folder = tempfile::tempdir().unwrap();
        // It refuses the line after the last one.
        let commands = refusing(
            folder.path(),
            "\"add \"*) n=$((n+1)); echo \"Error in line $n: why\" >&2; exit 1;; never",
        );
        assert!(matches!(apply(&commands, &[add(&numbered(0), 1)]), Err(ApplyError::Failed(_))));
    }

    /// What `ipset list -terse` prints of sets with these numbers of references.
    fn heads(sets: &[(&SetName, usize)]) -> String {
        let head = |(set, references): &(&SetName, usize)| {
            format!("Name: {set}\nType: hash:ip\nReferences: {references}\nNumber of entries: 0\n\n")
        };
        sets.iter().map(head).collect()
    }

    #[test]
    fn unused_sets_are_destroyed_and_those_in_use_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let (used, free, odd) = (numbered(0), numbered(1), numbered(2));
        let commands = refusing(folder.path(), &format!("\"destroy {used}\" | \"destroy {odd}\""));
        std::fs::write(folder.path().join("heads"), heads(&[(&used, 1), (&free, 0), (&odd, 0)])).unwrap();
        let edits = [&used, &free, &odd].map(|set| SetEdit::Destroy(set.clone()));
        let Err(ApplyError::Refused(refusals)) = gc(&commands, &edits) else { panic!("two are left") };
        let reasons: BTreeMap<String, String> =
            refusals.into_iter().map(|refusal| (refusal.object.to_string(), refusal.reason)).collect();
        assert_eq!(reasons.len(), 2, "{reasons:?}");
        assert!(reasons[&format!("set {used}")].contains("a rule still uses it"), "{reasons:?}");
        assert!(reasons[&format!("set {odd}")].contains("no room"), "{reasons:?}");
        assert_eq!(count(&folder, "lists"), 1 + RELEASE_WAITS.len(), "it may be released any moment");
    }

    #[test]
    fn set_released_late_is_destroyed() {
        let folder = tempfile::tempdir().unwrap();
        let set = numbered(0);
        // The kernel refuses it while it is in use, which it is the first time that it is listed.
        let commands = refusing(
            folder.path(),
            "\"destroy \"*) [ -e lists ] || { echo \"in use\" >&2; exit 1; };; never",
        );
        std::fs::write(folder.path().join("heads"), heads(&[(&set, 1)])).unwrap();
        std::fs::write(folder.path().join("later"), heads(&[(&set, 0)])).unwrap();
        gc(&commands, &[SetEdit::Destroy(set)]).unwrap();
        assert_eq!(count(&folder, "lists"), 2, "nothing more to wait for");
    }
}
