//! Why the edits of a plan have their order: for each clause a change of two objects that, if the clause did not hold,
//! would let a packet through that no state of the objects allows.
//!
//! `tests/restart.rs` searches for such packets in random clusters. Cases that are rare there are built here.

#![cfg(test)]

use std::net::IpAddr;

use towpath::{
    dataplane::{Dataplane, fake::Fake},
    model::{
        Change, Cluster, Family, IpBlock, LabelSelector, Namespace, NetworkPolicy, ObjectKey, Peer, Peers,
        Pod, PodPeer, PolicyRule, Port, PortRange, Ports, Protocol, Requirement, Scope, Standing, Transport,
    },
    policy::resolve::Resolver,
    ruleset::{
        Ruleset, SetRole,
        compile::{Compiler, Options},
        observed::Observed,
        plan::{SetEdit, Step, plan},
        trace::{Packet, trace},
    },
};

const HERE: &str = "n1";
const THERE: &str = "n2";
const WEB: Transport = Transport::Port(Protocol::Tcp, 80);
const TUNNEL: Transport = Transport::Port(Protocol::Udp, 8472);

/// A node with what its kernel holds.
struct World {
    cluster: Cluster,
    resolver: Resolver,
    compiler: Compiler,
    kernel: Fake,
}

/// One sync: the plan, and what the kernel holds before it and after each of its effects.
struct Round {
    steps: Vec<Step>,
    start: Fake,
    /// What the rules would be after each change.
    states: Vec<Ruleset>,
}

/// A packet: its sender, its receiver, its transport.
type Sent<'a> = (&'a str, &'a str, Transport);

impl World {
    fn new(changes: Vec<Change>) -> Self {
        let mut world = Self {
            cluster: Cluster::new(),
            resolver: Resolver::new(HERE),
            compiler: Compiler::new(Options::default()),
            kernel: Fake::default(),
        };
        let round = world.round(changes);
        for step in &round.steps {
            world.kernel.apply(step).unwrap();
        }
        world
    }

    fn round(&mut self, changes: Vec<Change>) -> Round {
        let mut states = vec![self.kernel.ruleset().clone()];
        for change in changes {
            self.take(change);
            states.push(self.compiler.compile(&self.resolver.resolve(&self.cluster)));
        }
        self.planned(states)
    }

    /// A sync after changes that arrived as one input.
    fn together(&mut self, changes: Vec<Change>) -> Round {
        let before = self.resolver.moves();
        for change in changes {
            self.take(change);
        }
        self.resolver.join_moves(before);
        let desired = self.compiler.compile(&self.resolver.resolve(&self.cluster));
        self.planned(vec![self.kernel.ruleset().clone(), desired])
    }

    fn take(&mut self, change: Change) {
        let delta = self.cluster.apply(change).expect("each change changes something");
        self.resolver.update(&self.cluster, &delta);
    }

    fn planned(&mut self, states: Vec<Ruleset>) -> Round {
        let desired = states.last().unwrap();
        let moves = self.resolver.take_moves();
        let steps = plan(&Observed::holding(self.kernel.ruleset()), desired, &moves);
        Round { steps, start: self.kernel.clone(), states }
    }
}

impl Round {
    /// No state allows the packet, and no effect of the plan lets it through; but with the effects in the order of
    /// `wrong` one would, so the order is necessary.
    fn never_passes(&self, sent: Sent<'_>, wrong: impl Fn(&Effect) -> usize) {
        for (number, state) in self.states.iter().enumerate() {
            assert!(!passes(state, sent), "{sent:?}: the objects allow it in state {number}");
        }
        let effects = self.effects();
        let leak = first_to_pass(&self.start, &effects, sent);
        assert!(leak.is_none(), "{sent:?} leaks behind {leak:?}");
        let mut wrong_order = effects;
        wrong_order.sort_by_key(wrong);
        assert!(
            first_to_pass(&self.start, &wrong_order, sent).is_some(),
            "{sent:?} passes in no order: this shows nothing\n{wrong_order:#?}"
        );
    }

    /// The single effects of the plan, in its order.
    fn effects(&self) -> Vec<Effect> {
        let single = |step: &Step| match step {
            Step::Chains(..) => vec![Effect::Chains(step.clone())],
            Step::Sets(edits) | Step::Gc(edits) => edits.iter().cloned().map(Effect::Set).collect(),
        };
        self.steps.iter().flat_map(single).collect()
    }

    fn changes_chains(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Chains(..)))
    }
}

/// A single atomic effect.
#[derive(Clone, Debug)]
enum Effect {
    Set(SetEdit),
    Chains(Step),
}

