//! One folder for each clause of the standard, in `tests/scenarios/`.
//!
//! - `cluster.yaml`: the objects.
//! - `table.txt`: what `towpath matrix` prints for them, worked out by hand. The compiled rules are compared with it,
//!   and with the evaluator for what the table does not contain: other ports and protocols, the other family, and
//!   addresses at the edges of blocks. Lines with `#` come first: the arguments,
//!   then the clause. Besides the arguments of the command there is `--protocol N`, for protocols without ports.
//! - `faults.txt`: what `towpath lint` finds in `cluster.yaml`, without the name of the file.
//! - `ruleset.snap`: what the nodes of `cluster.yaml` would enforce, as text for the kernel's tools. To be read, and
//!   updated by `INSTA_UPDATE=always cargo test --test scenarios` after an intended change.
//! - `step-1.yaml`, `step-2.yaml`...: every object after a change, and `table-1.txt`... the tables then.
//!
//! A folder contains a table or faults, and nothing that is not listed here.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use towpath::{
    cli::matrix::pods,
    k8s::{
        fault::Fault,
        manifest::{Options, load_text},
    },
    model::{Change, Cluster, Endpoint, Family, Flow, Peer, Peers, Protocol, Transport},
    policy::{Reachability, evaluate, known_transports, resolve::Resolver},
    ruleset::{
        Ruleset,
        compile::{self, compile},
        render,
    },
};

#[path = "support/packet_path.rs"]
mod packet_path;

/// A folder, and its checks.
struct Scenario {
    folder: PathBuf,
    files: BTreeSet<String>,
}

/// Checks a folder; the error is what does not hold.
type Check = fn(&Scenario) -> Result<(), String>;

/// The checks of every folder, by name. A check of something that a folder does not have passes.
const CHECKS: &[(&str, Check)] = &[
    ("its files are known", files_are_known),
    ("its table", table_holds),
    ("its ruleset", ruleset_holds),
    ("its faults", faults_hold),
    ("its steps", steps_hold),
    ("its compiled rules", rules_agree_with_tables),
];

#[test]
fn all_scenarios_hold() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut folders: Vec<PathBuf> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    let mut failures = String::new();
    for folder in &folders {
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        let files = fs::read_dir(folder).unwrap().map(|entry| name(entry.unwrap())).collect();
        let scenario = Scenario { folder: folder.clone(), files };
        for (what, check) in CHECKS {
            if let Err(why) = check(&scenario) {
                let name = folder.file_name().unwrap_or_default().to_string_lossy();
                writeln!(failures, "\n{name}: {what}\n{why}").unwrap();
            }
        }
    }
    println!("{} scenarios", folders.len());
    assert!(folders.len() > 80, "scenarios are missing: there are only {}", folders.len());
    assert!(failures.is_empty(), "{failures}");
}

fn files_are_known(scenario: &Scenario) -> Result<(), String> {
    let known = |file: &str| {
        let step = |prefix, suffix| {
            let number = file.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix));
            number.is_some_and(|number: &str| number.parse::<u8>().is_ok())
        };
        ["cluster.yaml", "table.txt", "faults.txt", "ruleset.snap"].contains(&file)
            || step("step-", ".yaml")
            || step("table-", ".txt")
    };
    if let Some(file) = scenario.files.iter().find(|file| !known(file)) {
        return Err(format!("{file} is not one of the files of a scenario\n"));
    }
    if !scenario.has("cluster.yaml") || !(scenario.has("table.txt") || scenario.has("faults.txt")) {
        return Err("a scenario needs cluster.yaml, and table.txt or faults.txt\n".to_owned());
    }
    let numbered = |prefix: &str| scenario.files.iter().filter(|file| file.starts_with(prefix)).count();
    let steps = scenario.steps().count() - 1;
    if numbered("step-") != steps || numbered("table-") != steps {
        return Err("the steps are not numbered from 1 without a gap, each with its table\n".to_owned());
    }
    Ok(())
}

