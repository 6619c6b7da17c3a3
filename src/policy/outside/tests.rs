use super::*;
use crate::model::{Change, IpBlock, LabelSelector, NetworkPolicy, ObjectKey, Pod, PolicyRule, Ports};

fn cluster(blocks: &[(&str, &[&str])], pods: &[&str]) -> Cluster {
    let block = |(cidr, excepts): &(&str, &[&str])| {
        let excepts = excepts.iter().map(|except| except.parse().unwrap());
        Peer::Block(IpBlock::new(cidr.parse().unwrap(), excepts).unwrap())
    };
    let peers = Peers::Of(blocks.iter().map(block).collect());
    let mut cluster = Cluster::new();
    cluster.apply(Change::SetPolicy(NetworkPolicy {
        key: ObjectKey::new("shop", "p"),
        subject: LabelSelector::everything(),
        ingress: Some(vec![PolicyRule { peers, ports: Ports::Any }]),
        egress: None,
        standing: Standing::Accepted,
    }));
    for (at, address) in pods.iter().enumerate() {
        let pod = Pod::new(ObjectKey::new("shop", format!("pod-{at}")));
        cluster.apply(Change::SetPod(Pod { addresses: vec![address.parse().unwrap()], ..pod }));
    }
    cluster
}

fn found(cluster: &Cluster, most: usize) -> (Vec<String>, usize) {
    let outside = Outside::of(&[cluster], most);
    let texts = outside.addresses.iter().map(|known| format!("{} {}", known.network, known.address));
    (texts.collect(), outside.omitted)
}

#[test]
fn each_network_has_an_address_in_no_smaller_one() {
    let cluster = cluster(&[("10.0.0.0/8", &["10.0.0.0/16", "10.0.0.0/24"]), ("10.1.0.0/16", &[])], &[]);
    let expected = [
        "0.0.0.0/0 0.0.0.0",
        "10.0.0.0/8 10.2.0.0",
        "10.0.0.0/16 10.0.1.0",
        "10.0.0.0/24 10.0.0.0",
        "10.1.0.0/16 10.1.0.0",
    ];
    assert_eq!(found(&cluster, 100), (expected.map(str::to_owned).to_vec(), 0));
}

#[test]
fn addresses_of_pods_are_not_outside() {
    let blocks: &[(&str, &[&str])] = &[("10.244.0.0/30", &[]), ("10.244.1.7/32", &[])];
    let cluster = cluster(blocks, &["10.244.0.0", "10.244.0.1", "10.244.1.7"]);
    let expected = ["0.0.0.0/0 0.0.0.0", "10.244.0.0/30 10.244.0.2"];
    assert_eq!(found(&cluster, 100).0, expected);
}

#[test]
fn network_that_smaller_ones_cover_has_none() {
    let blocks: &[(&str, &[&str])] =
        &[("fd00::/64", &["fd00::/65", "fd00::8000:0:0:0/65"]), ("255.255.255.255/32", &[])];
    let expected = [
        "0.0.0.0/0 0.0.0.0",
        "255.255.255.255/32 255.255.255.255",
        "::/0 ::",
        "fd00::/65 fd00::",
        "fd00::8000:0:0:0/65 fd00::8000:0:0:0",
    ];
    assert_eq!(found(&cluster(blocks, &[]), 100).0, expected);
}

#[test]
fn of_too_many_networks_the_largest_are_kept() {
    let blocks: &[(&str, &[&str])] = &[("10.0.0.0/24", &[]), ("10.1.0.0/16", &[]), ("10.2.0.0/24", &[])];
    assert_eq!(
        found(&cluster(blocks, &[]), 2),
        (vec!["0.0.0.0/0 0.0.0.0".into(), "10.1.0.0/16 10.1.0.0".into()], 2)
    );
}

#[test]
fn without_any_address_both_families_are_asked_about() {
    assert_eq!(found(&Cluster::new(), 9).0, ["0.0.0.0/0 0.0.0.0", "::/0 ::"]);
}
