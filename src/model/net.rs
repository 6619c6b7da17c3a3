//! Families, protocols, ports and address blocks.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    net::IpAddr,
    str::FromStr,
    sync::Arc,
};

use ipnet::IpNet;

use super::digest::digest;

/// An IP family. Each has its own tables and sets in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The family of a block.
    #[must_use]
    pub const fn of_net(net: IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// The number of bits of an address: 32 or 128.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// `IPv4`, `IPv6`: as `status.podIPs` and Services write it.
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A protocol with ports. The standard defines these three; "this field defaults to TCP".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// As the API writes it: `TCP`, `UDP`, `SCTP`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// Its IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Reads exactly what the API accepts: `TCP`, `UDP`, `SCTP`.
impl FromStr for Protocol {
    type Err = ProtocolError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|protocol| protocol.name() == text)
            .ok_or_else(|| ProtocolError(text.to_owned()))
    }
}

/// A text that is not a protocol of the standard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unsupported protocol {0:?}: supported are \"TCP\", \"UDP\" and \"SCTP\"")]
pub struct ProtocolError(String);

/// Ports from `first` to `last`, both included; within 1 to 65535 if it comes from a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The ports from `first` to `last`; `None` if there are none.
    #[must_use]
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first <= last { Some(Self { first, last }) } else { None }
    }

    /// One port.
    #[must_use]
    pub const fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// Its first port.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// Its last port.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Whether `port` is one of them.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// `80`, or `80-90`.
impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// `ipBlock`: the addresses of `cidr` that lie in none of its `except`s.
///
/// "Except is a slice of CIDRs that should not be included within an IPBlock": an except excludes addresses from this
/// block alone. It denies nothing; another peer, rule or policy may allow the same address.
///
/// Clones share the excepts, of which a policy may have tens of thousands, and so does everything that is derived
/// from a policy.
#[derive(Clone, PartialEq, Eq)]
pub struct IpBlock {
    cidr: IpNet,
    /// `None` if there are none: a policy may have tens of thousands of blocks without excepts.
    except: Option<Arc<Excepts>>,
}

/// The excepts of a block: sorted, without repetition.
struct Excepts {
    nets: Box<[IpNet]>,
    /// Replaces them in digests, if there are many. All parts of a program are digested with it, and there may be as
    /// many programs as pods.
    digest: Option<String>,
}

impl PartialEq for Excepts {
    fn eq(&self, other: &Self) -> bool {
        self.nets == other.nets
    }
}

impl Eq for Excepts {}

/// Up to this many excepts are checked one by one, and digested as they are.
const FEW_EXCEPTS: usize = 16;

impl IpBlock {
    /// A block; host bits are cleared (`10.0.0.5/24` is `10.0.0.0/24`), and repeated excepts are dropped.
    ///
    /// # Errors
    /// An except that is not a strict subset of `cidr`: outside of it, equal to it, or of the other family.
    pub fn new(cidr: IpNet, except: impl IntoIterator<Item = IpNet>) -> Result<Self, IpBlockError> {
        let cidr = cidr.trunc();
        let mut excepts = Vec::new();
        for (index, except) in except.into_iter().enumerate() {
            let inside = cidr.contains(&except.trunc()) && except.prefix_len() > cidr.prefix_len();
            if !inside {
                return Err(IpBlockError { index, cidr, except });
            }
            excepts.push(except.trunc());
        }
        excepts.sort();
        excepts.dedup();
        let digest = (excepts.len() > FEW_EXCEPTS).then(|| digest(&excepts));
        let except = (!excepts.is_empty()).then(|| Arc::new(Excepts { nets: excepts.into(), digest }));
        Ok(Self { cidr, except })
    }

    /// The block, without host bits.
    #[must_use]
    pub const fn cidr(&self) -> IpNet {
        self.cidr
    }

    /// Its excepts, sorted.
    #[must_use]
    pub fn except(&self) -> &[IpNet] {
        self.except.as_ref().map_or(&[], |except| &except.nets)
    }

    /// Whether `address` is in the block and in none of its excepts.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address) && !self.excepts(address)
    }

    /// Whether one of the excepts contains `address`, which lies in the block. Called for every pod of a cluster, so
    /// many excepts are searched by prefix length and not one by one.
    fn excepts(&self, address: IpAddr) -> bool {
        let excepts = self.except();
        if excepts.len() <= FEW_EXCEPTS {
            return excepts.iter().any(|except| except.contains(&address));
        }
        (self.cidr.prefix_len()..=self.cidr.max_prefix_len())
            .filter_map(|prefix| IpNet::new(address, prefix).ok())
            .any(|net| excepts.binary_search(&net.trunc()).is_ok())
    }
}

