use super::*;

fn name(text: &str) -> SetName {
    SetName::new(text).unwrap()
}

#[test]
fn members_of_every_kind_are_parsed_and_foreign_sets_are_skipped() {
    let saved = parse(
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
         add tp6-odd 01:02:03:04:05:06\n\
         create tp6-odd-xxxxxxxxxxxxxxxx hash:mac hashsize 1024 maxelem 65536\n\
         add tp6-odd-xxxxxxxxxxxxxxxx 01:02:03:04:05:06\n\
         create tp4-local-pods hash:net family inet hashsize 1024 maxelem 65536\n\
         add tp4-local-pods 10.244.0.7\n",
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
    let others = ["tp6-odd-xxxxxxxxxxxxxxxx", "tp4-local-pods"].map(name).into();
    assert_eq!(saved, Saved { sets: expected, others });
}

#[test]
fn headers_contain_member_and_reference_counts() {
    let heads = parse_heads(
        "Name: KUBE-X\nType: hash:ip\nReferences: 9\nNumber of entries: 9\n\n\
         Name: tp4-nodes\nType: hash:ip\nRevision: 6\nHeader: family inet hashsize 1024\n\
         Size in memory: 216\nReferences: 2\nNumber of entries: 31\n",
    );
    let head = Head { references: 2, entries: 31, is_usual: true };
    assert_eq!(heads, BTreeMap::from([(name("tp4-nodes"), head)]));
    let other = parse_heads("Name: tp4-nodes\nType: hash:net\nReferences: 1\nNumber of entries: 3\n");
    let head = Head { references: 1, entries: 3, is_usual: false };
    assert_eq!(other, BTreeMap::from([(name("tp4-nodes"), head)]));
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
        std::env::join_paths([folder.to_owned()].into_iter().chain(std::env::split_paths(&path))).unwrap(),
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
    let letters: String = format!("{at:016}").bytes().map(|digit| char::from(digit - b'0' + b'a')).collect();
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
fn set_with_unknown_options_is_of_another_version() {
    for option in ["timeout 60", "comment", "skbinfo"] {
        let saved = parse(&format!("create tp4-nodes hash:ip family inet hashsize 1024 {option}\n"));
        assert_eq!(saved, Saved { others: [name("tp4-nodes")].into(), ..Saved::default() });
    }
    let saved = parse("create tp4-nodes hash:ip family inet hashsize 1024\n");
    assert!(saved.others.is_empty() && saved.sets.len() == 1);
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
    let commands =
        refusing(folder.path(), "\"add \"*) n=$((n+1)); echo \"Error in line $n: why\" >&2; exit 1;; never");
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
    let commands =
        refusing(folder.path(), "\"destroy \"*) [ -e lists ] || { echo \"in use\" >&2; exit 1; };; never");
    std::fs::write(folder.path().join("heads"), heads(&[(&set, 1)])).unwrap();
    std::fs::write(folder.path().join("later"), heads(&[(&set, 0)])).unwrap();
    gc(&commands, &[SetEdit::Destroy(set)]).unwrap();
    assert_eq!(count(&folder, "lists"), 2, "nothing more to wait for");
}