impl Effect {
    fn adds_to(&self, is: impl Fn(SetRole) -> bool) -> bool {
        matches!(self, Self::Set(SetEdit::Add(set, _)) if is(set.role()))
    }

    fn removes_from(&self, is: impl Fn(SetRole) -> bool) -> bool {
        matches!(self, Self::Set(SetEdit::Remove(set, _)) if is(set.role()))
    }
}

fn allows(role: SetRole) -> bool {
    matches!(role, SetRole::Pods | SetRole::NamedPorts)
}

/// The effect after which the packet passes.
fn first_to_pass<'a>(start: &Fake, effects: &'a [Effect], sent: Sent<'_>) -> Option<&'a Effect> {
    let mut kernel = start.clone();
    effects.iter().find(|effect| {
        let step = match effect {
            Effect::Set(edit @ SetEdit::Destroy(_)) => Step::Gc(vec![edit.clone()]),
            Effect::Set(edit) => Step::Sets(vec![edit.clone()]),
            Effect::Chains(step) => step.clone(),
        };
        kernel.apply(&step).unwrap_or_else(|error| panic!("{step:?}: {error}"));
        passes(kernel.ruleset(), sent)
    })
}

fn passes(ruleset: &Ruleset, (from, to, transport): Sent<'_>) -> bool {
    let [from, to]: [IpAddr; 2] = [from, to].map(|text| text.parse().unwrap());
    trace(ruleset.table(Family::of(from)), &Packet::new(from, to, transport)).passed
}

fn labels(text: &str) -> towpath::model::Labels {
    text.split_whitespace().map(|label| label.split_once('=').unwrap()).collect()
}

fn pod(name: &str, node: &str, address: &str, of: &str) -> Change {
    Change::SetPod(Pod {
        node: Some(node.into()),
        addresses: vec![address.parse().unwrap()],
        labels: labels(of),
        ..Pod::new(ObjectKey::new("shop", name))
    })
}

fn namespace(of: &str) -> Change {
    Change::SetNamespace(Namespace { name: "shop".into(), labels: labels(of) })
}

fn selector(of: &str) -> LabelSelector {
    let (key, value) = of.split_once('=').unwrap();
    LabelSelector::new([Requirement::equals(key, value)])
}

/// Pods of the namespace with this label.
fn peer(of: &str) -> Peer {
    Peer::Pods(PodPeer { scope: Scope::Own("shop".into()), pods: selector(of) })
}

/// All pods of the namespaces with this label.
fn anywhere(of: &str) -> Peer {
    Peer::Pods(PodPeer { scope: Scope::Matching(selector(of)), pods: LabelSelector::everything() })
}

fn rule(peer: Peer) -> PolicyRule {
    PolicyRule { peers: Peers::Of(vec![peer]), ports: Ports::Any }
}

fn policy(name: &str, ingress: Option<Vec<PolicyRule>>, egress: Option<Vec<PolicyRule>>) -> Change {
    Change::SetPolicy(NetworkPolicy {
        key: ObjectKey::new("shop", name),
        subject: selector(&format!("app={name}")),
        ingress,
        egress,
        standing: Standing::Accepted,
    })
}

fn may_reach(name: &str, peers: impl IntoIterator<Item = Peer>) -> Change {
    policy(name, None, Some(peers.into_iter().map(rule).collect()))
}

fn lets_in(name: &str, peers: impl IntoIterator<Item = Peer>) -> Change {
    policy(name, Some(peers.into_iter().map(rule).collect()), None)
}

const A: &str = "10.0.1.1";
const B: &str = "10.0.1.2";
const FAR: &str = "10.0.2.1";

/// Two pods of this node, `a` and `b`.
fn two_pods() -> Vec<Change> {
    vec![namespace("team=old"), pod("a", HERE, A, "app=a"), pod("b", HERE, B, "app=b")]
}

#[test]
fn allow_sets_grow_after_a_change_of_chains() {
    // `a` loses the right to reach x, then another pod becomes one. The set stays, for `b`.
    let start = [
        pod("far", THERE, FAR, "tier=none"),
        may_reach("a", [peer("app=x")]),
        may_reach("b", [peer("app=x")]),
    ];
    let mut world = World::new([two_pods(), start.into()].concat());
    let round = world.round(vec![may_reach("a", [peer("app=y")]), pod("far", THERE, FAR, "app=x")]);
    assert!(round.changes_chains());
    round.never_passes((A, FAR, WEB), |effect| usize::from(!effect.adds_to(allows)));
    assert!(passes(round.states.last().unwrap(), (B, FAR, WEB)));
}

