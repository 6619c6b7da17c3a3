//! Sets of addresses, computed exactly.
//!
//! Several blocks of one rule, each with its own excepts, are a union of differences. The kernel's `nomatch` members
//! cannot express that: they exclude from the whole set, by longest prefix. So the addresses are computed here, and
//! the set gets the fewest networks that contain exactly those.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::model::{Family, IpBlock};

/// A set of addresses of one family, as ascending ranges that neither overlap nor touch.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CidrSet {
    ranges: Vec<(u128, u128)>,
}

impl CidrSet {
    /// The addresses of `family` that lie in at least one of `blocks`, each block without its own excepts.
    #[must_use]
    pub fn union<'a>(family: Family, blocks: impl IntoIterator<Item = &'a IpBlock>) -> Self {
        let mut ranges = Vec::new();
        for block in blocks {
            if Family::of_net(block.cidr()) == family {
                subtract(bounds(block.cidr()), block.except(), &mut ranges);
            }
        }
        Self::of_ranges(ranges)
    }

    /// The addresses of these networks, which are of one family.
    #[must_use]
    pub fn of(networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self::of_ranges(networks.into_iter().map(bounds).collect())
    }

    /// The addresses of these ranges.
    fn of_ranges(mut ranges: Vec<(u128, u128)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self { ranges: merged }
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether the set contains every address of `network`.
    #[must_use]
    pub fn covers(&self, network: IpNet) -> bool {
        let (first, last) = bounds(network);
        let at = self.ranges.partition_point(|range| range.1 < first);
        self.ranges.get(at).is_some_and(|range| range.0 <= first && last <= range.1)
    }

    /// The addresses that are in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut mine, mut theirs) = (self.ranges.iter().peekable(), other.ranges.iter().peekable());
        let mut ranges = Vec::new();
        while let (Some(a), Some(b)) = (mine.peek(), theirs.peek()) {
            let (first, last) = (a.0.max(b.0), a.1.min(b.1));
            if first <= last {
                ranges.push((first, last));
            }
            if a.1 <= b.1 {
                mine.next()
            } else {
                theirs.next()
            };
        }
        Self { ranges }
    }

    /// The addresses that are in at least one of these sets.
    #[must_use]
    pub fn join(sets: impl IntoIterator<Item = Self>) -> Self {
        Self::of_ranges(sets.into_iter().flat_map(|set| set.ranges).collect())
    }

    /// How many networks [`Self::networks`] would return. Counting stops beyond `most`: a few thousand excepts can
    /// produce millions.
    #[must_use]
    pub fn count(&self, family: Family, most: usize) -> usize {
        let mut count = 0;
        for &(first, last) in &self.ranges {
            count += pieces(family, first, last).take(most + 1 - count).count();
            if count > most {
                break;
            }
        }
        count
    }

    /// The fewest networks that contain exactly these addresses, ascending. `family` is the one of [`Self::union`].
    #[must_use]
    pub fn networks(&self, family: Family) -> Vec<IpNet> {
        let mut networks = Vec::new();
        for &(first, last) in &self.ranges {
            networks.extend(pieces(family, first, last));
        }
        networks
    }
}

/// `within` minus `excepts` (sorted by address, possibly nested), appended to `out`.
fn subtract(within: (u128, u128), excepts: &[IpNet], out: &mut Vec<(u128, u128)>) {
    let mut next = within.0;
    for (first, last) in excepts.iter().map(|except| bounds(*except)) {
        if first > next {
            out.push((next, first - 1));
        }
        if last >= next {
            match last.checked_add(1) {
                Some(behind) => next = behind,
                // The except ends at the end of the address space.
                None => return,
            }
        }
    }
    if next <= within.1 {
        out.push((next, within.1));
    }
}

/// The fewest networks that contain exactly `first..=last`: repeatedly the largest one that begins where the previous
/// one ended.
fn pieces(family: Family, first: u128, last: u128) -> impl Iterator<Item = IpNet> {
    let bits = u32::from(family.bits());
    let mut next = Some(first);
    std::iter::from_fn(move || {
        let first = next?;
        let mut host_bits = first.trailing_zeros().min(bits);
        while host_bits != 0 && end(first, host_bits) > last {
            host_bits -= 1;
        }
        next = end(first, host_bits).checked_add(1).filter(|next| *next <= last);
        Some(network(family, first, bits - host_bits))
    })
}

/// The last address of the network that begins at `first` and has `host_bits` host bits.
fn end(first: u128, host_bits: u32) -> u128 {
    first | 1_u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1)
}

