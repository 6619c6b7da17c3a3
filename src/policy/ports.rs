//! Sets of ports, computed exactly.

use std::collections::BTreeMap;

use crate::model::{PortRange, Protocol};

/// What a program's rule requires of a packet's protocol and destination port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// Nothing: every protocol matches, including those without ports.
    Any,
    /// One of these.
    Of(PortSet),
}

/// Ports by protocol, as ascending ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortSet(BTreeMap<Protocol, Vec<PortRange>>);

impl PortSet {
    /// No port.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Every port of a protocol, including those that a packet can have but a policy cannot name.
    #[must_use]
    pub fn all_of() -> PortRange {
        // `new` only refuses ranges that end before they begin.
        PortRange::new(0, u16::MAX).unwrap_or(PortRange::single(0))
    }

    /// The ports that `other` does not contain.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let mut left = BTreeMap::new();
        for (protocol, ranges) in &self.0 {
            let holes = other.0.get(protocol).map_or(&[][..], Vec::as_slice);
            let rest: Vec<PortRange> = ranges.iter().flat_map(|range| without(*range, holes)).collect();
            if !rest.is_empty() {
                left.insert(*protocol, rest);
            }
        }
        Self(left)
    }

    /// How many additional pieces [`Self::minus`] would produce at most.
    #[must_use]
    pub fn cuts(&self, other: &Self) -> usize {
        let cuts = |protocol: &Protocol, ranges: &[PortRange]| -> usize {
            let Some(holes) = other.0.get(protocol) else { return 0 };
            let touching = |range: &PortRange| {
                let from = holes.partition_point(|hole| hole.last() < range.first());
                holes.partition_point(|hole| hole.first() <= range.last()).saturating_sub(from)
            };
            ranges.iter().map(touching).sum()
        };
        self.0.iter().map(|(protocol, ranges)| cuts(protocol, ranges)).sum()
    }

    /// The ranges of each protocol that has any, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (Protocol, &[PortRange])> {
        self.0.iter().map(|(protocol, ranges)| (*protocol, ranges.as_slice()))
    }
}

/// Collects all ranges at once: adding them one by one to a large set would sort it each time.
impl FromIterator<(Protocol, PortRange)> for PortSet {
    fn from_iter<I: IntoIterator<Item = (Protocol, PortRange)>>(ranges: I) -> Self {
        let mut by_protocol: BTreeMap<Protocol, Vec<PortRange>> = BTreeMap::new();
        for (protocol, range) in ranges {
            by_protocol.entry(protocol).or_default().push(range);
        }
        for ranges in by_protocol.values_mut() {
            ranges.sort_unstable();
            *ranges = merged(ranges);
        }
        Self(by_protocol)
    }
}

/// Joins ranges that overlap or touch; `sorted` is ascending.
fn merged(sorted: &[PortRange]) -> Vec<PortRange> {
    let mut merged: Vec<PortRange> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(before) if u32::from(range.first()) <= u32::from(before.last()) + 1 => {
                let last = before.last().max(range.last());
                *before = PortRange::new(before.first(), last).unwrap_or(*before);
            }
            _ => merged.push(*range),
        }
    }
    merged
}

/// `range` minus `holes`, which are ascending and neither overlap nor touch.
fn without(range: PortRange, holes: &[PortRange]) -> Vec<PortRange> {
    let mut rest = Vec::new();
    let mut next = u32::from(range.first());
    let mut keep = |first: u32, last: u32| {
        let bound = |port: u32| u16::try_from(port).ok();
        if let (Some(first), Some(last)) = (bound(first), bound(last)) {
            rest.extend(PortRange::new(first, last));
        }
    };
    // Of tens of thousands of holes, visit only those that touch the range.
    let from = holes.partition_point(|hole| hole.last() < range.first());
    for hole in holes.iter().skip(from).take_while(|hole| hole.first() <= range.last()) {
        if u32::from(hole.first()) > next {
            keep(next, u32::from(hole.first()) - 1);
        }
        next = next.max(u32::from(hole.last()) + 1);
    }
    if next <= u32::from(range.last()) {
        keep(next, u32::from(range.last()));
    }
    rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &[(u16, u16)]) -> PortSet {
        ranges.iter().map(|(a, b)| (Protocol::Tcp, PortRange::new(*a.min(b), *a.max(b)).unwrap())).collect()
    }

    #[test]
    fn adjacent_ranges_are_merged() {
        assert_eq!(set(&[(80, 80), (81, 90), (85, 95)]), set(&[(80, 95)]));
        assert_eq!(set(&[(65535, 65535), (65534, 65534)]), set(&[(65534, 65535)]));
    }

    #[test]
    fn difference_removes_exactly_the_given_ports() {
        assert_eq!(set(&[(0, 65535)]).minus(&set(&[(80, 80)])), set(&[(0, 79), (81, 65535)]));
        assert_eq!(set(&[(80, 90)]).minus(&set(&[(0, 65535)])), PortSet::new());
    }

    proptest! {
        #[test]
        fn union_and_difference_agree_with_each_port(
            a in prop::collection::vec((0..40_u16, 0..40_u16), 0..6),
            b in prop::collection::vec((0..40_u16, 0..40_u16), 0..6),
        ) {
            let both = set(&[&a[..], &b].concat());
            let (a, b) = (set(&a), set(&b));
            let left = a.minus(&b);
            let pieces = |set: &PortSet| set.iter().map(|(_, ranges)| ranges.len()).sum::<usize>();
            prop_assert!(pieces(&left) <= pieces(&a) + a.cuts(&b));
            prop_assert_eq!(a.cuts(&b) == 0, left == a);
            for port in 0..42 {
                let has = |set: &PortSet| {
                    set.iter().flat_map(|(_, ranges)| ranges).any(|range| range.contains(port))
                };
                prop_assert_eq!(has(&both), has(&a) || has(&b));
                prop_assert_eq!(has(&left), has(&a) && !has(&b));
            }
        }
    }
}