#[test]
fn allow_sets_shrink_before_a_change_of_chains() {
    // A pod stops being an x, then `a` gets the right to reach x.
    let start =
        [pod("far", THERE, FAR, "app=x"), may_reach("a", [peer("app=y")]), may_reach("b", [peer("app=x")])];
    let mut world = World::new([two_pods(), start.into()].concat());
    let round = world.round(vec![pod("far", THERE, FAR, "tier=none"), may_reach("a", [peer("app=x")])]);
    assert!(round.changes_chains());
    round.never_passes((A, FAR, WEB), |effect| usize::from(effect.removes_from(allows)));
}

#[test]
fn new_sets_are_filled_before_chains_use_them() {
    // `b` becomes isolated like `a`: the node's isolated pods become another set.
    let mut world = World::new([two_pods(), vec![may_reach("a", [])]].concat());
    let round = world.round(vec![may_reach("b", [])]);
    let is_isolated = |role| matches!(role, SetRole::Isolated(_));
    round.never_passes((A, FAR, WEB), |effect| match effect {
        Effect::Set(SetEdit::Create(..)) => 0,
        Effect::Chains(_) => 1,
        effect @ Effect::Set(_) => 2 + usize::from(effect.adds_to(is_isolated)),
    });
}

/// Whether a set is that of all pods: a pod may send tunnel packets only to these.
fn all_pods(role: SetRole) -> bool {
    role == SetRole::AllPods
}

fn block(net: &str) -> Peer {
    Peer::Block(IpBlock::new(net.parse().unwrap(), []).unwrap())
}

#[test]
fn set_of_all_pods_shrinks_before_a_change_of_chains() {
    // A pod ends, and then `a` may reach its address: but not with tunnel packets, now that no pod has it.
    let start = [pod("far", THERE, FAR, "app=x"), may_reach("a", [])];
    let mut world = World::new([two_pods(), start.into()].concat());
    let gone = Change::RemovePod(ObjectKey::new("shop", "far"));
    let round = world.round(vec![gone, may_reach("a", [block("10.0.2.1/32")])]);
    round.never_passes((A, FAR, TUNNEL), |effect| usize::from(effect.removes_from(all_pods)));
}

#[test]
fn set_of_all_pods_grows_after_a_change_of_chains() {
    let mut world = World::new([two_pods(), vec![may_reach("a", [block("10.0.2.1/32")])]].concat());
    let round = world.round(vec![may_reach("a", []), pod("far", THERE, FAR, "app=x")]);
    round.never_passes((A, FAR, TUNNEL), |effect| usize::from(!effect.adds_to(all_pods)));
}

/// `a` may reach what is red, and `b` admits what is round.
fn red_and_round() -> Vec<Change> {
    vec![may_reach("a", [peer("color=red")]), lets_in("b", [peer("shape=round")])]
}

#[test]
fn members_move_in_the_order_of_events_without_a_change_of_chains() {
    // `a` stops being round, and only then `b` becomes red.
    let mut world = World::new([a_is_round(), red_and_round()].concat());
    let round = world.round(vec![pod("a", HERE, A, "app=a"), pod("b", HERE, B, "app=b color=red")]);
    assert!(!round.changes_chains());
    round.never_passes((A, B, WEB), |effect| usize::from(!effect.adds_to(allows)));
}

fn a_is_round() -> Vec<Change> {
    vec![namespace("team=old"), pod("a", HERE, A, "app=a shape=round"), pod("b", HERE, B, "app=b")]
}

#[test]
fn pod_that_moves_twice_closes_before_it_opens() {
    // As above, and then `a` changes once more: its last place in the order does not tell about its first move any
    // more.
    let more = vec![pod("c", HERE, "10.0.1.3", "app=c"), lets_in("c", [peer("shape=square")])];
    let mut world = World::new([a_is_round(), red_and_round(), more].concat());
    let round = world.round(vec![
        pod("a", HERE, A, "app=a"),
        pod("b", HERE, B, "app=b color=red"),
        pod("a", HERE, A, "app=a shape=square"),
    ]);
    assert!(!round.changes_chains());
    round.never_passes((A, B, WEB), |effect| usize::from(!effect.adds_to(allows)));
}

#[test]
fn move_of_a_namespace_closes_before_it_opens() {
    // All its pods move at once: `a` out of what `b` admits, `b` into what `a` may reach.
    let start = vec![may_reach("a", [anywhere("team=new")]), lets_in("b", [anywhere("team=old")])];
    let mut world = World::new([two_pods(), start].concat());
    let round = world.round(vec![namespace("team=new")]);
    assert!(!round.changes_chains());
    round.never_passes((A, B, WEB), |effect| usize::from(!effect.adds_to(allows)));
}

