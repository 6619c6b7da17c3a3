//! How sets represent the addresses of blocks: as exact covers, or as networks minus excepts.
//!
//! The fewest networks that contain exactly the addresses of a block take one lookup and no additional rule. But each
//! except of a single address costs up to 32 of them, or 128 of IPv6, and a policy may have tens of thousands. So if
//! the cover is larger than the policy itself, a rule makes two lookups: the address is in the blocks, and it is not in
//! their excepts. For disjoint blocks that is exact, since an except lies within its own block. Nested blocks are split
//! into layers of disjoint blocks. That costs one entry for each block and except and one rule for each layer, of which
//! there are at most as many as an address has bits, whatever the policies say.

use ipnet::IpNet;

use crate::{
    model::{Family, IpBlock},
    policy::cidr::CidrSet,
};

/// Addresses that one rule can match: those in `within` that are not in `without`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Area {
    /// The fewest networks for their addresses, ascending; at least one.
    pub(super) within: Vec<IpNet>,
    /// Likewise; empty if nothing is excluded. Never a whole family.
    pub(super) without: Vec<IpNet>,
}

impl Area {
    /// Whether it is the whole family.
    pub(super) fn is_everything(&self) -> bool {
        self.without.is_empty() && self.within.first().is_some_and(|net| net.prefix_len() == 0)
    }
}

/// A cover of up to this many networks is preferred whatever the blocks are: enough to except the private networks, or
/// an IPv4 address or two. Beyond that two lookups are cheaper for a packet as well, since a cover is searched by every
/// prefix length in it.
const SMALL_COVER: usize = 64;

/// A block with this many excepts gets its own areas. They are the same whichever other blocks there are, so that
/// different programs share their sets.
const MANY_EXCEPTS: usize = 1024;

/// Whether a block is handled separately from all others: by [`areas`] of it alone.
pub(super) fn stands_alone(block: &IpBlock) -> bool {
    block.except().len() >= MANY_EXCEPTS
}

/// The areas that together contain exactly the addresses of `blocks` of one family. Empty if there are none.
pub(super) fn areas(family: Family, blocks: &[IpBlock]) -> Vec<Area> {
    let of_family = blocks.iter().filter(|block| Family::of_net(block.cidr()) == family);
    let said: usize = of_family.clone().map(|block| 1 + block.except().len()).sum();
    let exact = CidrSet::union(family, of_family.clone());
    let most = SMALL_COVER.max(said);
    let areas = if exact.count(family, most) <= most {
        exact_area(family, &exact).into_iter().collect()
    } else {
        layers(family, of_family)
    };
    match areas.iter().find(|area| area.is_everything()) {
        Some(everything) => vec![everything.clone()],
        None => areas,
    }
}

fn exact_area(family: Family, set: &CidrSet) -> Option<Area> {
    (!set.is_empty()).then(|| Area { within: set.networks(family), without: Vec::new() })
}