fn bounds(net: IpNet) -> (u128, u128) {
    (number(net.network()), number(net.broadcast()))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn network(family: Family, first: u128, prefix: u32) -> IpNet {
    // A prefix is at most the family's bits, and an IPv4 range never exceeds 32 bits: neither is truncated here.
    let prefix = u8::try_from(prefix).unwrap_or(u8::MAX);
    match family {
        Family::V4 => {
            let address = Ipv4Addr::from(u32::try_from(first).unwrap_or(u32::MAX));
            Ipv4Net::new_assert(address, prefix).into()
        }
        Family::V6 => Ipv6Net::new_assert(Ipv6Addr::from(first), prefix).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(cidr: &str, except: &[&str]) -> IpBlock {
        IpBlock::new(cidr.parse().unwrap(), except.iter().map(|e| e.parse().unwrap())).unwrap()
    }

    fn networks(family: Family, blocks: &[IpBlock]) -> Vec<String> {
        CidrSet::union(family, blocks).networks(family).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn except_does_not_apply_to_another_block() {
        let blocks = [block("10.0.0.0/8", &["10.1.0.0/16"]), block("10.1.2.0/24", &[])];
        let set = CidrSet::union(Family::V4, &blocks).networks(Family::V4);
        let holds = |address: &str| set.iter().any(|net| net.contains(&address.parse::<IpAddr>().unwrap()));
        assert!(holds("10.1.2.3") && holds("10.2.0.0"));
        assert!(!holds("10.1.3.3") && !holds("11.0.0.0"));
    }

    #[test]
    fn whole_address_space_and_its_ends_are_exact() {
        assert_eq!(networks(Family::V4, &[block("0.0.0.0/0", &[])]), ["0.0.0.0/0"]);
        assert_eq!(networks(Family::V6, &[block("::/0", &["8000::/1"])]), ["::/1"]);
        assert_eq!(
            networks(Family::V4, &[block("0.0.0.0/1", &[]), block("128.0.0.0/1", &[])]),
            ["0.0.0.0/0"]
        );
        assert_eq!(networks(Family::V4, &[block("0.0.0.0/0", &["255.255.255.255/32"])]).len(), 32);
        assert!(networks(Family::V6, &[block("0.0.0.0/0", &[])]).is_empty());
        assert!(networks(Family::V4, &[block("10.0.0.0/30", &["10.0.0.0/31", "10.0.0.2/31"])]).is_empty());
    }

    /// Blocks within 10.0.0.0/24, small enough to check every address.
    fn small_block() -> impl Strategy<Value = IpBlock> {
        let net = |host: u8, prefix: u8| IpNet::new(IpAddr::from([10, 0, 0, host]), prefix).unwrap();
        (any::<u8>(), 24_u8..=32, prop::collection::vec((any::<u8>(), 0_u8..=8), 0..5)).prop_map(
            move |(host, prefix, excepts)| {
                let cidr = net(host, prefix).trunc();
                let inside = excepts.into_iter().filter_map(|(except, longer)| {
                    let prefix = prefix + 1 + longer;
                    let base = match cidr.network() {
                        IpAddr::V4(base) => base.octets()[3],
                        IpAddr::V6(_) => 0,
                    };
                    let except = base
                        | (except & !(0xff_u8.checked_shl(u32::from(32 - cidr.prefix_len())).unwrap_or(0)));
                    (prefix <= 32).then(|| net(except, prefix))
                });
                IpBlock::new(cidr, inside.collect::<Vec<_>>()).unwrap()
            },
        )
    }

    proptest! {
        #[test]
        fn networks_cover_exactly_the_blocks_without_overlap(
            blocks in prop::collection::vec(small_block(), 0..6)
        ) {
            let networks = CidrSet::union(Family::V4, &blocks).networks(Family::V4);
            for host in 0..=255_u8 {
                let address = IpAddr::from([10, 0, 0, host]);
                let held = networks.iter().filter(|net| net.contains(&address)).count();
                prop_assert_eq!(held, usize::from(blocks.iter().any(|block| block.contains(address))));
            }
            prop_assert_eq!(IpNet::aggregate(&networks).len(), networks.len());
            let set = CidrSet::union(Family::V4, &blocks);
            prop_assert_eq!(set.count(Family::V4, 1000), networks.len());
            prop_assert_eq!(set.count(Family::V4, 2), networks.len().min(3));
        }

        #[test]
        fn intersection_and_difference_agree_with_each_address(
            a in prop::collection::vec(small_block(), 0..4),
            b in prop::collection::vec(small_block(), 0..4),
            whole in small_block(),
        ) {
            let sets = [&a, &b].map(|blocks| CidrSet::union(Family::V4, blocks));
            let [of_a, of_b] = &sets;
            let (both, one) = (of_a.intersection(of_b), CidrSet::join(sets.clone()));
            let address = |host| IpAddr::from([10, 0, 0, host]);
            let holds = |set: &CidrSet, host| set.covers(address(host).into());
            for host in 0..=255_u8 {
                prop_assert_eq!(holds(&both, host), holds(of_a, host) && holds(of_b, host));
                prop_assert_eq!(holds(&one, host), holds(of_a, host) || holds(of_b, host));
                prop_assert_eq!(holds(of_a, host), a.iter().any(|block| block.contains(address(host))));
            }
            let cidr = whole.cidr();
            let mut hosts = (0..=255_u8).filter(|host| cidr.contains(&address(*host)));
            prop_assert_eq!(of_a.covers(cidr), hosts.all(|host| holds(of_a, host)));
            prop_assert_eq!(both.is_empty(), (0..=255).all(|host| !holds(&both, host)));
        }
    }
}