fn table_holds(scenario: &Scenario) -> Result<(), String> {
    if !scenario.has("table.txt") {
        return Ok(());
    }
    let (cluster, _) = scenario.load("cluster.yaml")?;
    scenario.compare_table("table.txt", &cluster)
}

/// The rulesets of all nodes are those of the snapshot.
fn ruleset_holds(scenario: &Scenario) -> Result<(), String> {
    if !scenario.has("table.txt") {
        return Ok(());
    }
    let (cluster, _) = scenario.load("cluster.yaml")?;
    let cluster = placed(&cluster);
    let nodes: BTreeSet<Arc<str>> = cluster.pods().filter_map(|pod| pod.node.clone()).collect();
    let mut text = String::new();
    for node in nodes {
        let resolved = Resolver::of(node.clone(), &cluster).resolve(&cluster);
        let ruleset = compile(&resolved, &compile::Options::default());
        writeln!(text, "# node {node}: ipset restore\n{}", render::all_sets(&ruleset))
            .map_err(|e| e.to_string())?;
        for family in Family::BOTH {
            let chains = render::all_chains(family, ruleset.table(family));
            writeln!(text, "# node {node}, {family}\n{chains}").map_err(|e| e.to_string())?;
        }
    }
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(&scenario.folder);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!("ruleset", text));
    Ok(())
}

/// The same cluster with a node and an address for every pod without them, if no pod has a node.
fn placed(cluster: &Cluster) -> Cluster {
    let mut placed = cluster.clone();
    if cluster.pods().any(|pod| pod.node.is_some()) {
        return placed;
    }
    for (number, pod) in (1..).zip(cluster.pods()) {
        let mut pod = (**pod).clone();
        pod.node = Some("node-1".into());
        if pod.addresses.is_empty() {
            pod.addresses.push(IpAddr::from([10, 244, 9, number]));
        }
        placed.apply(Change::SetPod(pod));
    }
    placed
}

/// The rules agree with the tables, and with the evaluator on similar flows.
fn rules_agree_with_tables(scenario: &Scenario) -> Result<(), String> {
    for (objects, table) in scenario.steps().filter(|(_, table)| scenario.has(table)) {
        let (cluster, _) = scenario.load(&objects)?;
        let Arguments { external, mut transports } = scenario.arguments(&table)?;
        if transports.is_empty() {
            transports = known_transports(&cluster);
        }
        for (how, cluster) in
            [("on one node", placed(&cluster)), ("on two nodes, in both families", spread(&cluster))]
        {
            let nodes = Nodes::of(&cluster);
            nodes
                .do_what_the_table_says(&external, &transports)
                .and_then(|()| nodes.do_what_is_near(&external, &transports))
                .map_err(|why| format!("{table}, {how}: {why}\n"))?;
        }
    }
    Ok(())
}

/// A cluster with the rules of its nodes.
struct Nodes<'a> {
    cluster: &'a Cluster,
    names: Vec<Arc<str>>,
    rulesets: Vec<Ruleset>,
}

impl<'a> Nodes<'a> {
    fn of(cluster: &'a Cluster) -> Self {
        let names: BTreeSet<Arc<str>> = cluster.pods().filter_map(|pod| pod.node.clone()).collect();
        let rules = |node: &Arc<str>| {
            compile(&Resolver::of(node.clone(), cluster).resolve(cluster), &compile::Options::default())
        };
        let rulesets = names.iter().map(rules).collect();
        Self { cluster, names: names.into_iter().collect(), rulesets }
    }

    fn pass(&self, flows: impl IntoIterator<Item = (IpAddr, IpAddr, Transport, bool)>) -> Result<(), String> {
        let nodes: Vec<(&str, Ruleset)> =
            self.names.iter().map(|name| &**name).zip(self.rulesets.iter().cloned()).collect();
        for (from, to, transport, allowed) in flows {
            if packet_path::passes(self.cluster, &nodes, from, to, transport) != allowed {
                let verb = if allowed { "drop" } else { "pass" };
                return Err(format!("the rules {verb} {transport} from {from} to {to}"));
            }
        }
        Ok(())
    }

