//! `towpath explain`: one question about a flow, its verdict, the cause of a denial, and the smallest change that would
//! allow it.

pub mod advice;
pub mod answer;
pub mod patch;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use clap::{Args, ValueEnum};
use serde::Serialize;

use self::{
    advice::{Advice, Objects},
    answer::Explanation,
};
use super::{
    Ended, QuestionArgs,
    ends::{AskedPort, End, MOST_PODS, NameError, Names, Ports, asked_port, ports},
    json,
    objects::{Queried, queried_with_services},
    print,
    terminal::{Layout, LayoutArgs},
};
use crate::{
    model::{Cluster, Endpoint, Family, Flow, ObjectKey, Protocol, Transport},
    policy::{
        RuleRef,
        budget::{Closed, OverBudget},
        evaluate, evaluate_families,
        resolve::Resolver,
    },
};

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    objects: QuestionArgs,
    /// The sender: [NAMESPACE/]POD, an IP address, or [NAMESPACE/]KIND/NAME of a workload, a Service or a node, with
    /// kubectl's short forms: deploy/web, shop/sts/db, svc/web, node/n1.
    #[arg(long, value_name = "X", env = "TOWPATH_FROM")]
    from: String,
    /// The receiver, likewise. A Service stands for the pods that it leads to, and for their ports.
    #[arg(long, value_name = "Y", env = "TOWPATH_TO")]
    to: String,
    /// The receiver's port: a number or the name of a port, alone or with /PROTOCOL. Default: every port that the
    /// receiver declares; 80 if it declares none.
    #[arg(long, value_name = "PORT[/PROTOCOL]", value_parser = asked_port, env = "TOWPATH_PORT")]
    port: Option<AskedPort>,
    /// The protocol of the port: TCP, UDP or SCTP. Default: that of the port, or TCP.
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol, env = "TOWPATH_PROTOCOL")]
    protocol: Option<Protocol>,
    /// The namespace of names that give none. Default: the one in which the name occurs; of several, that of the
    /// kubeconfig's context.
    #[arg(short, long, value_name = "NAMESPACE", env = "TOWPATH_NAMESPACE")]
    namespace: Option<String>,
    /// The output format.
    #[arg(short, long, value_enum, default_value_t = Output::Text, env = "TOWPATH_OUTPUT")]
    output: Output,
    #[command(flatten)]
    layout: LayoutArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For scripts.
    Json,
    /// Only the change that would allow it, as kubectl commands for a shell.
    Fix,
}

fn protocol(text: &str) -> Result<Protocol, String> {
    text.to_ascii_uppercase().parse().map_err(|error| format!("{error}"))
}

/// How many answers are given to one question.
const MOST_ANSWERS: usize = 40;

pub(super) fn explain(args: &ExplainArgs, verbose: bool) -> Result<(), Ended> {
    let Queried { cluster, services, namespace } = queried_with_services(&args.objects, verbose)?;
    let names = Names {
        cluster: &cluster,
        services: &services,
        namespace: args.namespace.as_deref(),
        preferred: namespace.as_deref(),
    };
    let wrong = |error: NameError| Ended::WrongUse(error.into());
    let from = names.resolve(&args.from).map_err(wrong)?;
    let to = names.resolve(&args.to).map_err(wrong)?;
    let asked = ports(&cluster, &to, args.port.as_ref(), args.protocol).map_err(wrong)?;
    let groups = groups(&cluster, &from, &asked);
    let Some(first) = groups.iter().find(|group| !group.allowed).or_else(|| groups.first()) else {
        return Err(Ended::WrongUse(anyhow::anyhow!("none of the ports that were asked for exists there")));
    };
    for note in closed_for(&cluster, [&first.flow.from, &first.flow.to]) {
        eprintln!("note: the nodes do otherwise with the default budgets: {note}");
    }
    let objects = Objects { cluster: &cluster, services: &services };
    match args.output {
        Output::Text => {
            let layout = args.layout.layout();
            print(&text(objects, &groups, [&from, &to], asked.why.as_deref(), layout))?;
        }
        Output::Json => print(&json(&Asked::new(objects, first, &groups, [&from, &to], &asked))?)?,
        Output::Fix => print(&fixes(objects, &groups))?,
    }
    if first.allowed { Ok(()) } else { Err(Ended::No) }
}

/// Flows that are decided by the same policies and rules in the same way. Only the first is answered.
struct Group {
    flow: Flow,
    allowed: bool,
    /// How many flows it stands for.
    flows: usize,
}

/// For each family and direction whether it is allowed, the policies that isolate, and the rules that allow.
type DecidedBy = Vec<(Option<Family>, [(bool, Vec<ObjectKey>, Vec<RuleRef>); 2])>;

/// The flows that are asked about, grouped by what decides them.
fn groups(cluster: &Cluster, from: &End, asked: &Ports) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut known: BTreeMap<(Transport, DecidedBy), usize> = BTreeMap::new();
    let receivers: BTreeSet<&Endpoint> = asked.asked.iter().map(|port| &port.to).collect();
    let senders = || from.endpoints.iter().take(MOST_PODS);
    // A pod of the receiver's own workload reaches itself whatever the policies say, which says nothing of the others.
    let has_others = senders().any(|sender| receivers.iter().any(|receiver| *receiver != sender));
    for receiver in &asked.asked {
        for sender in senders().filter(|sender| !has_others || **sender != receiver.to) {
            let (from, to) = (sender.clone(), receiver.to.clone());
            let flow = Flow { from, to, transport: receiver.transport, family: None };
            let place = *known.entry((flow.transport, decided_by(cluster, &flow))).or_insert(groups.len());
            if let Some(group) = groups.get_mut(place) {
                group.flows += 1;
            } else {
                let allowed = evaluate(cluster, &flow).allowed();
                groups.push(Group { flow, allowed, flows: 1 });
            }
        }
    }
    groups
}

