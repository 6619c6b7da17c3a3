//! The rules that copy dropped packets for the drop log.
//!
//! Whoever sends many packets that are dropped must not hide those of others: each pod has a number of copies per second
//! of its own, which it uses up wherever its packets are dropped. Addresses outside of the cluster can be forged, and the
//! kernel keeps a counter for each address: these share one number, for each receiving pod where that is known.

use super::{LogLimit, Options};
use crate::{
    model::{Direction, Family},
    ruleset::{Field, Match, Rule, Target, log_prefix::LogPrefix, names},
};

/// Copies of dropped packets per second: of each pod, and of all other senders together.
const PER_SECOND: u32 = 10;

/// The rules that copy packets for which `matches` hold, which the rules after them drop.
pub(in crate::ruleset) fn logs(
    family: Family,
    options: &Options,
    prefix: &LogPrefix,
    matches: &[Match],
) -> Vec<Rule> {
    let Some(group) = options.log_group else { return Vec::new() };
    let rule = |more: &[Match]| {
        let target = Target::Log { group, prefix: prefix.to_string().into() };
        Rule::new([matches, more].concat(), target)
    };
    let all = Match::Limit { per_second: PER_SECOND };
    if options.log_limit == LogLimit::OfARule {
        return vec![rule(&[all])];
    }
    let each = |field| Match::LimitEach { per_second: PER_SECOND, field };
    let (set, field) = (names::all_pods(family), Field::Source);
    let of_pods = [Match::Set { set: set.clone(), field }, each(field)];
    let of_others = Match::NotInSet { set, field };
    match prefix {
        // What a pod is isolated for sends from its own address.
        LogPrefix::Policy(Direction::Egress, _) => vec![rule(&[each(Field::Source)])],
        // The receiver is a pod of this node.
        LogPrefix::Policy(Direction::Ingress, _) => {
            vec![rule(&of_pods), rule(&[of_others, each(Field::Destination)])]
        }
        LogPrefix::UnknownPod | LogPrefix::Tunnel => vec![rule(&of_pods), rule(&[of_others, all])],
        // Rare, or no pod's own address.
        LogPrefix::NoChain(_) | LogPrefix::Link => vec![rule(&[all])],
    }
}

/// The end of a chain whose packets are dropped.
pub(in crate::ruleset) fn drop_unconditionally(
    family: Family,
    options: &Options,
    prefix: &LogPrefix,
) -> Vec<Rule> {
    let mut rules = logs(family, options, prefix, &[]);
    rules.push(Rule::new([], Target::Drop));
    rules
}