    /// Compares the rules with the table of the pods, each by its addresses.
    fn do_what_the_table_says(&self, external: &[IpAddr], transports: &[Transport]) -> Result<(), String> {
        let addresses = |end: &Endpoint| match end {
            Endpoint::Address(address) => vec![*address],
            Endpoint::Pod(key) => self.cluster.pod(key).map(|pod| pod.addresses.clone()).unwrap_or_default(),
        };
        // If pods of two nodes report the same address, a name identifies the node, and the address does not.
        let is_on_one_node = |address: &IpAddr| {
            let nodes = self.cluster.claimants(*address).iter().map(|pod| &pod.node);
            nodes.collect::<BTreeSet<_>>().len() < 2
        };
        let reachability = Reachability::new(self.cluster, external, transports);
        let flows = reachability.flows().flat_map(|(from, to, transport, reach)| {
            let (from, to) = (addresses(from), addresses(to));
            Family::BOTH.into_iter().filter_map(move |family| {
                let of = |ends: &[IpAddr]| ends.iter().copied().find(|a| Family::of(*a) == family);
                let (from, to) = (of(&from)?, of(&to)?);
                (from != to && is_on_one_node(&from) && is_on_one_node(&to))
                    .then(|| (from, to, transport, reach.allowed(Some(family))))
            })
        });
        self.pass(flows)
    }

    /// Compares the rules with the evaluator, for every end that some policy may distinguish, and for transports near
    /// the named ones.
    fn do_what_is_near(&self, external: &[IpAddr], transports: &[Transport]) -> Result<(), String> {
        let cluster = self.cluster;
        let pods: BTreeSet<IpAddr> = cluster.pods().flat_map(|pod| pod.addresses.iter().copied()).collect();
        let mut ends = pods.clone();
        ends.extend(external);
        ends.extend(cluster.node_addresses());
        ends.extend([IpAddr::from([203, 0, 113, 77]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77])]);
        ends.extend(edges(cluster));
        let transports = near(transports);
        let pairs = ends.iter().flat_map(|from| ends.iter().map(move |to| (*from, *to)));
        let pairs = pairs.filter(|(from, to)| {
            Family::of(*from) == Family::of(*to) && (pods.contains(from) || pods.contains(to))
        });
        self.pass(pairs.flat_map(|(from, to)| {
            transports.iter().map(move |transport| {
                let flow = Flow {
                    from: Endpoint::Address(from),
                    to: Endpoint::Address(to),
                    transport: *transport,
                    family: None,
                };
                (from, to, *transport, evaluate(cluster, &flow).allowed())
            })
        }))
    }
}

/// The first and the last address of every block and except, and the adjacent ones.
fn edges(cluster: &Cluster) -> BTreeSet<IpAddr> {
    let mut edges = BTreeSet::new();
    let rules = cluster.policies().flat_map(|policy| [&policy.ingress, &policy.egress]).flatten().flatten();
    let peers = rules.filter_map(|rule| match &rule.peers {
        Peers::Of(peers) => Some(peers),
        Peers::Any => None,
    });
    for peer in peers.flatten() {
        let Peer::Block(block) = peer else { continue };
        for network in std::iter::once(block.cidr()).chain(block.except().iter().copied()) {
            let (first, last) = (network.network(), network.broadcast());
            edges.extend([first, last]);
            match (first, last) {
                (IpAddr::V4(first), IpAddr::V4(last)) => {
                    let beside = [u32::from(first).wrapping_sub(1), u32::from(last).wrapping_add(1)];
                    edges.extend(beside.map(|bits| IpAddr::V4(bits.into())));
                }
                (IpAddr::V6(first), IpAddr::V6(last)) => {
                    let beside = [u128::from(first).wrapping_sub(1), u128::from(last).wrapping_add(1)];
                    edges.extend(beside.map(|bits| IpAddr::V6(bits.into())));
                }
                _ => {}
            }
        }
    }
    // Addresses to which no packet is routed, or that are always dropped, are not covered by policies.
    edges.retain(|address| !address.is_multicast() && !address.is_unspecified() && !is_link_wide(*address));
    edges
}

