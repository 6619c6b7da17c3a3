use super::*;

/// One of each role, and whether it closes, grows early, may break, and is named after its members.
#[test]
fn role_determines_how_a_set_is_handled() {
    let some = digest(&"x");
    let family = Family::V4;
    for (set, [closing, early, breakable, after_members]) in [
        (drops(family), [false, true, true, false]),
        (local_pods(family), [true, true, false, false]),
        (known_pods(family), [false, false, false, false]),
        (set(family, SetRole::Nodes, ""), [true, true, false, false]),
        (all_pods(family), [false, false, false, false]),
        (tunnel_ends(family), [false, false, false, false]),
        (isolated(family, Direction::Ingress, &OrdSet::new()), [true, true, false, true]),
        (pods(family, &some), [false, false, true, false]),
        (named_ports(family, &some), [false, false, true, false]),
        (networks(family, &some), [false, true, true, true]),
        (excepts(family, &some), [true, true, true, true]),
        (network_ports(family, &some), [false, true, true, true]),
        (ports(family, &some), [false, true, true, true]),
    ] {
        assert_eq!(closes(&set), closing, "{set}");
        assert_eq!(grows_early(&set), early, "{set}");
        assert_eq!(may_break(&set), breakable, "{set}");
        assert_eq!(is_named_after_members(&set), after_members, "{set}");
    }
}

#[test]
fn sets_of_excepts_close_are_filled_early_and_can_break_with_their_rule() {
    let set = excepts(Family::V4, &digest(&"x"));
    assert!(closes(&set) && grows_early(&set) && may_break(&set));
    let allows = [networks(Family::V4, &digest(&"x")), network_ports(Family::V6, &digest(&"x"))];
    assert!(allows.iter().all(|set| !closes(set) && grows_early(set) && may_break(set)));
    assert!(
        closes(&local_pods(Family::V4)) && closes(&isolated(Family::V6, Direction::Egress, &OrdSet::new()))
    );
}

#[test]
fn names_fit_the_kernels_limit() {
    let long = ObjectKey::new("n".repeat(63), "p".repeat(253));
    let digest = digest(&long);
    for direction in Direction::BOTH {
        let chains = [dispatch(direction), pod(direction, &long), group(direction, &digest)];
        let branch = branch(direction, "fd00::/64".parse().unwrap());
        assert!(chains.iter().chain([&branch]).all(|name| name.as_str().len() <= 28));
        for family in Family::BOTH {
            for name in [
                isolated(family, direction, &OrdSet::new()),
                drops(family),
                local_pods(family),
                set(family, SetRole::Nodes, ""),
                all_pods(family),
                tunnel_ends(family),
                pods(family, &digest),
                named_ports(family, &digest),
                networks(family, &digest),
                ports(family, &digest),
                excepts(family, &digest),
                network_ports(family, &digest),
            ] {
                assert!(name.as_str().len() <= 31, "{name}");
                assert_eq!(name.family(), family);
            }
        }
    }
    assert!([forward(), input()].iter().all(|name| name.as_str().len() <= 28));
}

#[test]
fn only_complete_names_are_ours() {
    let digest = "abcdefghijklm234";
    let chains = [
        "TOWPATH",
        "TOWPATH-",
        "TOWPATH--FORWARD",
        "TOWPATH-FORWARD-",
        "TOWPATH-mine",
        "TOWPATH_FORWARD",
        "MY-TOWPATH-FORWARD",
        "towpath-forward",
        "TP-LINK",
        "TP-GI",
        "TP-GI-x",
    ];
    let chains = chains.map(str::to_owned).into_iter().chain([
        format!("TP-LINK-{digest}"),
        format!("TP-G-{digest}"),
        format!("TP-gi-{digest}"),
        format!("TP-G-I-{digest}"),
        format!("TOWPATH-{}", "X".repeat(21)),
        format!("TP-GI{digest}"),
        format!("TP-GI-{digest}5"),
        format!("TP-GI-{}", &digest[1..]),
        format!("TP-GI-{}", digest.to_uppercase()),
        format!("TP-GI-{}1", &digest[1..]),
    ]);
    for name in chains {
        assert_eq!(ChainName::new(&name), None, "{name}");
    }
    let sets = [
        "tp4-",
        "tp4-mine",
        "tp4-pods",
        "tp4-pods-x",
        "tp4-nodes-",
        "tp6-nodes-old",
        "tp5-nodes",
        "xtp4-nodes",
    ];
    let sets = sets.map(str::to_owned).into_iter().chain([
        format!("tp4-drops{digest}"),
        format!("tp4-mine-{}", &digest[..10]),
        format!("tp4--{digest}"),
        format!("tp4-Mine-{digest}"),
        format!("tp4-my--set-{digest}"),
        format!("tp4-elevenlongs-{digest}"),
        format!("tp5-mine-{digest}"),
        format!("tp4-nodes-{}", &digest[..10]),
        format!("tp4-pods{digest}"),
        format!("tp4-pods-{}", &digest[1..]),
        format!("tp4-pods-{digest}a"),
        format!("tp4-pods-{}", digest.replace('2', "_")),
        format!("tp4-ingress-isolated-{digest}"),
        format!("tp4-ingress-isolated-{}", &digest[..9]),
    ]);
    for name in sets {
        assert_eq!(SetName::new(&name), None, "{name}");
    }
}

