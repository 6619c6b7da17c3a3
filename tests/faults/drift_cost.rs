//! Repairing a change by another program costs what changed, not what there is: shown by the input of the commands.

use std::{net::IpAddr, thread, time::Duration};

use towpath::{
    lab::{Probe, Transport},
    model::Family,
};

use crate::{
    reach::TIMEOUT,
    stand_in::StandIns,
    testbed::{Bed, Daemon, READY, for_both_variants},
    wait::wait_until,
    yaml_objects::{namespace, pod, policy},
};

/// How many pods of the node have a chain of their own, besides the one that is tampered with.
const OTHERS: u32 = 150;

#[test]
fn repair_writes_the_chains_hooks_and_members_that_differ_and_no_others() {
    for_both_variants(|variant| {
        let bed = Bed::new(variant, &[("shop/web", 0), ("shop/db", 0), ("shop/other", 1)]);
        bed.write("namespaces.yaml", &[namespace("shop", "")]);
        let mut pods: Vec<String> = ["web", "db", "other"]
            .map(|app| bed.manifest(&format!("shop/{app}"), &format!("app: {app}")))
            .into();
        let admits = |app: &str, more: &str| {
            let spec = format!(
                "podSelector: {{matchLabels: {{app: {app}}}}}, \
                 ingress: [{{from: [{{podSelector: {{matchLabels: {{app: web}}}}}}]{more}}}]"
            );
            policy(&format!("shop/{app}"), &spec)
        };
        let mut policies = vec![admits("db", "")];
        for number in 0..OTHERS {
            let app = format!("crowd-{number}");
            let v4 = IpAddr::from((10 << 24 | 200 << 16 | (number + 1)).to_be_bytes());
            pods.push(pod(&format!("shop/{app}"), &format!("app: {app}"), &[v4], 0, &[]));
            policies.push(admits(&app, &format!(", ports: [{{port: {}}}]", 1000 + number)));
        }
        bed.write("pods.yaml", &pods);
        bed.write("policies.yaml", &policies);
        let restore = variant.program(Family::V4, "-restore");
        let stand_ins = StandIns::new(bed.folder(), &[&restore, "ipset"]);
        let mut command = bed.command(&["--check-interval", "1"]);
        stand_ins.before_others(&mut command);
        let daemon = Daemon::start(&bed, command);
        daemon.wait_ready();
        let whole = stand_ins.input(&restore).len();
        // Commands of the check learn how rules are printed: only once.
        thread::sleep(Duration::from_millis(2_500));
        let state = || (bed.our_rules(Family::V4), crate::our_sets::our_sets(bed.node()));
        let before = state();
        let chain = chain_of(&before.0, "shop/db ingress");
        let set = before.0.lines().find(|line| line.starts_with(&format!("-A {chain} "))).unwrap();
        let set = set.split(' ').skip_while(|word| *word != "--match-set").nth(1).unwrap();
        let allowed = Family::BOTH.map(|family| {
            Probe::new(bed.end("shop/web"), bed.address("shop/db", family), Transport::Tcp(80))
        });

        // Each with what the repair may write: the chains, and the lines that belong to none, or to a set.
        let web = bed.address("shop/web", Family::V4);
        let other = bed.address("shop/other", Family::V4);
        let flush = format!("-F {chain}");
        for (what, program, change, opens) in [
            ("a flushed chain", &restore, Change::Rules(&flush), true),
            ("a rule in front", &restore, Change::Rules("-I FORWARD 1 -j ACCEPT"), true),
            ("a member too many", &"ipset".to_owned(), Change::Set(&["add", set, &other.to_string()]), true),
            ("a member too few", &"ipset".to_owned(), Change::Set(&["del", set, &web.to_string()]), false),
        ] {
            stand_ins.forget();
            let watch = opens.then(|| bed.lab.watch(&allowed, Duration::from_millis(5), TIMEOUT).unwrap());
            match change {
                Change::Rules(line) => drop(bed.iptables(Family::V4, line)),
                Change::Set(words) => drop(bed.node().succeed("ipset", words).unwrap()),
            }
            wait_until(what, READY, || !stand_ins.input(program).is_empty());
            bed.wait_until_reachable("shop/other", "shop/db", false, READY);
            bed.wait_until_reachable("shop/web", "shop/db", true, READY);
            if let Some(watch) = watch {
                let watched = watch.stop();
                assert!(watched.failures.is_empty() && watched.open > 0, "{what}: {watched:?}");
            }
            if what == "a rule in front" {
                bed.iptables(Family::V4, "-D FORWARD -j ACCEPT");
            }
            wait_until(what, READY, || state() == before);
            let input = stand_ins.input(program);
            println!("{variant:?}: {what}: {} of {whole} bytes", input.len());
            let chains: Vec<&str> = input.lines().filter_map(|line| line.strip_prefix(':')).collect();
            match change {
                Change::Rules(line) if line.starts_with("-F") => {
                    assert_eq!(chains, [format!("{chain} - [0:0]")], "{input}");
                }
                Change::Rules(_) => assert!(input.len() < 300 && input.contains("-I FORWARD 1"), "{input}"),
                Change::Set(_) => {
                    assert_eq!(input.lines().count(), 1, "{input}");
                    assert_eq!(stand_ins.input(&restore), "", "no chain");
                }
            }
            let log = daemon.log();
            assert!(
                log.contains("writes=\"differences\"") && !log.contains("writes=\"everything\""),
                "{log}"
            );
        }
        assert!(daemon.log().contains(&format!("the IPv4 chain {chain} has 0 rules")), "the chain is named");
    });
}

/// What another program does.
enum Change<'a> {
    Rules(&'a str),
    Set(&'a [&'a str]),
}

/// The group chain to which the pod's chain with this comment goes.
fn chain_of(rules: &str, comment: &str) -> String {
    let line = rules.lines().find(|line| line.contains(comment)).unwrap();
    line.rsplit(' ').next().unwrap().to_owned()
}
