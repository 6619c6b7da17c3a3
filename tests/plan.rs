//! The order of the edits of a plan: for each clause, a change of two objects that in another order would let a packet
//! pass that no state of the objects allows.
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
struct Sync {
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
        let sync = world.sync(changes);
        for step in &sync.steps {
            world.kernel.apply(step).unwrap();
        }
        world
    }

    fn sync(&mut self, changes: Vec<Change>) -> Sync {
        let mut states = vec![self.kernel.ruleset().clone()];
        for change in changes {
            self.take(change);
            states.push(self.compiler.compile(&self.resolver.resolve(&self.cluster)));
        }
        self.planned(states)
    }

    /// A sync after changes that arrived as one input.
    fn sync_of_one_input(&mut self, changes: Vec<Change>) -> Sync {
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

    fn planned(&mut self, states: Vec<Ruleset>) -> Sync {
        let desired = states.last().unwrap();
        let moves = self.resolver.take_moves();
        let steps = plan(&Observed::holding(self.kernel.ruleset()), desired, &moves);
        Sync { steps, start: self.kernel.clone(), states }
    }
}

impl Sync {
    /// No state allows the packet, and it passes after no effect of the plan; but it passes if the effects are sorted
    /// by `wrong`, so the order is necessary.
    fn never_passes(&self, sent: Sent<'_>, wrong: impl Fn(&Effect) -> usize) {
        for (number, state) in self.states.iter().enumerate() {
            assert!(!passes(state, sent), "{sent:?}: the objects allow it in state {number}");
        }
        let effects = self.effects();
        let leak = first_to_pass(&self.start, &effects, sent);
        assert!(leak.is_none(), "{sent:?} passes after {leak:?}");
        let mut wrong_order = effects;
        wrong_order.sort_by_key(wrong);
        assert!(
            first_to_pass(&self.start, &wrong_order, sent).is_some(),
            "{sent:?} does not pass in the wrong order either, so this case tests nothing\n{wrong_order:#?}"
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

fn may_send_to(name: &str, peers: impl IntoIterator<Item = Peer>) -> Change {
    policy(name, None, Some(peers.into_iter().map(rule).collect()))
}

fn admits(name: &str, peers: impl IntoIterator<Item = Peer>) -> Change {
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
    // `a` may no longer send to x, then another pod becomes an x. The set stays, for `b`.
    let start = [
        pod("far", THERE, FAR, "tier=none"),
        may_send_to("a", [peer("app=x")]),
        may_send_to("b", [peer("app=x")]),
    ];
    let mut world = World::new([two_pods(), start.into()].concat());
    let sync = world.sync(vec![may_send_to("a", [peer("app=y")]), pod("far", THERE, FAR, "app=x")]);
    assert!(sync.changes_chains());
    sync.never_passes((A, FAR, WEB), |effect| usize::from(!effect.adds_to(allows)));
    assert!(passes(sync.states.last().unwrap(), (B, FAR, WEB)));
}

#[test]
fn allow_sets_shrink_before_a_change_of_chains() {
    // A pod stops being an x, then `a` may send to x.
    let start = [
        pod("far", THERE, FAR, "app=x"),
        may_send_to("a", [peer("app=y")]),
        may_send_to("b", [peer("app=x")]),
    ];
    let mut world = World::new([two_pods(), start.into()].concat());
    let sync = world.sync(vec![pod("far", THERE, FAR, "tier=none"), may_send_to("a", [peer("app=x")])]);
    assert!(sync.changes_chains());
    sync.never_passes((A, FAR, WEB), |effect| usize::from(effect.removes_from(allows)));
}

#[test]
fn new_sets_are_filled_before_chains_use_them() {
    // `b` becomes isolated like `a`: the node's isolated pods become another set.
    let mut world = World::new([two_pods(), vec![may_send_to("a", [])]].concat());
    let sync = world.sync(vec![may_send_to("b", [])]);
    let is_isolated = |role| matches!(role, SetRole::Isolated(_));
    sync.never_passes((A, FAR, WEB), |effect| match effect {
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
    let start = [pod("far", THERE, FAR, "app=x"), may_send_to("a", [])];
    let mut world = World::new([two_pods(), start.into()].concat());
    let gone = Change::RemovePod(ObjectKey::new("shop", "far"));
    let sync = world.sync(vec![gone, may_send_to("a", [block("10.0.2.1/32")])]);
    sync.never_passes((A, FAR, TUNNEL), |effect| usize::from(effect.removes_from(all_pods)));
}

#[test]
fn set_of_all_pods_grows_after_a_change_of_chains() {
    let mut world = World::new([two_pods(), vec![may_send_to("a", [block("10.0.2.1/32")])]].concat());
    let sync = world.sync(vec![may_send_to("a", []), pod("far", THERE, FAR, "app=x")]);
    sync.never_passes((A, FAR, TUNNEL), |effect| usize::from(!effect.adds_to(all_pods)));
}

/// `a` may send to red pods, and `b` admits round pods.
fn red_and_round() -> Vec<Change> {
    vec![may_send_to("a", [peer("color=red")]), admits("b", [peer("shape=round")])]
}

#[test]
fn members_move_in_the_order_of_events_without_a_change_of_chains() {
    // `a` stops being round, and only then `b` becomes red.
    let mut world = World::new([a_is_round(), red_and_round()].concat());
    let sync = world.sync(vec![pod("a", HERE, A, "app=a"), pod("b", HERE, B, "app=b color=red")]);
    assert!(!sync.changes_chains());
    sync.never_passes((A, B, WEB), |effect| usize::from(!effect.adds_to(allows)));
}

fn a_is_round() -> Vec<Change> {
    vec![namespace("team=old"), pod("a", HERE, A, "app=a shape=round"), pod("b", HERE, B, "app=b")]
}

#[test]
fn pod_that_moves_twice_closes_before_it_opens() {
    // As above, and then `a` changes again: its position in the order is that of its last move, not of its first.
    let more = vec![pod("c", HERE, "10.0.1.3", "app=c"), admits("c", [peer("shape=square")])];
    let mut world = World::new([a_is_round(), red_and_round(), more].concat());
    let sync = world.sync(vec![
        pod("a", HERE, A, "app=a"),
        pod("b", HERE, B, "app=b color=red"),
        pod("a", HERE, A, "app=a shape=square"),
    ]);
    assert!(!sync.changes_chains());
    sync.never_passes((A, B, WEB), |effect| usize::from(!effect.adds_to(allows)));
}

#[test]
fn move_of_a_namespace_closes_before_it_opens() {
    // All its pods move at once: `a` is no longer admitted by `b`, and `a` may then send to `b`.
    let start = vec![may_send_to("a", [anywhere("team=new")]), admits("b", [anywhere("team=old")])];
    let mut world = World::new([two_pods(), start].concat());
    let sync = world.sync(vec![namespace("team=new")]);
    assert!(!sync.changes_chains());
    sync.never_passes((A, B, WEB), |effect| usize::from(!effect.adds_to(allows)));
}

#[test]
fn move_of_a_namespace_comes_after_the_moves_before_it() {
    // `a` stops being round, and only then the namespace gets the label of those that `a` may send to.
    let start = vec![may_send_to("a", [anywhere("team=new")]), admits("b", [peer("shape=round")])];
    let mut world = World::new([a_is_round(), start].concat());
    let sync = world.sync(vec![pod("a", HERE, A, "app=a"), namespace("team=new")]);
    assert!(!sync.changes_chains());
    sync.never_passes((A, B, WEB), |effect| usize::from(!effect.adds_to(allows)));
}

#[test]
fn shared_address_closes_before_it_opens() {
    // `a` and `c` report one address, which is in a set only if both are chosen: first only as red, then only as blue.
    let twin = pod("c", HERE, A, "app=c red=yes blue=yes");
    let start = vec![
        namespace("team=old"),
        pod("a", HERE, A, "app=a red=yes"),
        twin,
        policy("a", Some(vec![rule(peer("red=yes"))]), Some(vec![rule(peer("blue=yes"))])),
    ];
    let mut world = World::new(start);
    let sync = world.sync(vec![pod("a", HERE, A, "app=a blue=yes")]);
    assert!(!sync.changes_chains());
    sync.never_passes((A, A, WEB), |effect| usize::from(!effect.adds_to(allows)));
}

#[test]
fn changes_of_one_input_close_before_they_open() {
    // A list after an outage has its own order: here `b` becomes red before `a` stops being round, a state that never
    // existed between the last one and this one.
    let mut world = World::new([a_is_round(), red_and_round()].concat());
    let sync =
        world.sync_of_one_input(vec![pod("b", HERE, B, "app=b color=red"), pod("a", HERE, A, "app=a")]);
    assert!(!sync.changes_chains());
    sync.never_passes((A, B, WEB), |effect| usize::from(!effect.adds_to(allows)));
}

#[test]
fn reassigned_address_is_never_in_the_sets_of_two_pods() {
    // `a` admits red pods on one port, and blue pods on another: a pod of one colour must not reach both.
    let at = |port| Ports::Of(vec![Port::Range(Protocol::Tcp, PortRange::single(port))]);
    let rules = [("color=red", 80), ("color=blue", 81)]
        .map(|(of, port)| PolicyRule { peers: Peers::Of(vec![peer(of)]), ports: at(port) });
    let start = vec![policy("a", Some(rules.into()), None), pod("old", THERE, FAR, "color=red")];
    let mut world = World::new([two_pods(), start].concat());
    let sync = world
        .sync(vec![Change::RemovePod(ObjectKey::new("shop", "old")), pod("new", THERE, FAR, "color=blue")]);
    let effects = sync.effects();
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
    let sync = world.sync(vec![pod("far", THERE, FAR, "color=blue")]);
    let effects = sync.effects();
    assert_eq!(effects.len(), 2, "{effects:?}");
    for done in 0..=effects.len() {
        let mut kernel = sync.start.clone();
        for effect in &effects[..done] {
            let Effect::Set(edit) = effect else { panic!("{effect:?}") };
            kernel.apply(&Step::Sets(vec![edit.clone()])).unwrap();
        }
        assert!(passes(kernel.ruleset(), (FAR, A, WEB)), "dropped after {done} edits");
    }
}

#[test]
fn chains_and_hooks_change_in_one_batch_and_unused_sets_are_destroyed_last() {
    let start = [pod("far", THERE, FAR, "app=x"), may_send_to("a", [peer("app=x")])];
    let mut world = World::new([two_pods(), start.into()].concat());
    let v4_chains = |steps: &[Step]| {
        let is_v4 = |step: &&Step| matches!(step, Step::Chains(Family::V4, _));
        steps.iter().filter(is_v4).cloned().collect::<Vec<_>>()
    };
    let first = plan(&Observed::default(), world.kernel.ruleset(), &[]);
    let [Step::Chains(_, batch)] = &*v4_chains(&first) else { panic!("{first:#?}") };
    assert!(batch.write.len() > 4 && batch.hooks.len() == 2, "{batch:?}");

    let sync = world.sync(vec![Change::RemovePolicy(ObjectKey::new("shop", "a"))]);
    let [Step::Chains(_, batch)] = &*v4_chains(&sync.steps) else { panic!("{:#?}", sync.steps) };
    assert!(!batch.write.is_empty() && batch.remove.len() == 2, "{batch:?}");
    let Some((Step::Gc(destroyed), others)) = sync.steps.split_last() else { panic!("{:#?}", sync.steps) };
    assert!(destroyed.iter().all(|edit| matches!(edit, SetEdit::Destroy(_))) && !destroyed.is_empty());
    let destroys = |step: &Step| match step {
        Step::Sets(edits) => edits.iter().any(|edit| matches!(edit, SetEdit::Destroy(_))),
        _ => false,
    };
    assert!(!others.iter().any(destroys));
    // Earlier, the kernel would refuse it.
    let early = sync.start.clone().apply(&Step::Gc(destroyed.clone()));
    assert!(early.is_err(), "a rule still uses the set");
}