#[test]
fn changes_of_one_input_close_before_they_open() {
    // A list after an outage has its own order: here `b` becomes red before `a` stops being round, a state that never
    // existed between the last one and this one.
    let mut world = World::new([a_is_round(), red_and_round()].concat());
    let round = world.together(vec![pod("b", HERE, B, "app=b color=red"), pod("a", HERE, A, "app=a")]);
    assert!(!round.changes_chains());
    round.never_passes((A, B, WEB), |effect| usize::from(!effect.adds_to(allows)));
}

#[test]
fn reassigned_address_is_never_in_the_sets_of_two_pods() {
    // `a` admits what is red on one port, and what is blue on another: a pod of one colour must not reach both.
    let at = |port| Ports::Of(vec![Port::Range(Protocol::Tcp, PortRange::single(port))]);
    let rules = [("color=red", 80), ("color=blue", 81)]
        .map(|(of, port)| PolicyRule { peers: Peers::Of(vec![peer(of)]), ports: at(port) });
    let start = vec![policy("a", Some(rules.into()), None), pod("old", THERE, FAR, "color=red")];
    let mut world = World::new([two_pods(), start].concat());
    let round = world
        .round(vec![Change::RemovePod(ObjectKey::new("shop", "old")), pod("new", THERE, FAR, "color=blue")]);
    let effects = round.effects();
    let place = |is: &dyn Fn(&Effect) -> bool| effects.iter().position(is).unwrap();
    let leaves = place(&|effect| effect.removes_from(allows));
    let enters = place(&|effect| effect.adds_to(allows));
    assert!(leaves < enters, "{effects:?}");
}

#[test]
fn single_moving_pod_keeps_what_both_states_allow() {
    let at = |ports: [u16; 2]| {
        Ports::Of(vec![Port::Range(Protocol::Tcp, PortRange::new(ports[0], ports[1]).unwrap())])
    };
    let rules = [("color=red", [80, 80]), ("color=blue", [80, 81])]
        .map(|(of, ports)| PolicyRule { peers: Peers::Of(vec![peer(of)]), ports: at(ports) });
    let start = vec![policy("a", Some(rules.into()), None), pod("far", THERE, FAR, "color=red")];
    let mut world = World::new([two_pods(), start].concat());
    let round = world.round(vec![pod("far", THERE, FAR, "color=blue")]);
    let effects = round.effects();
    assert_eq!(effects.len(), 2, "{effects:?}");
    for done in 0..=effects.len() {
        let mut kernel = round.start.clone();
        for effect in &effects[..done] {
            let Effect::Set(edit) = effect else { panic!("{effect:?}") };
            kernel.apply(&Step::Sets(vec![edit.clone()])).unwrap();
        }
        assert!(passes(kernel.ruleset(), (FAR, A, WEB)), "cut behind {done} edits");
    }
}

#[test]
fn chains_and_hooks_change_in_one_batch_and_unused_sets_are_destroyed_last() {
    let start = [pod("far", THERE, FAR, "app=x"), may_reach("a", [peer("app=x")])];
    let mut world = World::new([two_pods(), start.into()].concat());
    let v4_chains = |steps: &[Step]| {
        let is_v4 = |step: &&Step| matches!(step, Step::Chains(Family::V4, _));
        steps.iter().filter(is_v4).cloned().collect::<Vec<_>>()
    };
    let first = plan(&Observed::default(), world.kernel.ruleset(), &[]);
    let [Step::Chains(_, batch)] = &*v4_chains(&first) else { panic!("{first:#?}") };
    assert!(batch.write.len() > 4 && batch.hooks.len() == 2, "{batch:?}");

    let round = world.round(vec![Change::RemovePolicy(ObjectKey::new("shop", "a"))]);
    let [Step::Chains(_, batch)] = &*v4_chains(&round.steps) else { panic!("{:#?}", round.steps) };
    assert!(!batch.write.is_empty() && batch.remove.len() == 2, "{batch:?}");
    let Some((Step::Gc(destroyed), others)) = round.steps.split_last() else { panic!("{:#?}", round.steps) };
    assert!(destroyed.iter().all(|edit| matches!(edit, SetEdit::Destroy(_))) && !destroyed.is_empty());
    let destroys = |step: &Step| match step {
        Step::Sets(edits) => edits.iter().any(|edit| matches!(edit, SetEdit::Destroy(_))),
        _ => false,
    };
    assert!(!others.iter().any(destroys));
    // Any sooner, the kernel would refuse it.
    let early = round.start.clone().apply(&Step::Gc(destroyed.clone()));
    assert!(early.is_err(), "a rule still asks the set");
}
