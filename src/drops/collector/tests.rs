use super::*;
use crate::{
    drops::{
        record::{End, Record},
        tally::Tally,
    },
    policy::members::Member,
};

fn address(last: u16) -> IpAddr {
    let [high, low] = last.to_be_bytes();
    [10, 244, high, low].into()
}

/// TCP from one address to another.
fn flow(from: IpAddr, to: IpAddr, port: u16) -> Dropped {
    let packet = Packet {
        source: from,
        destination: to,
        protocol: Some(6),
        port: Some(port),
        icmp: None,
        is_mid_connection: false,
        is_later_fragment: false,
    };
    Dropped { prefix: LogPrefix::UnknownPod, packet: Some(packet) }
}

/// A collector that knows `pods` pods, at `address(0)` and those after it.
fn collector(pods: u16) -> Collector {
    let v4 = (0..pods).map(|last| Member::Address(address(last))).collect();
    let mut collector = Collector::default();
    collector.set_pods(Members { v4, v6: imbl::OrdSet::new() });
    collector
}

fn take(collector: &mut Collector, dropped: Dropped, now: Instant) {
    collector.take_in(dropped, Some(40_000), now, SystemTime::now());
}

#[test]
fn repeated_packets_of_a_flow_are_one_entry_until_its_minute_ends() {
    let (mut collector, now) = (collector(2), Instant::now());
    let one = flow(address(0), address(1), 80);
    for _ in 0..12 {
        take(&mut collector, one.clone(), now);
    }
    let waiting = collector.next(10);
    assert_eq!((waiting.len(), waiting[0].count), (1, 12));
    collector.told(&waiting[0], 7);
    assert_eq!(collector.updates(now), [], "nothing new");
    take(&mut collector, one.clone(), now);
    let update = collector.updates(now);
    assert_eq!((update.len(), update[0].id, update[0].count, update[0].is_final), (1, 7, 13, false));
    let end = collector.updates(now + WINDOW);
    assert_eq!((end.len(), end[0].count, end[0].is_final), (1, 13, true));
    take(&mut collector, one, now + WINDOW);
    assert_eq!(collector.next(10).len(), 1, "another record");
}

#[test]
fn those_who_wait_are_taken_in_turns() {
    let (mut collector, now) = (collector(3), Instant::now());
    for port in 1..=50 {
        take(&mut collector, flow(address(0), address(2), port), now);
    }
    take(&mut collector, flow(address(1), address(2), 80), now);
    let senders: Vec<IpAddr> =
        collector.next(3).iter().map(|waiting| waiting.dropped.packet.unwrap().source).collect();
    assert_eq!(senders, [address(0), address(1), address(0)]);
}

#[test]
fn pod_with_many_ports_and_receivers_leaves_room_for_others() {
    let (mut collector, now) = (collector(1000), Instant::now());
    for port in 1..=10_000 {
        take(&mut collector, flow(address(0), address(port % 900 + 1), port), now);
    }
    assert_eq!(collector.flows.len(), OF_A_SENDER);
    assert_eq!(collector.take_untold(), [(Untold::Flows, 10_000 - OF_A_SENDER as u64)].into());
    take(&mut collector, flow(address(1), address(2), 80), now);
    assert!(collector.flows.contains_key(&flow(address(1), address(2), 80)));
}

#[test]
fn forged_addresses_from_outside_are_one_sender_for_each_receiver() {
    let (mut collector, now) = (collector(2), Instant::now());
    for last in 0..5000_u16 {
        let [high, low] = last.to_be_bytes();
        take(&mut collector, flow([198, 51, high, low].into(), address(0), 80), now);
    }
    assert_eq!(collector.flows.len(), OF_A_SENDER);
    // Another receiver, and a pod that sends to the same one.
    take(&mut collector, flow([198, 51, 100, 1].into(), address(1), 80), now);
    take(&mut collector, flow(address(1), address(0), 80), now);
    assert_eq!(collector.flows.len(), OF_A_SENDER + 2);
}

