//! Chains and hooks: `iptables-restore` and `iptables-save`.

use std::collections::{BTreeMap, BTreeSet};

use super::{variant::Tools, watch::Journal};
use crate::{
    dataplane::{ApplyError, DataplaneError, Refusal, command::Commands, command::Output},
    model::Family,
    ruleset::{
        BuiltIn, Chain, ChainName, Object, Rule, Target,
        observed::{Content, HookState, ObservedTable},
        plan::{ChainBatch, HookEdit},
        render,
    },
};

/// A chain that nothing refers to; rules are written to it to check whether the kernel accepts them.
pub(super) const PROBE: &str = "TOWPATH-PROBE";

/// The parts of one family's filter table that concern us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Saved {
    /// Our chains, each with its rules as printed, without `-A` and the chain's name.
    pub(super) chains: BTreeMap<ChainName, Vec<String>>,
    /// Our jumps in the built-in chains.
    pub(super) hooks: BTreeMap<BuiltIn, HookState>,
    /// Our chains that rules of other programs refer to, each with such a rule.
    pub(super) foreign_uses: BTreeMap<ChainName, String>,
}

impl Saved {
    /// Parses the output of `iptables-save -t filter`. In chains of other programs it only reads the targets.
    pub(super) fn parse(text: &str) -> Self {
        let mut saved = Self::default();
        let mut seen: BTreeMap<BuiltIn, usize> = BTreeMap::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix(':') {
                let name = name.split(' ').next().unwrap_or(name);
                saved.chains.extend(ChainName::new(name).map(|name| (name, Vec::new())));
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let (chain, rest) = rule.split_once(' ').unwrap_or((rule, ""));
                if let Some(rules) = ChainName::new(chain).and_then(|chain| saved.chains.get_mut(&chain)) {
                    rules.push(rest.to_owned());
                    continue;
                }
                let at = BuiltIn::OF_ANY_VERSION.into_iter().find(|at| at.name() == chain);
                let position = at.map_or(0, |at| {
                    let seen = seen.entry(at).or_default();
                    *seen += 1;
                    *seen
                });
                let Some(target) = target(rest) else { continue };
                match at {
                    // With matches before the target it is a rule of another program.
                    Some(at) if rest == format!("-j {target}") => {
                        let hook = saved
                            .hooks
                            .entry(at)
                            .or_insert_with(|| HookState { targets: Vec::new(), first: position == 1 });
                        hook.targets.push(target);
                    }
                    _ => {
                        saved.foreign_uses.insert(target, line.to_owned());
                    }
                }
            }
        }
        saved
    }

    /// As observed state; the contents of chains remain unknown.
    pub(super) fn into_observed(self) -> ObservedTable {
        ObservedTable {
            chains: self.chains.into_keys().map(|name| (name, Content::Unknown)).collect(),
            hooks: self.hooks,
            ..ObservedTable::default()
        }
    }
}

/// The chain of ours that a rule leads to, from the part of its line after the chain's name.
fn target(rule: &str) -> Option<ChainName> {
    let mut words = rule.split(' ').rev();
    let last = ChainName::new(words.next()?)?;
    matches!(words.next(), Some("-j" | "-g")).then_some(last)
}

/// How many trials may be used to find out which chains of a batch are refused.
const PROBES: usize = 64;

/// The chains and hooks of one family's filter table.
pub(super) struct Filter<'a> {
    pub(super) commands: &'a Commands,
    pub(super) tools: &'a Tools,
    pub(super) journal: Option<&'a Journal>,
    pub(super) family: Family,
}