/// The areas of blocks, each looked up with its excepts.
fn layers<'a>(family: Family, blocks: impl Iterator<Item = &'a IpBlock>) -> Vec<Area> {
    let mut blocks: Vec<&IpBlock> = blocks.collect();
    // A network comes before those within it.
    blocks.sort_unstable_by_key(|block| block.cidr());
    let mut plain: Vec<IpNet> = Vec::new();
    let mut layers: Vec<(Vec<IpNet>, Vec<CidrSet>)> = Vec::new();
    let mut around: Vec<IpNet> = Vec::new();
    for same in blocks.chunk_by(|a, b| a.cidr() == b.cidr()) {
        let Some(cidr) = same.first().map(|block| block.cidr()) else { continue };
        // Of several blocks with the same network, only addresses that all of them except are excluded.
        let excepts = same.iter().map(|block| CidrSet::of(block.except().iter().copied()));
        let Some(excepts) = excepts.reduce(|all, other| all.intersection(&other)) else { continue };
        if excepts.is_empty() {
            plain.push(cidr);
            continue;
        }
        if excepts.covers(cidr) {
            continue;
        }
        while around.last().is_some_and(|network| !network.contains(&cidr)) {
            around.pop();
        }
        let depth = around.len();
        around.push(cidr);
        if layers.len() == depth {
            layers.push((Vec::new(), Vec::new()));
        }
        if let Some((within, without)) = layers.get_mut(depth) {
            within.push(cidr);
            without.push(excepts);
        }
    }
    let plain = exact_area(family, &CidrSet::of(plain));
    let layers = layers.into_iter().map(|(within, without)| Area {
        within: CidrSet::of(within).networks(family),
        without: CidrSet::join(without).networks(family),
    });
    plain.into_iter().chain(layers).collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn holds(areas: &[Area], address: IpAddr) -> bool {
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        areas.iter().any(|area| within(&area.within) && !within(&area.without))
    }

    fn block(cidr: &str, except: &[&str]) -> IpBlock {
        IpBlock::new(cidr.parse().unwrap(), except.iter().map(|e| e.parse().unwrap())).unwrap()
    }

    fn area(within: &[&str], without: &[&str]) -> Area {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
        Area { within: nets(within), without: nets(without) }
    }

    #[test]
    fn policy_cost_is_at_least_the_entries_of_its_blocks() {
        use crate::model::{
            LabelSelector, NetworkPolicy, ObjectKey, Peer, Peers, PolicyRule, Ports, Standing,
        };
        for excepts in [1_u32, 2, 3, 40, 500] {
            let excepts = (0..excepts).map(|at| format!("10.{}.{}.7/32", at % 200, at / 3).parse().unwrap());
            let block = IpBlock::new("0.0.0.0/0".parse().unwrap(), excepts).unwrap();
            let areas = areas(Family::V4, std::slice::from_ref(&block));
            let entries: usize = areas.iter().map(|area| area.within.len() + area.without.len()).sum();
            let peers = Peers::Of(vec![Peer::Block(block)]);
            let policy = NetworkPolicy {
                key: ObjectKey::new("shop", "blocks"),
                subject: LabelSelector::everything(),
                ingress: None,
                egress: Some(vec![PolicyRule { peers, ports: Ports::Any }]),
                standing: Standing::Accepted,
            };
            let cost = usize::try_from(crate::policy::budget::of_both(&policy)).unwrap();
            assert!(entries > 1 && cost >= entries, "{cost} for {entries} entries");
        }
    }

    #[test]
    fn few_excepts_become_a_cover_and_many_a_set() {
        let private = block("0.0.0.0/0", &["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]);
        let [cover] = &areas(Family::V4, &[private])[..] else { panic!("one area") };
        assert!(cover.without.is_empty());
        let hosts: Vec<IpNet> =
            (0..2000_u32).map(|n| IpAddr::from((n * 2_000_003).to_be_bytes()).into()).collect();
        let hosts: Vec<IpNet> = hosts.into_iter().skip(1).collect();
        let many = IpBlock::new("0.0.0.0/0".parse().unwrap(), hosts.clone()).unwrap();
        assert_eq!(
            areas(Family::V4, &[many]),
            [Area { within: vec!["0.0.0.0/0".parse().unwrap()], without: hosts }]
        );
    }

    #[test]
    fn cover_is_preferred_if_it_is_no_larger_than_the_block() {
        // Every second network of 256 addresses; of the last ones only half, which leaves one more piece for each.
        let of = |halves: u8| {
            let prefix = |at: u8| if at < 128 - halves { 24 } else { 25 };
            let excepts = (0..128).map(|at| IpNet::new_assert([10, 0, 2 * at + 1, 0].into(), prefix(at)));
            let block = IpBlock::new("10.0.0.0/16".parse().unwrap(), excepts).unwrap();
            let areas = areas(Family::V4, &[block]);
            let [area] = &areas[..] else { panic!("{areas:?}") };
            (area.within.len(), area.without.len())
        };
        assert_eq!(of(0), (128, 0));
        assert_eq!(of(1), (129, 0), "the block and 128 excepts");
        assert_eq!(of(2), (1, 128));
    }

    #[test]
    fn adjacent_excepts_are_merged_and_a_fully_excepted_block_is_empty() {
        let every_one: Vec<IpNet> =
            (0..=255_u8).map(|n| IpNet::new_assert([10, 0, n, 0].into(), 24)).collect();
        let filled = IpBlock::new("10.0.0.0/16".parse().unwrap(), every_one).unwrap();
        assert!(areas(Family::V4, &[filled]).is_empty());
        let halves =
            IpBlock::new("::/0".parse().unwrap(), ["::/1", "8000::/1"].map(|half| half.parse().unwrap()));
        let far = block("2001:db8::/32", &["2001:db8::1/128", "2001:db8:8000::1/128"]);
        let areas = areas(Family::V6, &[halves.unwrap(), far]);
        assert_eq!(areas, [area(&["2001:db8::/32"], &["2001:db8::1/128", "2001:db8:8000::1/128"])]);
    }

    #[test]
    fn except_does_not_apply_to_a_block_within_it() {
        let outer = block("::/0", &["2001:db8::/32", "4000::1/128"]);
        let inner = block("2001:db8::/48", &["2001:db8::1/128", "2001:db8:0:8000::1/128"]);
        let single = block("2001:db8::1/128", &[]);
        assert_eq!(
            areas(Family::V6, &[inner, single, outer]),
            [
                area(&["2001:db8::1/128"], &[]),
                area(&["::/0"], &["2001:db8::/32", "4000::1/128"]),
                area(&["2001:db8::/48"], &["2001:db8::1/128", "2001:db8:0:8000::1/128"]),
            ]
        );
    }

    #[test]
    fn blocks_of_one_network_except_only_common_excepts() {
        let first = block("::/0", &["2001:db8::1/128", "2001:db8::2/128", "fd00::/8"]);
        let second = block("::/0", &["2001:db8::1/128", "4000::/3", "fd00::5/128"]);
        assert_eq!(
            areas(Family::V6, &[first, second]),
            [area(&["::/0"], &["2001:db8::1/128", "fd00::5/128"])]
        );
    }

    #[test]
    fn other_family_is_empty_and_a_whole_family_is_everything() {
        assert!(areas(Family::V6, &[block("0.0.0.0/0", &[])]).is_empty());
        assert!(areas(Family::V4, &[]).is_empty());
        let all = block("::/0", &[]);
        let some = block("::/0", &["2001:db8::1/128", "4000::1/128"]);
        let areas = areas(Family::V6, &[some, all]);
        assert!(areas.len() == 1 && areas[0].is_everything());
    }

    /// The last 16 bits of a block and its prefix length within them, with its excepts.
    type BlockSpec = (u16, u8, Vec<(u16, u8)>);

    /// Host parts and prefix lengths; short ones, nested ones and single addresses are equally likely.
    fn nets() -> impl Strategy<Value = Vec<(u16, u8)>> {
        prop::collection::vec((any::<u16>(), prop_oneof![0_u8..=16, 12_u8..=16, Just(16)]), 0..40)
    }

    /// Blocks in the last 16 bits of an address, so that they overlap in all combinations. `base` has the bits before.
    fn blocks(base: IpAddr, specs: Vec<BlockSpec>) -> Vec<IpBlock> {
        let bits = Family::of(base).bits();
        let net = |host: u16, prefix: u8| IpNet::new_assert(at(base, host), bits - 16 + prefix).trunc();
        let of = |(host, prefix, excepts): BlockSpec| {
            let cidr = net(host, prefix.min(16));
            let mask = u16::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
            let inside = |(e, longer): (u16, u8)| {
                let prefix = prefix + longer.max(1);
                (prefix <= 16).then(|| net(host & !mask | e & mask, prefix))
            };
            IpBlock::new(cidr, excepts.into_iter().filter_map(inside).collect::<Vec<_>>()).unwrap()
        };
        specs.into_iter().map(of).collect()
    }

    /// `base` with these last 16 bits.
    fn at(base: IpAddr, host: u16) -> IpAddr {
        match base {
            IpAddr::V4(base) => IpAddr::from((u32::from(base) | u32::from(host)).to_be_bytes()),
            IpAddr::V6(base) => IpAddr::from((u128::from(base) | u128::from(host)).to_be_bytes()),
        }
    }

    proptest! {
        #[test]
        fn areas_cover_exactly_the_blocks_within_their_cost(
            specs in prop::collection::vec((any::<u16>(), 0_u8..=16, nets()), 0..12),
            is_v6 in any::<bool>(),
            hosts in prop::collection::vec(any::<u16>(), 50),
        ) {
            let base: IpAddr = if is_v6 { "2001:db8::" } else { "10.9.0.0" }.parse().unwrap();
            let family = Family::of(base);
            let blocks = blocks(base, specs);
            let nets = || blocks.iter().flat_map(|block| block.except().iter().copied().chain([block.cidr()]));
            for areas in [areas(family, &blocks), layers(family, blocks.iter())] {
                // At random, and at every edge of a network from both sides.
                let addresses = hosts.iter().map(|host| at(base, *host));
                let edges = nets().flat_map(|net| [net.network(), net.broadcast()]);
                let low = |address: IpAddr| match address {
                    IpAddr::V4(address) => u16::try_from(u32::from(address) & 0xffff).unwrap(),
                    IpAddr::V6(address) => u16::try_from(u128::from(address) & 0xffff).unwrap(),
                };
                let edges: Vec<IpAddr> = edges
                    .flat_map(|edge| [low(edge).wrapping_sub(1), low(edge), low(edge).wrapping_add(1)])
                    .map(|host| at(base, host))
                    .collect();
                for address in addresses.chain(edges) {
                    prop_assert_eq!(
                        holds(&areas, address),
                        blocks.iter().any(|block| block.contains(address)),
                        "{} of {:?} as {:?}", address, blocks, areas
                    );
                }
                let entries: usize = areas.iter().map(|area| area.within.len() + area.without.len()).sum();
                prop_assert!(entries <= SMALL_COVER.max(nets().count()), "{entries}");
                prop_assert!(areas.iter().all(|area| !area.within.is_empty()));
            }
        }
    }
}