impl PartialOrd for IpBlock {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for IpBlock {
    fn cmp(&self, other: &Self) -> Ordering {
        self.cidr.cmp(&other.cidr).then_with(|| match (&self.except, &other.except) {
            (Some(a), Some(b)) if Arc::ptr_eq(a, b) => Ordering::Equal,
            _ => self.except().cmp(other.except()),
        })
    }
}

impl Hash for IpBlock {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.cidr.hash(state);
        match self.except.as_ref().and_then(|except| except.digest.as_ref()) {
            None => self.except().hash(state),
            Some(digest) => (self.except().len(), digest).hash(state),
        }
    }
}

impl fmt::Debug for IpBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IpBlock").field("cidr", &self.cidr).field("except", &self.except()).finish()
    }
}

impl fmt::Display for IpBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cidr.fmt(f)?;
        for (at, except) in self.except().iter().enumerate() {
            write!(f, "{}{except}", if at == 0 { " except " } else { ", " })?;
        }
        Ok(())
    }
}

/// An except that does not lie within its block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{except} must be a strict subset of {cidr}")]
pub struct IpBlockError {
    /// The index of the except, from 0.
    pub index: usize,
    /// The block.
    pub cidr: IpNet,
    /// The except.
    pub except: IpNet,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(cidr: &str, except: &[&str]) -> Result<IpBlock, IpBlockError> {
        IpBlock::new(cidr.parse().unwrap(), except.iter().map(|e| e.parse().unwrap()))
    }

    #[test]
    fn except_must_be_a_strict_subset_of_its_block() {
        assert!(block("10.0.0.0/16", &["10.0.1.0/24", "10.0.1.0/24", "10.0.1.128/25"]).is_ok());
        for bad in ["10.1.0.0/24", "10.0.0.0/16", "10.0.0.0/8", "fd00::/64"] {
            assert!(block("10.0.0.0/16", &[bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn host_bits_are_cleared() {
        assert_eq!(
            block("10.0.0.5/24", &["10.0.0.9/30"]).unwrap().to_string(),
            "10.0.0.0/24 except 10.0.0.8/30"
        );
    }

    proptest! {
        #[test]
        fn many_excepts_match_like_few(
            nets in prop::collection::vec((any::<u32>(), 9_u8..=32), 0..60),
            near in prop::collection::vec((any::<prop::sample::Index>(), any::<u32>()), 1..20),
        ) {
            let net = |number: u32, prefix| {
                IpNet::new_assert(IpAddr::from((number & 0x00ff_ffff | 10 << 24).to_be_bytes()), prefix).trunc()
            };
            let nets: Vec<IpNet> = nets.into_iter().map(|(number, prefix)| net(number, prefix)).collect();
            let block = IpBlock::new("10.0.0.0/8".parse().unwrap(), nets.clone()).unwrap();
            for (index, number) in near {
                let mut addresses = vec![net(number, 32).network()];
                addresses.extend((!nets.is_empty()).then(|| index.get(&nets).broadcast()));
                for address in addresses {
                    prop_assert_eq!(block.contains(address), !nets.iter().any(|net| net.contains(&address)));
                }
            }
        }

        #[test]
        fn blocks_are_equal_if_and_only_if_their_digests_are(
            a in prop::collection::vec(0_u8..20, 0..40),
            b in prop::collection::vec(0_u8..20, 0..40),
            same in any::<bool>(),
        ) {
            let b = if same { a.iter().rev().chain(&a).copied().collect() } else { b };
            let block = |hosts: Vec<u8>| {
                let excepts = hosts.into_iter().map(|host| IpNet::from(IpAddr::from([10, 0, 0, host])));
                IpBlock::new("10.0.0.0/8".parse().unwrap(), excepts).unwrap()
            };
            let (a, b) = (block(a), block(b));
            prop_assert_eq!(a == b, digest(&a) == digest(&b));
            prop_assert_eq!(a == b, a.cmp(&b).is_eq());
        }
    }

    #[test]
    fn except_applies_only_to_its_own_block() {
        let block = block("10.0.0.0/8", &["10.1.0.0/16"]).unwrap();
        assert!(block.contains("10.2.3.4".parse().unwrap()));
        assert!(!block.contains("10.1.3.4".parse().unwrap()));
        assert!(!block.contains("::1".parse().unwrap()));
    }
}