impl Filter<'_> {
    pub(super) fn read(&self) -> Result<Saved, DataplaneError> {
        let text = self.tools.saved(self.commands, self.family, "filter")?;
        Ok(Saved::parse(&text.unwrap_or_default()))
    }

    /// Applies a batch in one transaction, or nothing of it.
    ///
    /// A chain to remove that a rule of another program refers to cannot be removed. It is emptied instead, so that our
    /// rules no longer act through it, and the rest is applied; a warning shows that rule.
    pub(super) fn apply(&self, batch: &ChainBatch) -> Result<(), ApplyError> {
        let output = self.restore(&render::chains(self.family, batch))?;
        if output.success {
            return Ok(());
        }
        let refusals = self.refusals(batch)?;
        if !refusals.is_empty() {
            return Err(ApplyError::Refused(refusals));
        }
        let held = self.held(batch)?;
        if !held.is_empty() {
            let output = self.restore(&render::chains(self.family, &emptying(batch, &held)))?;
            if output.success {
                return Ok(());
            }
        }
        Err(output.into_error().into())
    }

    pub(super) fn restore(&self, text: &str) -> Result<Output, DataplaneError> {
        let run = || self.commands.run_with_lock(&self.tools.restore(self.family), &["--noflush"], text);
        match self.journal {
            Some(journal) => journal.record(run, |result| result.as_ref().is_ok_and(|output| output.success)),
            None => run(),
        }
    }

    /// The chains that make a failed batch fail.
    fn refusals(&self, batch: &ChainBatch) -> Result<Vec<Refusal>, DataplaneError> {
        let there = self.read()?;
        let written: BTreeSet<&ChainName> = batch.write.iter().map(|(name, _)| name).collect();
        let will_be_there = |name: &ChainName| {
            written.contains(name) || there.chains.contains_key(name) && !batch.remove.contains(name)
        };
        let mut refusals = Vec::new();
        let mut suspects = Vec::new();
        for (name, chain) in &batch.write {
            let missing = chain.rules.iter().find_map(|rule| match &rule.target {
                Target::Jump(to) | Target::Goto(to) if !will_be_there(to) => Some(to),
                _ => None,
            });
            match missing {
                Some(to) => refusals
                    .push(self.refusal(name, format!("a rule goes to the chain {to}, which is not there"))),
                None => suspects.push((name, chain)),
            }
        }
        self.probe(&suspects, &mut refusals, &mut { PROBES })?;
        self.remove_probe()?;
        Ok(refusals)
    }

    fn refusal(&self, name: &ChainName, reason: String) -> Refusal {
        Refusal { object: Object::Chain(self.family, name.clone()), reason }
    }

    /// Finds chains whose rules the kernel refuses, by bisection. Their rules go into a chain that no packet reaches,
    /// with harmless targets for other chains. When no trials are left, all untried chains are refused.
    fn probe(
        &self,
        suspects: &[(&ChainName, &Chain)],
        refusals: &mut Vec<Refusal>,
        left: &mut usize,
    ) -> Result<(), DataplaneError> {
        let Some(probe) = ChainName::new(PROBE) else { return Ok(()) };
        if suspects.is_empty() {
            return Ok(());
        }
        let Some(rest) = left.checked_sub(1) else {
            let reason = "among others that were refused; not tried by itself";
            refusals.extend(suspects.iter().map(|(name, _)| self.refusal(name, reason.to_owned())));
            return Ok(());
        };
        *left = rest;
        let rules = suspects.iter().flat_map(|(_, chain)| chain.rules.iter()).map(without_chain);
        let batch = ChainBatch { write: vec![(probe, rules.collect())], ..ChainBatch::default() };
        let output = self.restore(&render::chains(self.family, &batch))?;
        if output.success {
            return Ok(());
        }
        if let [(name, _)] = suspects {
            refusals.push(self.refusal(name, output.stderr));
            return Ok(());
        }
        let (first, second) = suspects.split_at(suspects.len() / 2);
        self.probe(first, refusals, left)?;
        self.probe(second, refusals, left)
    }

    pub(super) fn remove_probe(&self) -> Result<(), DataplaneError> {
        let Some(probe) = ChainName::new(PROBE) else { return Ok(()) };
        let batch = ChainBatch { remove: vec![probe], ..ChainBatch::default() };
        self.restore(&render::chains(self.family, &batch))?.checked().map(drop)
    }

    /// Chains of a failed batch that cannot be removed, since rules of other programs refer to them.
    fn held(&self, batch: &ChainBatch) -> Result<Vec<ChainName>, DataplaneError> {
        let there = self.read()?;
        let mut held = Vec::new();
        for name in &batch.remove {
            if let Some(rule) = there.foreign_uses.get(name) {
                tracing::warn!(
                    family = %self.family, chain = %name, rule,
                    "chain emptied but not removed: a rule of another program uses it"
                );
                held.push(name.clone());
            }
        }
        Ok(held)
    }
}

