//! The path of one pod's packets through the chains, from the output of `iptables -S`.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

/// The chains and sets that affect one pod.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PodChains {
    /// Groups of rules as `iptables -S` prints them: the hooks first, then chain after chain in the packet's order.
    pub(super) groups: Vec<Vec<String>>,
    /// The sets that the last of these chains refer to.
    pub(super) sets: BTreeSet<String>,
}

/// Finds the chains that packets of the owner of `address` pass, and the rules in them that may affect it.
///
/// Rules in the built-in chains that lead to ours come first. Chains that all pods share dispatch packets by address:
/// their rules about other pods are left out.
pub(super) fn of_pod(listing: &str, address: IpAddr) -> PodChains {
    let rules: Vec<(&str, &str)> = listing.lines().filter_map(rule).collect();
    let ours: BTreeSet<&str> =
        listing.lines().filter_map(|line| line.strip_prefix("-N ")).filter(is_ours).collect();
    let mut found = PodChains::default();
    let mut waiting: Vec<&str> = Vec::new();
    let mut hooks = Vec::new();
    for (_, line) in rules.iter().filter(|(chain, _)| *chain == "FORWARD") {
        if let Some(target) = target(line).filter(|target| ours.contains(target)) {
            hooks.push((*line).to_owned());
            waiting.push(target);
        }
    }
    found.groups.push(hooks);
    let mut seen = BTreeSet::new();
    while let Some(chain) = waiting.pop() {
        if !seen.insert(chain) {
            continue;
        }
        let here =
            rules.iter().filter(|(of, line)| *of == chain && (!is_shared(chain) || concerns(line, address)));
        let lines: Vec<&str> = here.map(|(_, line)| *line).collect();
        // The first target last, so that it is taken next: egress before ingress, a pod's chain before the next pod's.
        waiting.extend(
            lines.iter().rev().filter_map(|line| target(line)).filter(|target| ours.contains(target)),
        );
        if !is_shared(chain) {
            found.sets.extend(lines.iter().flat_map(|line| sets(line)));
        }
        found.groups.push(lines.into_iter().map(str::to_owned).collect());
    }
    found.groups.retain(|group| !group.is_empty());
    found
}

/// The chain of a rule, and the rule.
fn rule(line: &str) -> Option<(&str, &str)> {
    let chain = line.strip_prefix("-A ")?.split_whitespace().next()?;
    Some((chain, line))
}

fn is_ours(chain: &&str) -> bool {
    chain.starts_with("TOWPATH-") || chain.starts_with("TP-")
}

/// Whether many pods' packets pass a chain: the fixed ones, and the branches of the dispatch.
fn is_shared(chain: &str) -> bool {
    chain.starts_with("TOWPATH-") || chain.starts_with("TP-D")
}

/// Whether a rule can match packets of the owner of `address`: it names no address, or a block around this one.
fn concerns(line: &str, address: IpAddr) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut blocks = words.windows(2).filter_map(|pair| match pair {
        ["-s" | "-d", block] => block.parse::<IpNet>().ok(),
        _ => None,
    });
    blocks.all(|block| block.contains(&address))
}

/// The chain or verdict that a rule leads to.
fn target(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    words.find(|word| *word == "-j" || *word == "-g")?;
    words.next()
}

fn sets(line: &str) -> impl Iterator<Item = String> {
    let mut words = line.split_whitespace();
    std::iter::from_fn(move || {
        words.find(|word| *word == "--match-set")?;
        words.next().map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "\
-P FORWARD DROP
-N FLANNEL-FWD
-N TOWPATH-FORWARD
-N TOWPATH-INGRESS
-N TP-DI-branch
-N TP-GI-a
-N TP-PI-a
-N TP-PI-b
-A FORWARD -j TOWPATH-FORWARD
-A FORWARD -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.244.0.0/16 -j ACCEPT
-A TOWPATH-FORWARD -m conntrack --ctstate ESTABLISHED -j RETURN
-A TOWPATH-FORWARD -m set --match-set tp4-ingress-isolated dst -j TOWPATH-INGRESS
-A TOWPATH-INGRESS -d 10.244.1.0/28 -g TP-DI-branch
-A TOWPATH-INGRESS -j DROP
-A TP-DI-branch -d 10.244.1.2/32 -g TP-PI-a
-A TP-DI-branch -d 10.244.1.3/32 -g TP-PI-b
-A TP-GI-a -p tcp -m tcp --dport 80 -m set --match-set tp4-pods-x src -j RETURN
-A TP-GI-a -s 10.9.0.0/16 -j RETURN
-A TP-PI-a -s 10.244.1.2/32 -j RETURN
-A TP-PI-a -m comment --comment \"shop/a ingress\" -g TP-GI-a
-A TP-PI-b -j DROP";

    #[test]
    fn only_chains_of_one_pod_are_shown_in_packet_order() {
        let found = of_pod(LISTING, "10.244.1.2".parse().unwrap());
        let chains: Vec<(&str, usize)> = found
            .groups
            .iter()
            .map(|group| (group[0].split_whitespace().nth(1).unwrap(), group.len()))
            .collect();
        assert_eq!(
            chains,
            [
                ("FORWARD", 1),
                ("TOWPATH-FORWARD", 2),
                ("TOWPATH-INGRESS", 2),
                ("TP-DI-branch", 1),
                ("TP-PI-a", 2),
                ("TP-GI-a", 2)
            ]
        );
        assert_eq!(found.sets.into_iter().collect::<Vec<_>>(), ["tp4-pods-x"]);
    }

    #[test]
    fn output_is_empty_without_our_chains() {
        let found = of_pod(
            "-P FORWARD DROP\n-N FLANNEL-FWD\n-A FORWARD -j FLANNEL-FWD",
            "10.244.1.2".parse().unwrap(),
        );
        assert_eq!(found, PodChains::default());
    }
}
