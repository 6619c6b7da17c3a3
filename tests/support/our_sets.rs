//! Our sets in the kernel.

use towpath::lab::Node;

/// The sets of towpath on a node with their members, as sorted lines of `ipset save` without counters.
pub(crate) fn our_sets(node: &Node) -> Vec<String> {
    let text = node.succeed("ipset", &["save"]).unwrap();
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| line.contains(" tp4-") || line.contains(" tp6-"))
        .map(|line| line.split(" packets ").next().unwrap().to_owned())
        .collect();
    lines.sort();
    lines
}