/// The batch, with `held` emptied instead of removed.
fn emptying(batch: &ChainBatch, held: &[ChainName]) -> ChainBatch {
    let mut batch = batch.clone();
    batch.remove.retain(|name| !held.contains(name));
    batch.write.extend(held.iter().map(|name| (name.clone(), [].into_iter().collect())));
    batch
}

fn without_chain(rule: &Rule) -> Rule {
    match rule.target {
        Target::Jump(_) | Target::Goto(_) => Rule::new(rule.matches.clone(), Target::Return),
        _ => rule.clone(),
    }
}

/// A batch that removes everything of ours in `saved`, except `held`, which is emptied.
pub(super) fn removal(saved: &Saved) -> ChainBatch {
    let held: Vec<ChainName> = saved.foreign_uses.keys().cloned().collect();
    let hooks =
        saved.hooks.iter().map(|(at, hook)| HookEdit { at: *at, remove: hook.targets.clone(), now: None });
    let batch = ChainBatch {
        write: Vec::new(),
        remove: saved.chains.keys().cloned().collect(),
        hooks: hooks.collect(),
    };
    let held: Vec<ChainName> = held.into_iter().filter(|name| saved.chains.contains_key(name)).collect();
    emptying(&batch, &held)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(name: &str) -> ChainName {
        ChainName::new(name).unwrap()
    }

    #[test]
    fn only_our_chains_and_unconditional_jumps_to_them_are_parsed() {
        let saved = Saved::parse(
            "# Generated by iptables-nft-save\n\
             *filter\n\
             :INPUT ACCEPT [0:0]\n\
             :FORWARD DROP [12:720]\n\
             :KUBE-FORWARD - [0:0]\n\
             :TOWPATH-FORWARD - [0:0]\n\
             :TP-GI-xxxxxxxxxxxxxxxx - [0:0]\n\
             -A INPUT -j KUBE-FIREWALL\n\
             -A INPUT -j TOWPATH-INPUT\n\
             -A FORWARD -j TOWPATH-FORWARD\n\
             -A FORWARD -j KUBE-FORWARD\n\
             -A FORWARD -j TOWPATH-FORWARD\n\
             -A KUBE-FORWARD -m comment --comment \"-A x -j TP-GI-xxxxxxxxxxxxxxxx\" -j DROP\n\
             -A KUBE-FORWARD -i eth0 -g TP-GI-xxxxxxxxxxxxxxxx\n\
             -A TOWPATH-FORWARD -d 10.0.0.1/32 -g TP-GI-xxxxxxxxxxxxxxxx\n\
             -A TOWPATH-FORWARD -j DROP\n\
             COMMIT\n",
        );
        let forward = chain("TOWPATH-FORWARD");
        let chains = BTreeMap::from([
            (
                forward.clone(),
                vec!["-d 10.0.0.1/32 -g TP-GI-xxxxxxxxxxxxxxxx".to_owned(), "-j DROP".to_owned()],
            ),
            (chain("TP-GI-xxxxxxxxxxxxxxxx"), vec![]),
        ]);
        let hooks = BTreeMap::from([
            (BuiltIn::Input, HookState { targets: vec![chain("TOWPATH-INPUT")], first: false }),
            (BuiltIn::Forward, HookState { targets: vec![forward.clone(), forward], first: true }),
        ]);
        let foreign_uses = BTreeMap::from([(
            chain("TP-GI-xxxxxxxxxxxxxxxx"),
            "-A KUBE-FORWARD -i eth0 -g TP-GI-xxxxxxxxxxxxxxxx".to_owned(),
        )]);
        assert_eq!(saved, Saved { chains, hooks, foreign_uses });
    }

    #[test]
    fn conditional_jump_to_our_chain_is_foreign() {
        let rule = "-A FORWARD -i eth0 -j TOWPATH-FORWARD";
        let saved = Saved::parse(&format!("*filter\n:TOWPATH-FORWARD - [0:0]\n{rule}\nCOMMIT\n"));
        assert!(saved.hooks.is_empty());
        assert_eq!(saved.foreign_uses, BTreeMap::from([(chain("TOWPATH-FORWARD"), rule.to_owned())]));
    }
}