#[test]
fn when_full_those_with_most_flows_lose_their_oldest() {
    let (mut collector, now) = (collector(1000), Instant::now());
    let heavy = u16::try_from(IN_ALL / OF_A_SENDER).unwrap();
    for sender in 0..heavy {
        for port in 1..=u16::try_from(OF_A_SENDER).unwrap() {
            take(&mut collector, flow(address(sender), address(999), port), now);
        }
    }
    assert_eq!(collector.flows.len(), IN_ALL);
    for sender in heavy..heavy + 100 {
        take(&mut collector, flow(address(sender), address(999), 80), now);
    }
    assert_eq!(collector.flows.len(), IN_ALL);
    assert!((heavy..heavy + 100).all(|sender| collector.flows.contains_key(&flow(
        address(sender),
        address(999),
        80
    ))));
    assert_eq!(collector.take_untold(), [(Untold::Late, 100)].into(), "what had to go was counted");
    assert!(collector.by_count.len() == collector.senders.len());
    // Once all are gone, nothing is left of them.
    collector.updates(now + WINDOW);
    assert!(collector.flows.is_empty() && collector.senders.is_empty() && collector.turns.is_empty());
    assert!(collector.by_count.is_empty());
}

/// Tells all that wait, under numbers from `first` on.
fn tell(collector: &mut Collector, tally: &mut Tally, first: u64) {
    let waiting = collector.next(usize::MAX);
    for (id, one) in (first..).zip(&waiting) {
        tell_one(collector, tally, one, id);
    }
}

fn tell_one(collector: &mut Collector, tally: &mut Tally, one: &Waiting, id: u64) {
    collector.told(one, id);
    let to = End { pod: Some("shop/web".to_owned()), ..End::default() };
    let direction = Some("ingress".to_owned());
    tally.record(id, &Record { to, direction, count: one.count, ..Record::default() });
}

fn update(collector: &mut Collector, tally: &mut Tally, now: Instant) {
    for update in collector.updates(now) {
        tally.update(&update);
    }
}

#[test]
fn told_flows_that_had_to_go_are_counted_to_their_end_and_forgotten() {
    let (mut collector, mut tally, now) = (collector(4000), Tally::new(10), Instant::now());
    let heavy = u16::try_from(IN_ALL / OF_A_SENDER).unwrap();
    for sender in 0..heavy {
        for port in 1..=u16::try_from(OF_A_SENDER).unwrap() {
            take(&mut collector, flow(address(sender), address(3999), port), now);
        }
    }
    tell(&mut collector, &mut tally, 0);
    assert_eq!((collector.flows.len(), tally.open()), (IN_ALL, IN_ALL));
    for sender in heavy..heavy + 1000 {
        take(&mut collector, flow(address(sender), address(3999), 80), now);
    }
    tell(&mut collector, &mut tally, 10_000);
    update(&mut collector, &mut tally, now);
    assert_eq!((collector.flows.len(), tally.open()), (IN_ALL, IN_ALL));
    update(&mut collector, &mut tally, now + WINDOW);
    assert_eq!((collector.flows.len(), tally.open()), (0, 0));
}

#[test]
fn flow_that_had_to_go_while_it_was_told_ends_and_is_another_one_if_it_came_again() {
    let (mut collector, mut tally, now) = (collector(2), Tally::new(10), Instant::now());
    let one = flow(address(0), address(1), 80);
    for comes_again in [false, true] {
        take(&mut collector, one.clone(), now);
        let waiting = collector.next(1);
        collector.remove(&one);
        if comes_again {
            take(&mut collector, one.clone(), now);
        }
        tell_one(&mut collector, &mut tally, &waiting[0], 1);
        assert_eq!(tally.open(), 1);
        update(&mut collector, &mut tally, now);
        assert_eq!((collector.flows.len(), tally.open()), (usize::from(comes_again), 0));
    }
    tell(&mut collector, &mut tally, 2);
    update(&mut collector, &mut tally, now + WINDOW);
    assert_eq!((collector.flows.len(), tally.open()), (0, 0));
}
