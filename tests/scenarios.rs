//! One folder for each clause of the standard, in `tests/scenarios/`.
//!
//! - `cluster.yaml`: the objects.
//! - `table.txt`: what `towpath matrix` prints for them, worked out by hand. Lines with `#` come first: the arguments,
//!   then the clause. Beside the arguments of the command there is `--protocol N`, for protocols without ports.
//! - `faults.txt`: what `towpath lint` finds in `cluster.yaml`, without the name of the file.
//! - `ruleset.snap`: what the nodes of `cluster.yaml` would enforce, as text for the kernel's tools. To be read, and
//!   renewed by `INSTA_UPDATE=always cargo test --test scenarios` after a change that is meant.
//! - `step-1.yaml`, `step-2.yaml`...: every object after a change, and `table-1.txt`... the tables then.
//!
//! A folder holds a table or faults, and nothing that is not listed here.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use towpath::{
    cli::matrix,
    k8s::{
        fault::Fault,
        manifest::{Options, load_text},
    },
    model::{Change, Cluster, Family, Transport},
    policy::{Reachability, known_transports, resolve::Resolver},
    ruleset::{
        compile::{self, compile},
        render,
    },
};

/// A folder, and what is asked of it.
struct Scenario {
    folder: PathBuf,
    files: BTreeSet<String>,
}

/// A question to a folder, and what does not hold.
type Check = fn(&Scenario) -> Result<(), String>;

/// What every folder is asked, by name. A check of something that a folder does not have holds.
const CHECKS: &[(&str, Check)] = &[
    ("its files are known", files_are_known),
    ("its table", table_holds),
    ("its ruleset", ruleset_holds),
    ("its faults", faults_hold),
    ("its steps", steps_hold),
];

#[test]
fn every_scenario_holds() {
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
        return Err(format!("{file} is none of the files that a scenario may have\n"));
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

/// The same cluster with a node and an address for every pod that lacks them, where none has a node.
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

fn faults_hold(scenario: &Scenario) -> Result<(), String> {
    let expected = if scenario.has("faults.txt") { scenario.read("faults.txt")? } else { String::new() };
    let (_, found) = scenario.load("cluster.yaml")?;
    same(&expected, &found)
}

/// Steps are taken by one cluster that lives on, object by object; its table is also that of a fresh one.
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

    /// The objects of a file, and what is wrong with it, a line for each fault.
    fn load(&self, file: &str) -> Result<(Cluster, String), String> {
        let loaded = load_text(Path::new(file), &self.read(file)?, Options::default());
        let prefix = format!("{file}:");
        let text = |fault: &Fault| format!("{}\n", fault.to_string().replacen(&prefix, "", 1));
        Ok((loaded.cluster(), loaded.faults.iter().map(text).collect()))
    }

    /// The files of each step with those of its table, the beginning first.
    fn steps(&self) -> impl Iterator<Item = (String, String)> {
        let later = (1..).map(|step| (format!("step-{step}.yaml"), format!("table-{step}.txt")));
        let first = ("cluster.yaml".to_owned(), "table.txt".to_owned());
        std::iter::once(first)
            .chain(later.take_while(|(objects, table)| self.has(objects) && self.has(table)))
    }

    fn compare_table(&self, file: &str, cluster: &Cluster) -> Result<(), String> {
        let text = self.read(file)?;
        let expected: String = text.split_inclusive('\n').filter(|line| !line.starts_with('#')).collect();
        let mut comments = text.lines().take_while(|line| line.starts_with('#'));
        let arguments = comments.next().ok_or("its first line must be # and the arguments\n")?;
        if comments.next().is_none() {
            return Err("its second line must be # and the clause\n".to_owned());
        }
        let Arguments { external, mut transports } = Arguments::read(arguments)?;
        if transports.is_empty() {
            transports = known_transports(cluster);
        }
        same(&expected, &matrix::table(&Reachability::new(cluster, &external, &transports)))
    }
}

/// What the first line of a table says.
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

/// What makes the objects of `before` those of `after`: removals first.
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
