//! The answer for one flow, as text and as JSON.

use std::fmt::{self, Write as _};

use serde::Serialize;

use super::{
    advice::{Advice, Objects, Told},
    patch::{self, FixExplanation},
};
use crate::cli::{
    terminal::{Layout, Paint, Printable, wrapped},
    words::{ByFamily, Word, by_family, port_and_protocol},
};
use crate::{
    model::{
        Cluster, Direction, Family, Flow, NetworkPolicy, ObjectKey, Peer, Peers, PodPeer, PolicyRule, Port,
        Ports, Scope, Standing,
    },
    policy::{
        DirectionVerdict, Verdict, cause::Cause, evaluate, evaluate_families, fix::Fix, near_miss::Miss,
    },
};

/// The verdict in words: a line for the flow; the cause, the change that would allow it, and notes; then for each
/// direction its reason and every rule that was evaluated.
///
/// If the families differ, one such text for each.
#[must_use]
pub(in crate::cli) fn text(objects: Objects<'_>, flow: &Flow, layout: Layout) -> String {
    let verdicts = evaluate_families(objects.cluster, flow);
    let mut text = String::new();
    if differing(&verdicts) {
        for (family, verdict) in &verdicts {
            if !text.is_empty() {
                text.push('\n');
            }
            write_verdict(&mut text, objects, flow, Some(*family), verdict, layout);
        }
    } else {
        write_verdict(&mut text, objects, flow, None, &evaluate(objects.cluster, flow), layout);
    }
    text
}

/// The flow in each family in which it is denied, if the families differ; else as it is, if it is denied.
#[must_use]
pub fn denied(cluster: &Cluster, flow: &Flow) -> Vec<(Flow, Verdict)> {
    let verdicts = evaluate_families(cluster, flow);
    let mut flows: Vec<(Flow, Verdict)> = if differing(&verdicts) {
        let of_family = |(family, verdict)| (Flow { family: Some(family), ..flow.clone() }, verdict);
        verdicts.into_iter().map(of_family).collect()
    } else {
        vec![(flow.clone(), evaluate(cluster, flow))]
    };
    flows.retain(|(_, verdict)| !verdict.allowed());
    flows
}

/// One line for several answers, each of which is about some flows: whether all of them pass.
pub(super) fn verdict_of_all(answers: impl Iterator<Item = (bool, usize)> + Clone, layout: Layout) -> String {
    let all: usize = answers.clone().map(|(_, flows)| flows).sum();
    let denied: usize = answers.filter(|(allowed, _)| !allowed).map(|(_, flows)| flows).sum();
    match denied {
        0 => format!("{}: all {all} flows\n", colored(true, layout)),
        denied if denied == all => format!("{}: all {all} flows\n", colored(false, layout)),
        denied => format!("{}: {denied} of {all} flows\n", colored(false, layout)),
    }
}

/// The answer in few lines, for one of several flows.
pub(super) fn write_short(
    text: &mut String,
    objects: Objects<'_>,
    flow: &Flow,
    flows: usize,
    layout: Layout,
) {
    let Flow { from, to, transport, .. } = flow;
    let allowed = evaluate(objects.cluster, flow).allowed();
    let alike = if flows > 1 { format!(" (and {} flows alike)", flows - 1) } else { String::new() };
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(text, "{}: {from} to {to}, {transport}{alike}", colored(allowed, layout));
    for (flow, verdict) in denied(objects.cluster, flow) {
        let over = flow.family.map_or_else(String::new, |family| format!("over {family}: "));
        for cause in Advice::new(objects, &flow, &verdict).causes {
            write_wrapped(text, &format!("  {over}{cause}"), layout, 4);
        }
    }
}

fn differing(verdicts: &[(Family, Verdict)]) -> bool {
    verdicts.windows(2).any(|pair| matches!(pair, [(_, a), (_, b)] if a.allowed() != b.allowed()))
}

fn write_verdict(
    text: &mut String,
    objects: Objects<'_>,
    flow: &Flow,
    family: Option<Family>,
    verdict: &Verdict,
    layout: Layout,
) {
    let Flow { from, to, transport, .. } = flow;
    let over = family.map_or_else(String::new, |family| format!(" over {family}"));
    let _ = writeln!(text, "{}: {from} to {to}, {transport}{over}", colored(verdict.allowed(), layout));
    write_advice(text, &Advice::new(objects, &Flow { family, ..flow.clone() }, verdict), layout);
    for direction in Direction::BOTH {
        write_direction(text, objects.cluster, direction, verdict.of(direction));
    }
}