fn is_link_wide(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// These transports, the adjacent ports, the same ports of the other protocols, and protocols without ports: ICMP in
/// both families, and GRE.
fn near(transports: &[Transport]) -> BTreeSet<Transport> {
    let mut near: BTreeSet<Transport> = transports.iter().copied().collect();
    for transport in transports {
        if let Transport::Port(protocol, port) = *transport {
            near.extend(
                [port.saturating_sub(1).max(1), port.saturating_add(1)].map(|n| Transport::Port(protocol, n)),
            );
            near.extend(Protocol::ALL.map(|protocol| Transport::Port(protocol, port)));
        }
    }
    near.extend([1, 58, 47].map(Transport::Other));
    near
}

/// The same cluster with every second pod on another node, and an address of each family for every pod with its own
/// network. Named nodes stay.
fn spread(cluster: &Cluster) -> Cluster {
    let mut apart = cluster.clone();
    let any_node = cluster.pods().any(|pod| pod.node.is_some());
    for (number, pod) in (1_u8..).zip(cluster.pods()) {
        let mut pod = (**pod).clone();
        if !any_node {
            pod.node = Some(if number % 2 == 0 { "node-2" } else { "node-1" }.into());
        }
        if pod.is_selectable() {
            let missing = [
                (Family::V4, IpAddr::from([10, 244, 9, number])),
                (Family::V6, IpAddr::from([0xfd00, 0x10, 0x244, 9, 0, 0, 0, u16::from(number)])),
            ];
            for (family, address) in missing {
                if !pod.addresses.iter().any(|address| Family::of(*address) == family) {
                    pod.addresses.push(address);
                }
            }
        }
        apart.apply(Change::SetPod(pod));
    }
    apart
}

fn faults_hold(scenario: &Scenario) -> Result<(), String> {
    let expected = if scenario.has("faults.txt") { scenario.read("faults.txt")? } else { String::new() };
    let (_, found) = scenario.load("cluster.yaml")?;
    same(&expected, &found)
}

/// One living cluster applies the steps, object by object; its table is also that of a fresh one.
fn steps_hold(scenario: &Scenario) -> Result<(), String> {
    let (mut living, _) = scenario.load("cluster.yaml")?;
    for (objects, table) in scenario.steps().skip(1) {
        let (fresh, faults) = scenario.load(&objects)?;
        same("", &faults)?;
        for change in changes(&living, &fresh) {
            living.apply(change);
        }
        for cluster in [&fresh, &living] {
            scenario.compare_table(&table, cluster).map_err(|why| format!("{table}\n{why}"))?;
        }
    }
    Ok(())
}

impl Scenario {
    fn has(&self, file: &str) -> bool {
        self.files.contains(file)
    }

    fn read(&self, file: &str) -> Result<String, String> {
        fs::read_to_string(self.folder.join(file)).map_err(|error| format!("cannot read {file}: {error}\n"))
    }

    /// The objects of a file, and its faults, one per line.
    fn load(&self, file: &str) -> Result<(Cluster, String), String> {
        let loaded = load_text(Path::new(file), &self.read(file)?, Options::default());
        let prefix = format!("{file}:");
        let text = |fault: &Fault| format!("{}\n", fault.to_string().replacen(&prefix, "", 1));
        Ok((loaded.cluster(), loaded.faults.iter().map(text).collect()))
    }

    /// The files of each step with those of its table, the first state first.
    fn steps(&self) -> impl Iterator<Item = (String, String)> {
        let later = (1..).map(|step| (format!("step-{step}.yaml"), format!("table-{step}.txt")));
        let first = ("cluster.yaml".to_owned(), "table.txt".to_owned());
        std::iter::once(first)
            .chain(later.take_while(|(objects, table)| self.has(objects) && self.has(table)))
    }

    fn arguments(&self, file: &str) -> Result<Arguments, String> {
        let text = self.read(file)?;
        let mut comments = text.lines().take_while(|line| line.starts_with('#'));
        let arguments = comments.next().ok_or("its first line must be # and the arguments\n")?;
        if comments.next().is_none() {
            return Err("its second line must be # and the clause\n".to_owned());
        }
        Arguments::read(arguments)
    }

    fn compare_table(&self, file: &str, cluster: &Cluster) -> Result<(), String> {
        let text = self.read(file)?;
        let Arguments { external, mut transports } = self.arguments(file)?;
        let expected: String = text.split_inclusive('\n').filter(|line| !line.starts_with('#')).collect();
        if transports.is_empty() {
            transports = known_transports(cluster);
        }
        same(&expected, &pods::table(&Reachability::new(cluster, &external, &transports)))
    }
}

/// The first line of a table.
#[derive(Default)]
struct Arguments {
    external: Vec<IpAddr>,
    transports: Vec<Transport>,
}

impl Arguments {
    fn read(line: &str) -> Result<Self, String> {
        let mut arguments = Self::default();
        let mut words = line.trim_start_matches('#').split_whitespace();
        while let Some(option) = words.next() {
            let value = words.next().ok_or_else(|| format!("{option} needs a value\n"))?;
            match option {
                "--port" => arguments.transports.push(value.parse().map_err(|error| format!("{error}\n"))?),
                "--protocol" => {
                    let number = value.parse().map_err(|error| format!("{value}: {error}\n"))?;
                    arguments.transports.push(Transport::Other(number));
                }
                "--external" => arguments.external.push(value.parse().map_err(|error| format!("{error}\n"))?),
                _ => return Err(format!("{option} is not known here\n")),
            }
        }
        Ok(arguments)
    }
}

/// The changes from the objects of `before` to those of `after`: removals first.
fn changes(before: &Cluster, after: &Cluster) -> Vec<Change> {
    let mut changes = Vec::new();
    for policy in before.policies().filter(|policy| after.policy(&policy.key).is_none()) {
        changes.push(Change::RemovePolicy(policy.key.clone()));
    }
    for pod in before.pods().filter(|pod| after.pod(&pod.key).is_none()) {
        changes.push(Change::RemovePod(pod.key.clone()));
    }
    for namespace in before.namespaces().filter(|namespace| after.namespace(&namespace.name).is_none()) {
        changes.push(Change::RemoveNamespace(namespace.name.clone()));
    }
    changes.extend(after.namespaces().map(|namespace| Change::SetNamespace((**namespace).clone())));
    changes.extend(after.pods().map(|pod| Change::SetPod((**pod).clone())));
    changes.extend(after.policies().map(|policy| Change::SetPolicy((**policy).clone())));
    changes
}

/// Compares line by line, and shows the lines that differ.
fn same(expected: &str, found: &str) -> Result<(), String> {
    if expected == found {
        return Ok(());
    }
    let (mut expected, mut found) = (expected.lines(), found.lines());
    let mut shown: Vec<String> = Vec::new();
    loop {
        match (expected.next(), found.next()) {
            (None, None) => return Err(shown.join("\n") + "\n"),
            (Some(one), Some(other)) if one == other => shown.push(format!("  {one}")),
            (one, other) => {
                let marked = [("-", one), ("+", other)];
                shown.extend(marked.into_iter().filter_map(|(mark, line)| Some(format!("{mark} {}", line?))));
            }
        }
    }
}
