//! What befalls the daemons and their rules.

use std::{thread, time::Duration};

use fastrand::Rng;
use towpath::{
    lab::{Node, Variant},
    model::Family,
};

use crate::{
    meter::{Meters, Window},
    our_sets::our_sets,
    wait::wait_until,
};

/// How long the kernel's state must stay the same until nothing more is expected to change it.
const QUIET: Duration = Duration::from_millis(1500);

/// How long a repair may take: the check of all rules runs every minute.
const REPAIRED: Duration = Duration::from_secs(90);

/// How long a packet that passed before the repair may be in transit, in moments.
const TRANSIT: usize = 2;

/// What another program does to the rules of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    Chains,
    Sets,
    Nftables,
}

impl Flush {
    /// One of them. Flushed sets are the rarest, since their repair may take a minute.
    pub(crate) fn any(rng: &mut Rng) -> Self {
        match rng.u8(..5) {
            0 => Self::Sets,
            1 | 2 => Self::Chains,
            _ => Self::Nftables,
        }
    }

    pub(crate) const fn command(self) -> &'static str {
        match self {
            Self::Chains => "iptables -F",
            Self::Sets => "ipset flush",
            Self::Nftables => "nft flush ruleset",
        }
    }
}

/// A flush, and the moments from it until everything was as before.
#[derive(Clone, Debug)]
pub(crate) struct Flushed {
    pub(crate) flush: Flush,
    pub(crate) window: Window,
    pub(crate) repaired: Duration,
}

/// Flushes on a node while nothing else changes, and waits until it is repaired. Other programs write their own rules
/// again at once.
pub(crate) fn flush(node: &Node, variant: Variant, flush: Flush, meters: &Meters) -> Flushed {
    let before = quiet(node, variant);
    let foreign = Family::BOTH.map(|family| foreign_rules(node, variant, family));
    let start = meters.now();
    let run = |program: &str, arguments: &[&str]| node.succeed(program, arguments).unwrap();
    match flush {
        Flush::Chains => {
            for (family, rules) in Family::BOTH.into_iter().zip(&foreign) {
                run(&variant.program(family, ""), &["-w", "-F"]);
                let restore = variant.program(family, "-restore");
                node.netns().succeed(&restore, &["-w", "--noflush"], rules).unwrap();
            }
        }
        Flush::Sets => drop(run("ipset", &["flush"])),
        Flush::Nftables => drop(run("nft", &["flush", "ruleset"])),
    }
    let repaired = wait_until(flush.command(), REPAIRED, || state(node, variant) == before);
    let end = meters.now() + TRANSIT;
    Flushed { flush, window: start..=end, repaired }
}

/// The kernel's state, once it does not change any more.
fn quiet(node: &Node, variant: Variant) -> State {
    let mut before = state(node, variant);
    loop {
        thread::sleep(QUIET);
        let now = state(node, variant);
        if now == before {
            return now;
        }
        before = now;
    }
}

/// Everything of ours: chains and hooks of both families, sets, and the tables of the guard.
type State = ([String; 2], Vec<String>, [String; 2]);

fn state(node: &Node, variant: Variant) -> State {
    let chains = Family::BOTH.map(|family| {
        let saved = saved(node, variant, family);
        let ours = saved.lines().filter(|line| is_ours(line)).map(|line| line.split(" [").next().unwrap());
        ours.collect::<Vec<_>>().join("\n")
    });
    let tables = ["bridge", "netdev"].map(|family| {
        node.succeed("nft", &["-s", "-n", "list", "table", family, "towpath"]).unwrap_or_default()
    });
    (chains, our_sets(node), tables)
}

fn saved(node: &Node, variant: Variant, family: Family) -> String {
    node.succeed(&variant.program(family, "-save"), &["-t", "filter"]).unwrap()
}

fn is_ours(line: &str) -> bool {
    line.contains("TOWPATH-") || line.contains("TP-")
}

/// The rules of other programs, as they write them.
fn foreign_rules(node: &Node, variant: Variant, family: Family) -> String {
    let saved = saved(node, variant, family);
    let rules = saved.lines().filter(|line| line.starts_with("-A ") && !is_ours(line));
    ["*filter"].into_iter().chain(rules).chain(["COMMIT\n"]).collect::<Vec<_>>().join("\n")
}