fn write_advice(text: &mut String, Advice { causes, fix, notes }: &Advice, layout: Layout) {
    if !causes.is_empty() {
        text.push('\n');
    }
    for cause in causes {
        write_wrapped(text, &format!("cause: {cause}"), layout, 2);
    }
    match fix {
        Ok(fix) => write_fix(text, fix),
        Err(none) if !causes.is_empty() => {
            let _ = writeln!(text, "fix: {none}");
        }
        Err(_) => {}
    }
    for Told { text: sentences, fix, .. } in notes {
        text.push('\n');
        write_wrapped(text, &format!("note: {sentences}"), layout, 2);
        if let Some(fix) = fix {
            write_fix(text, fix);
        }
    }
}

fn write_fix(text: &mut String, fix: &Fix) {
    for step in &fix.steps {
        let _ = writeln!(text, "fix: {}", patch::summary(step));
    }
    let _ = write!(text, "\n{}", patch::script(fix));
}

/// A paragraph, in lines that fit.
fn write_wrapped(text: &mut String, paragraph: &str, layout: Layout, indent: usize) {
    for line in wrapped(paragraph, layout.width, indent) {
        let _ = writeln!(text, "{line}");
    }
}

/// `allowed` in green, `denied` in red, where colours are shown.
fn colored(allowed: bool, layout: Layout) -> String {
    layout.paint(if allowed { Paint::Green } else { Paint::Red }, word(allowed))
}

fn write_direction(text: &mut String, cluster: &Cluster, direction: Direction, verdict: &DirectionVerdict) {
    let _ = writeln!(text, "\n{direction} {}: {}", word(verdict.allowed()), printable(&verdict.reason));
    let policies = verdict.isolated_by.iter().filter_map(|key| cluster.policy(key));
    for policy in policies {
        write_policy(text, policy, direction, verdict);
    }
}

fn write_policy(text: &mut String, policy: &NetworkPolicy, direction: Direction, verdict: &DirectionVerdict) {
    let rules = policy.rules(direction).unwrap_or_default();
    let comment = match policy.standing {
        Standing::Refused => " could not be read, and allows nothing",
        Standing::TooLarge(_) => " is too large to be kept, and allows nothing",
        Standing::Accepted if rules.is_empty() => " has no rule, and allows nothing",
        Standing::Accepted => "",
    };
    let _ = writeln!(text, "  {}{comment}", printable(&policy.key));
    if policy.standing == Standing::Refused {
        return;
    }
    let mut others = 0;
    for (index, rule) in rules.iter().enumerate() {
        let allows = verdict.allowed_by.iter().any(|by| by.policy == policy.key && by.rule == index);
        let mark = if allows { "allows" } else { "does not match" };
        others += usize::from(!allows);
        if !allows && others > OTHER_RULES {
            continue;
        }
        let _ = writeln!(text, "    rule {index} {mark}: {}", printable(&RuleText(direction, rule)));
    }
    if let Some(more @ 1..) = others.checked_sub(OTHER_RULES) {
        let _ = writeln!(text, "    and {more} more that do not match");
    }
}

/// How many rules that do not match are shown of each policy. It may have tens of thousands.
const OTHER_RULES: usize = 100;

/// How many characters of a rule are shown. A block may have tens of thousands of excepts.
const CHARACTERS: usize = 2000;

/// A text for a terminal, cut if it is long.
fn printable(text: &impl fmt::Display) -> String {
    let text = text.to_string();
    match text.char_indices().nth(CHARACTERS) {
        Some((end, _)) => format!("{}...", Printable(text.get(..end).unwrap_or_default())),
        None => Printable(&text).to_string(),
    }
}

const fn word(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "denied" }
}

/// A rule in words: `from pods app=api in shop, on 5432/TCP`.
struct RuleText<'a>(Direction, &'a PolicyRule);

impl fmt::Display for RuleText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(direction, PolicyRule { peers, ports }) = self;
        f.write_str(match direction {
            Direction::Ingress => "from ",
            Direction::Egress => "to ",
        })?;
        match peers {
            Peers::Any => f.write_str("everybody")?,
            Peers::Of(peers) => alternatives(f, "nobody", peers.iter().map(peer_text))?,
        }
        f.write_str(", on ")?;
        match ports {
            Ports::Any => f.write_str("every port and protocol"),
            Ports::Of(ports) => alternatives(f, "no port", ports.iter().map(port_text)),
        }
    }
}

fn alternatives(
    f: &mut fmt::Formatter<'_>,
    none: &str,
    texts: impl ExactSizeIterator<Item = String>,
) -> fmt::Result {
    if texts.len() == 0 {
        return f.write_str(none);
    }
    for (at, text) in texts.enumerate() {
        write!(f, "{}{text}", if at == 0 { "" } else { " or " })?;
    }
    Ok(())
}