fn decided_by(cluster: &Cluster, flow: &Flow) -> DecidedBy {
    let of_direction = |verdict: &crate::policy::DirectionVerdict| {
        (verdict.allowed(), verdict.isolated_by.clone(), verdict.allowed_by.clone())
    };
    let mut verdicts: Vec<_> =
        evaluate_families(cluster, flow).into_iter().map(|(family, one)| (Some(family), one)).collect();
    if verdicts.is_empty() {
        verdicts.push((None, evaluate(cluster, flow)));
    }
    let both = |verdict: &crate::policy::Verdict| [&verdict.egress, &verdict.ingress].map(of_direction);
    verdicts.iter().map(|(family, verdict)| (*family, both(verdict))).collect()
}

/// What is asked about, where this is not what was typed.
fn heading(ends: [&End; 2], groups: &[Group], why: Option<&str>) -> String {
    let mut text = String::new();
    let count = |end: &End| end.endpoints.len();
    for end in ends {
        let Some(title) = &end.title else { continue };
        let pods = match &end.endpoints[..] {
            [only] => only.to_string(),
            [first, ..] if count(end) > MOST_PODS => {
                format!("{} pods, of which {MOST_PODS} are asked about, such as {first}", count(end))
            }
            [first, ..] => format!("{} pods, such as {first}", count(end)),
            [] => continue,
        };
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "{title} is {pods}");
    }
    if let Some(why) = why {
        let _ = writeln!(text, "{why}");
    }
    if let [only] = groups
        && only.flows > 1
    {
        let _ = writeln!(text, "all {} flows are decided alike; this is one of them", only.flows);
    }
    text
}

fn text(
    objects: Objects<'_>,
    groups: &[Group],
    ends: [&End; 2],
    why: Option<&str>,
    layout: Layout,
) -> String {
    let heading = heading(ends, groups, why);
    let mut text = match groups {
        [only] => answer::text(objects, &only.flow, layout),
        several => {
            let mut text =
                answer::verdict_of_all(several.iter().map(|group| (group.allowed, group.flows)), layout);
            for group in several.iter().take(MOST_ANSWERS) {
                answer::write_short(&mut text, objects, &group.flow, group.flows, layout);
            }
            if several.len() > MOST_ANSWERS {
                let rest = several.iter().skip(MOST_ANSWERS);
                let denied = rest.clone().filter(|group| !group.allowed).count();
                let _ = writeln!(text, "and {} more, of which {denied} are denied", rest.count());
            }
            text.push_str(
                "\nFor the rules, and for a change that would allow it, ask for one port and one pod.\n",
            );
            text
        }
    };
    // Behind the verdict, which is the first line.
    let one = text.find('\n').map_or(text.len(), |end| end + 1);
    text.insert_str(one, &heading);
    text
}

/// The commands that would allow all denied flows of a question.
fn fixes(objects: Objects<'_>, groups: &[Group]) -> String {
    let mut text = String::new();
    for group in groups.iter().take(MOST_ANSWERS) {
        for (flow, verdict) in answer::denied(objects.cluster, &group.flow) {
            let advice = Advice::new(objects, &flow, &verdict);
            match advice.fix {
                Ok(fix) => text.push_str(&patch::script(&fix)),
                Err(none) => {
                    let _ = writeln!(text, "# {} to {}, {}: {none}", flow.from, flow.to, flow.transport);
                }
            }
        }
    }
    text
}

/// What `-o json` prints: the answer to the first flow that is denied, else to the first of all.
#[derive(Serialize)]
struct Asked {
    #[serde(flatten)]
    explanation: Explanation,
    /// What `--from` and `--to` named, if it is neither a pod nor an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    from_named: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to_named: Option<String>,
    /// Every answer, if there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    answers: Vec<Explanation>,
    /// Why these ports, if none was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    ports: Option<String>,
}

impl Asked {
    fn new(
        objects: Objects<'_>,
        first: &Group,
        groups: &[Group],
        [from, to]: [&End; 2],
        asked: &Ports,
    ) -> Self {
        let explanation = answer::json(objects, &first.flow);
        let answers = match groups {
            [_] => Vec::new(),
            several => {
                several.iter().take(MOST_ANSWERS).map(|group| answer::json(objects, &group.flow)).collect()
            }
        };
        let (from_named, to_named) = (from.title.clone(), to.title.clone());
        Self { explanation, from_named, to_named, answers, ports: asked.why.clone() }
    }
}

/// What is over budget and therefore closes one of these ends on its node.
fn closed_for(cluster: &Cluster, ends: [&Endpoint; 2]) -> BTreeSet<OverBudget> {
    let mut closed = BTreeSet::new();
    for end in ends {
        let Endpoint::Pod(key) = end else { continue };
        let Some(node) = cluster.pod(key).and_then(|pod| pod.node.clone()) else { continue };
        let resolved = Resolver::of(node, cluster).resolve(cluster);
        let Some(pod) = resolved.pods.iter().find(|pod| pod.key == *key) else { continue };
        let concerns = |over: &&OverBudget| match &over.closed {
            Closed::Policy(policy) => pod.policies.iter().any(|one| one.key == *policy),
            Closed::Namespace(namespace) => *namespace == key.namespace,
        };
        closed.extend(resolved.over_budget.iter().filter(concerns).cloned());
    }
    closed
}