#[test]
fn names_that_another_version_may_use_are_ours() {
    let digest = "abcdefghijklm234";
    let digested = ["XX", "X7", "XPI"].map(|kind| format!("TP-{kind}-{digest}"));
    let words = ["TOWPATH-FORWARD2", "TOWPATH-F", "TOWPATH-OUTPUT-7-X"].map(str::to_owned);
    for name in digested.iter().chain(&words) {
        assert!(ChainName::new(name).is_some(), "{name}");
    }
    for (family, word) in [(Family::V4, "newthing"), (Family::V6, "x"), (Family::V6, "two-words7")] {
        let name = format!("{}{word}-{digest}", set_prefix(family));
        let set = SetName::new(&name).unwrap();
        assert_eq!((set.family(), set.role()), (family, SetRole::Unknown), "{name}");
    }
}

#[test]
fn set_whose_name_is_taken_gets_another_name_of_the_same_role() {
    for family in Family::BOTH {
        for (role, _, digits) in ROLES.into_iter().filter(|(.., digits)| *digits > 0) {
            let name = set(family, role, &digest(&"x"));
            let mut taken = BTreeSet::from([name.clone()]);
            for _ in 0..3 {
                let other = instead(&name, &taken);
                assert_eq!((other.family(), other.role()), (family, role), "{other} after {digits}");
                assert!(taken.insert(other));
            }
        }
    }
}

#[test]
fn names_of_previous_versions_are_ours() {
    for name in
        ["TOWPATH-MIDSTREAM", "TOWPATH-PROBE", "TOWPATH-TRIAL", "TOWPATH-INPUT-ND", "TP-DE-aaaabbbbccccdddd"]
    {
        assert!(ChainName::new(name).is_some(), "{name}");
    }
    for (name, role) in [
        ("tp4-ingress-isolated", SetRole::Isolated(Direction::Ingress)),
        ("tp6-egress-isolated", SetRole::Isolated(Direction::Egress)),
        ("tp4-egress-isolated-m6v524qqet", SetRole::Isolated(Direction::Egress)),
        ("tp6-local-pods", SetRole::LocalPods),
        ("tp4-pods-ip5nb763xyfnao4z", SetRole::Pods),
    ] {
        assert_eq!(SetName::new(name).map(|name| name.role()), Some(role), "{name}");
    }
}

#[test]
fn each_role_has_one_name() {
    let (some, members) = (digest(&1), OrdSet::new());
    for family in Family::BOTH {
        let made = [
            drops(family),
            local_pods(family),
            known_pods(family),
            set(family, SetRole::Nodes, ""),
            all_pods(family),
            tunnel_ends(family),
            isolated(family, Direction::Ingress, &members),
            isolated(family, Direction::Egress, &members),
            pods(family, &some),
            named_ports(family, &some),
            networks(family, &some),
            excepts(family, &some),
            network_ports(family, &some),
            ports(family, &some),
        ];
        assert_eq!(made.len(), ROLES.len(), "a role without a name");
        for ((role, ..), name) in ROLES.into_iter().zip(made) {
            assert_eq!((name.family(), name.role()), (family, role), "{name}");
            assert_eq!(SetName::new(name.as_str()), Some(name));
        }
    }
}
