//! What the kernel has counted of each pod: exact numbers, unlike those of the drop log, which come from copies.
//!
//! The rule of a pod's chain that leads to its group counts what the group judged: first packets of connections, since
//! later ones do not come so far. The set of drops counts what was denied. What was judged and not denied was allowed.

use std::{collections::BTreeMap, net::IpAddr};

use super::variant::{Variant, installed};
use crate::{
    dataplane::{DataplaneError, command::Commands},
    model::{Direction, Family, ObjectKey},
    ruleset::{ChainName, names},
};

/// A number of packets, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Counted {
    fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// What the kernel has counted since the chains and sets were last written anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodCounters {
    judged: BTreeMap<ChainName, Counted>,
    denied: BTreeMap<IpAddr, Counted>,
}

impl PodCounters {
    /// Reads them: the filter tables of this variant, and the sets of drops.
    ///
    /// # Errors
    /// If a command fails, for lack of privilege for example.
    pub fn read(commands: &Commands, variant: Variant) -> Result<Self, DataplaneError> {
        let installed = installed(commands)?;
        let tools = installed.iter().find(|tools| tools.variant == variant);
        let Some(tools) = tools.or_else(|| installed.first()) else { return Ok(Self::default()) };
        let mut counters = Self::default();
        for family in Family::BOTH {
            let set = names::drops(family);
            let listed = commands.run("ipset", &["list", set.as_str()], "")?;
            // Without IPv6 there is none.
            if listed.success {
                counters.read_set(&listed.stdout);
            } else if family == Family::V4 {
                return Err(listed.into_error());
            }
            let saved = commands.run(&tools.save(family), &["-c", "-t", "filter"], "")?;
            if saved.success {
                counters.read_chains(&saved.stdout);
            } else if family == Family::V4 {
                return Err(saved.into_error());
            }
        }
        Ok(counters)
    }

    /// What was judged of a pod's packets in one direction.
    #[must_use]
    pub fn judged(&self, direction: Direction, pod: &ObjectKey) -> Counted {
        self.judged.get(&names::pod(direction, pod)).copied().unwrap_or_default()
    }

    /// What was denied of the packets of these addresses, in both directions.
    #[must_use]
    pub fn denied(&self, addresses: &[IpAddr]) -> Counted {
        let mut sum = Counted::default();
        addresses.iter().filter_map(|address| self.denied.get(address)).for_each(|one| sum.add(*one));
        sum
    }

    /// Reads the output of `ipset list` for a set with counters.
    fn read_set(&mut self, text: &str) {
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            if let [address, "packets", packets, "bytes", bytes] = words.as_slice()
                && let (Ok(address), Ok(packets), Ok(bytes)) =
                    (address.parse(), packets.parse(), bytes.parse())
            {
                self.denied.insert(address, Counted { packets, bytes });
            }
        }
    }

    /// Reads the output of `iptables-save -c`.
    fn read_chains(&mut self, text: &str) {
        for line in text.lines() {
            let Some((counts, rule)) = line.strip_prefix('[').and_then(|rest| rest.split_once("] -A "))
            else {
                continue;
            };
            let (Some((packets, bytes)), Some((chain, rule))) =
                (counts.split_once(':'), rule.split_once(' '))
            else {
                continue;
            };
            // Only this rule of a pod's chain leads on; the others are for what the pod sends to itself.
            let leads_on = rule.split(' ').any(|word| word == "-g");
            if let (true, Some(chain), Ok(packets), Ok(bytes)) =
                (leads_on, ChainName::new(chain), packets.parse(), bytes.parse())
            {
                self.judged.entry(chain).or_default().add(Counted { packets, bytes });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_both_families_are_added_and_other_rules_ignored() {
        let pod = ObjectKey::new("shop", "db");
        let (ingress, egress) = (names::pod(Direction::Ingress, &pod), names::pod(Direction::Egress, &pod));
        let mut counters = PodCounters::default();
        for _ in Family::BOTH {
            counters.read_chains(&format!(
                "*filter\n:{ingress} - [0:0]\n[9:99] -A {ingress} -s 10.0.0.1/32 -j RETURN\n\
                 [5:300] -A {ingress} -m comment --comment \"shop/db ingress\" -g TP-GI-aaaaaaaaaaaaaaaa\n\
                 [7:420] -A {egress} -g TP-GE-aaaaaaaaaaaaaaaa\n[1:60] -A TOWPATH-INGRESS -d 10.0.0.1/32 -g {ingress}\n"
            ));
        }
        assert_eq!(counters.judged(Direction::Ingress, &pod), Counted { packets: 10, bytes: 600 });
        assert_eq!(counters.judged(Direction::Egress, &pod), Counted { packets: 14, bytes: 840 });
        counters.read_set(
            "Name: tp4-drops\nMembers:\n10.0.0.1 packets 3 bytes 180\n10.0.0.2 packets 1 bytes 60\n",
        );
        counters.read_set("Name: tp6-drops\nMembers:\nfd00::1 packets 2 bytes 160\n");
        let addresses = ["10.0.0.1", "fd00::1"].map(|address| address.parse().unwrap());
        assert_eq!(counters.denied(&addresses), Counted { packets: 5, bytes: 340 });
    }
}