fn peer_text(peer: &Peer) -> String {
    let (scope, pods) = match peer {
        Peer::Block(block) => return block.to_string(),
        Peer::Pods(PodPeer { scope, pods }) => (scope, pods),
    };
    let pods = if pods.is_everything() { "all pods".to_owned() } else { format!("pods {pods}") };
    match scope {
        Scope::Own(namespace) => format!("{pods} in {namespace}"),
        Scope::Matching(selector) if selector.is_everything() => format!("{pods} in all namespaces"),
        Scope::Matching(selector) => format!("{pods} in namespaces {selector}"),
    }
}

fn port_text(port: &Port) -> String {
    match port {
        Port::All(protocol) => format!("every {protocol} port"),
        Port::Range(protocol, range) => format!("{range}/{protocol}"),
        Port::Named(protocol, name) => format!("{name}/{protocol}"),
    }
}

/// What `-o json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Whether it passes, in the first family of the receiver that the sender has too.
    pub verdict: Word,
    /// The sender: `ns/pod` or `ip:ADDRESS`.
    pub from: String,
    /// The receiver, likewise.
    pub to: String,
    /// The receiver's port; null for a protocol without ports.
    pub port: Option<u16>,
    /// TCP, UDP or SCTP; else the IP protocol number.
    pub protocol: String,
    /// What the sender's policies say.
    pub egress: DirectionExplanation,
    /// What the receiver's policies say.
    pub ingress: DirectionExplanation,
    /// The verdict of each family, if they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub families: Option<ByFamily>,
    /// Why it is denied; the first of the directions that deny it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<CauseExplanation>,
    /// Both, if both directions deny it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<CauseExplanation>,
    /// The smallest change that would allow it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<FixExplanation>,
    /// Why there is no such change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_fix: Option<String>,
    /// What else is worth knowing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<NoteExplanation>,
}

/// Why a direction denies a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CauseExplanation {
    /// The kind of cause: see [`CauseCode`](crate::policy::cause::CauseCode).
    pub code: &'static str,
    /// `egress` or `ingress`.
    pub direction: String,
    /// The policy that comes nearest to allowing it: `ns/name`.
    pub policy: String,
    /// Its rule that does, if it has one: an index of its `ingress` or `egress`, counted from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
    /// The cause in sentences.
    pub text: String,
}

/// Something else that is worth knowing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NoteExplanation {
    /// The kind of note.
    pub code: &'static str,
    /// The sentences.
    pub text: String,
    /// The change that would help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<FixExplanation>,
}

/// One direction of an [`Explanation`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DirectionExplanation {
    /// Whether a policy selects this end in this direction.
    pub isolated: bool,
    /// Whether this end lets it pass.
    pub verdict: Word,
    /// The policies that select this end: `ns/name`.
    pub isolated_by: Vec<String>,
    /// Every rule of theirs that allows it.
    pub allowed_by: Vec<RuleExplanation>,
    /// What decided, as a sentence without its full stop.
    pub reason: String,
}

/// A rule that allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleExplanation {
    /// Its policy: `ns/name`.
    pub policy: String,
    /// Which entry of its `ingress` or `egress`, counted from 0.
    pub rule: usize,
}

/// The same for scripts.
#[must_use]
pub fn json(objects: Objects<'_>, flow: &Flow) -> Explanation {
    let cluster = objects.cluster;
    let verdict = evaluate(cluster, flow);
    let families = evaluate_families(cluster, flow);
    // Of the verdict that is shown; if that allows the flow, of the other family.
    let of_denied = denied(cluster, flow).into_iter().next();
    let (asked, of_asked) = match (&of_denied, verdict.allowed()) {
        (Some((flow, verdict)), true) => (flow, verdict),
        (Some((flow, _)), false) => (flow, &verdict),
        (None, _) => (flow, &verdict),
    };
    let Advice { causes, fix, notes } = Advice::new(objects, asked, of_asked);
    let (fix, no_fix) = match fix {
        Ok(fix) => (Some(patch::explanation(&fix)), None),
        Err(none) => (None, (!causes.is_empty()).then(|| none.to_string())),
    };
    let note =
        |Told { code, text, fix }| NoteExplanation { code, text, fix: fix.as_ref().map(patch::explanation) };
    let (port, protocol) = port_and_protocol(flow.transport);
    Explanation {
        verdict: Word::of(verdict.allowed()),
        from: flow.from.to_string(),
        to: flow.to.to_string(),
        port,
        protocol,
        egress: direction_json(&verdict.egress),
        ingress: direction_json(&verdict.ingress),
        cause: causes.first().map(cause_json),
        causes: if causes.len() > 1 { causes.iter().map(cause_json).collect() } else { Vec::new() },
        fix,
        no_fix,
        notes: notes.into_iter().map(note).collect(),
        families: differing(&families)
            .then(|| by_family(families.iter().map(|(family, verdict)| (*family, verdict.allowed())))),
    }
}

fn cause_json(cause: &Cause) -> CauseExplanation {
    CauseExplanation {
        code: cause.code.name(),
        direction: cause.miss.direction.to_string(),
        policy: cause.miss.policy.to_string(),
        rule: match &cause.miss.miss {
            Miss::Rule(rule) => Some(rule.rule),
            _ => None,
        },
        text: cause.to_string(),
    }
}

fn direction_json(verdict: &DirectionVerdict) -> DirectionExplanation {
    let allowed_by = verdict.allowed_by.iter();
    DirectionExplanation {
        isolated: verdict.isolated(),
        verdict: Word::of(verdict.allowed()),
        isolated_by: verdict.isolated_by.iter().map(ObjectKey::to_string).collect(),
        allowed_by: allowed_by
            .map(|by| RuleExplanation { policy: by.policy.to_string(), rule: by.rule })
            .collect(),
        reason: verdict.reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Change, Endpoint, IpBlock, LabelSelector, Labels, Namespace, Pod, PortRange, Protocol, Requirement,
    };

    fn app(name: &str) -> LabelSelector {
        LabelSelector::new([Requirement::equals("app", name)])
    }

    fn policy(name: &str, ingress: Vec<PolicyRule>) -> NetworkPolicy {
        NetworkPolicy {
            key: ObjectKey::new("shop", name),
            subject: app("db"),
            ingress: Some(ingress),
            egress: None,
            standing: Standing::Accepted,
        }
    }

    /// `web` and `db`, both with both families, and these policies.
    fn cluster(policies: impl IntoIterator<Item = NetworkPolicy>) -> Cluster {
        let mut cluster = Cluster::new();
        cluster.apply(Change::SetNamespace(Namespace { name: "shop".into(), labels: Labels::default() }));
        for (at, name) in ["web", "db"].into_iter().enumerate() {
            let labels: Labels = [("app", name)].into_iter().collect();
            let addresses = [format!("10.0.0.{at}"), format!("fd00::{at}")];
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            cluster.apply(Change::SetPod(Pod {
                labels,
                addresses,
                ..Pod::new(ObjectKey::new("shop", name))
            }));
        }
        for policy in policies {
            cluster.apply(Change::SetPolicy(policy));
        }
        cluster
    }

    fn text(cluster: &Cluster, flow: &Flow) -> String {
        super::text(Objects { cluster, services: &[] }, flow, Layout { width: 400, color: false })
    }

    fn json(cluster: &Cluster, flow: &Flow) -> Explanation {
        super::json(Objects { cluster, services: &[] }, flow)
    }

    fn web_to_db() -> Flow {
        let end = |name| Endpoint::Pod(ObjectKey::new("shop", name));
        Flow { from: end("web"), to: end("db"), transport: "5432".parse().unwrap(), family: None }
    }

    fn rule(peer: Peer, ports: Ports) -> PolicyRule {
        PolicyRule { peers: Peers::Of(vec![peer]), ports }
    }

    fn pods(scope: Scope, pods: LabelSelector) -> Peer {
        Peer::Pods(PodPeer { scope, pods })
    }

    #[test]
    fn text_names_every_policy_and_the_result_of_each_rule() {
        let postgres = || Ports::Of(vec![Port::Range(Protocol::Tcp, PortRange::single(5432))]);
        let ours = || Scope::Own("shop".into());
        let from_api = rule(pods(ours(), app("api")), postgres());
        let everywhere = Scope::Matching(LabelSelector::everything());
        let from_web = rule(pods(everywhere, app("web")), postgres());
        let cluster = cluster([policy("closed", vec![]), policy("open", vec![from_api, from_web])]);
        let expected = "\
allowed: shop/web to shop/db, 5432/TCP

egress allowed: no policy selects shop/web for egress

ingress allowed: shop/open rule 1 allows it
  shop/closed has no rule, and allows nothing
  shop/open
    rule 0 does not match: from pods app=api in shop, on 5432/TCP
    rule 1 allows: from pods app=web in all namespaces, on 5432/TCP
";
        assert_eq!(text(&cluster, &web_to_db()), expected);
    }

    #[test]
    fn text_names_the_policy_that_could_not_be_read() {
        let refused = NetworkPolicy { standing: Standing::Refused, ..policy("broken", vec![]) };
        let text = text(&cluster([refused]), &web_to_db());
        assert!(text.starts_with("denied: shop/web to shop/db, 5432/TCP\n"));
        assert!(text.contains("  shop/broken could not be read, and allows nothing\n"));
    }

    #[test]
    fn long_policies_are_shown_in_part_and_control_characters_are_escaped() {
        let rules = (0..150).map(|_| rule(pods(Scope::Own("shop".into()), app("a\u{1b}[2J")), Ports::Any));
        let excepts = (0..5000_u32).map(|n| format!("10.{}.{}.0/24", n / 250 + 1, n % 250).parse().unwrap());
        let block = IpBlock::new("10.0.0.0/8".parse().unwrap(), excepts).unwrap();
        let open = PolicyRule { peers: Peers::Any, ports: Ports::Any };
        let rules = rules.chain([rule(Peer::Block(block), Ports::Any), open]);
        let text = text(&cluster([policy("long", rules.collect())]), &web_to_db());
        assert!(!text.contains('\u{1b}') && text.contains("a\\u{1b}[2J"), "{text}");
        assert!(text.contains("    rule 151 allows: from everybody, on every port and protocol\n"), "{text}");
        assert!(text.contains("    rule 150 allows: from 10.0.0.0/8 except 10.1.0.0/24"), "{text}");
        assert!(text.contains("    and 50 more that do not match\n"), "{text}");
        assert!(text.len() < 20_000, "{}", text.len());
    }

    #[test]
    fn differing_verdicts_of_families_are_shown_separately() {
        let block = IpBlock::new("10.0.0.0/8".parse().unwrap(), ["10.9.0.0/16".parse().unwrap()]).unwrap();
        let cluster = cluster([policy("v4", vec![rule(Peer::Block(block), Ports::Any)])]);
        let text = text(&cluster, &web_to_db());
        assert!(text.starts_with("allowed: shop/web to shop/db, 5432/TCP over IPv4\n"));
        assert!(
            text.contains("rule 0 allows: from 10.0.0.0/8 except 10.9.0.0/16, on every port and protocol\n")
        );
        assert!(text.contains("\ndenied: shop/web to shop/db, 5432/TCP over IPv6\n"));
        let families = json(&cluster, &web_to_db()).families.unwrap();
        assert_eq!(families, by_family([(Family::V4, true), (Family::V6, false)]));
    }

    #[test]
    fn rules_are_formatted_as_sentences() {
        let tenants = LabelSelector::new([Requirement::equals("team", "a")]);
        let ports = vec![Port::All(Protocol::Udp), Port::Named(Protocol::Tcp, "http".into())];
        let some = rule(pods(Scope::Matching(tenants), LabelSelector::everything()), Ports::Of(ports));
        assert_eq!(
            RuleText(Direction::Egress, &some).to_string(),
            "to all pods in namespaces team=a, on every UDP port or http/TCP"
        );
        let all = PolicyRule { peers: Peers::Any, ports: Ports::Any };
        assert_eq!(
            RuleText(Direction::Ingress, &all).to_string(),
            "from everybody, on every port and protocol"
        );
        let none = PolicyRule { peers: Peers::Of(vec![]), ports: Ports::Of(vec![]) };
        assert_eq!(RuleText(Direction::Ingress, &none).to_string(), "from nobody, on no port");
    }

    #[test]
    fn json_has_the_documented_fields() {
        let all = PolicyRule { peers: Peers::Any, ports: Ports::Any };
        let cluster = cluster([policy("closed", vec![]), policy("open", vec![all])]);
        let value = serde_json::to_value(json(&cluster, &web_to_db())).unwrap();
        let expected = serde_json::json!({
            "verdict": "allow", "from": "shop/web", "to": "shop/db", "port": 5432, "protocol": "TCP",
            "egress": {
                "isolated": false, "verdict": "allow", "isolated_by": [], "allowed_by": [],
                "reason": "no policy selects shop/web for egress",
            },
            "ingress": {
                "isolated": true, "verdict": "allow", "isolated_by": ["shop/closed", "shop/open"],
                "allowed_by": [{"policy": "shop/open", "rule": 0}],
                "reason": "shop/open rule 0 allows it",
            },
            "notes": [{
                "code": "empty_rule",
                "text": "shop/open rule 0 is empty (`ingress: [{}]`), and so allows everything.",
            }],
        });
        assert_eq!(value, expected);
    }
}
