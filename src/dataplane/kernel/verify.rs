//! Whether our chains still hold the rules that we wrote.
//!
//! `iptables-save` prints a rule in an order of its own, leaves out what goes without saying, and knows other names for
//! some numbers; what exactly depends on its version. Nobody can write a rule the way every version prints it. So rules
//! are compared by what they ask for, and where even that differs, the tool itself is asked: the rule goes once into a
//! chain that no packet meets, and what is printed there is what it prints for it.

use std::collections::HashMap;

use super::chains::{Filter, PROBE, Saved};
use crate::{
    dataplane::DataplaneError,
    ruleset::{
        ChainName, Rule,
        observed::{Content, ObservedTable},
        plan::ChainBatch,
        render,
    },
};

/// So many odd prints are remembered; beyond, they are asked for anew.
const MOST_PRINTS: usize = 10_000;

/// How this version of the tools prints rules that it prints oddly, by how we write them.
#[derive(Debug, Default)]
pub(super) struct Prints(HashMap<String, String>);

/// A rule that is printed otherwise than it was written.
struct Suspect<'a> {
    chain: &'a ChainName,
    position: usize,
    rule: &'a Rule,
    written: String,
    printed: &'a str,
}

impl Prints {
    /// Which chains hold other rules than `expected` says, each as a sentence. Chains that are gone, or have another
    /// number of rules, are left to those who count.
    pub(super) fn differences(
        &mut self,
        filter: &Filter<'_>,
        expected: &ObservedTable,
        saved: &Saved,
    ) -> Result<Vec<String>, DataplaneError> {
        let suspects = self.suspects(filter, expected, saved);
        if suspects.is_empty() {
            return Ok(Vec::new());
        }
        self.learn(filter, &suspects)?;
        let mut findings: Vec<String> = Vec::new();
        let mut last = None;
        for suspect in suspects.iter().filter(|suspect| !self.knows(&suspect.written, suspect.printed)) {
            // One rule is told for each chain: the rest differs since it was pushed away, more often than not.
            if last.replace(suspect.chain) != Some(suspect.chain) {
                findings.push(format!(
                    "rule {} of the {} chain {} is \"{}\" instead of \"{}\"",
                    suspect.position, filter.family, suspect.chain, suspect.printed, suspect.written
                ));
            }
        }
        Ok(findings)
    }

    fn suspects<'a>(
        &self,
        filter: &Filter<'_>,
        expected: &'a ObservedTable,
        saved: &'a Saved,
    ) -> Vec<Suspect<'a>> {
        let mut suspects = Vec::new();
        for (name, content) in &expected.chains {
            let (Content::Known(chain), Some(there)) = (content, saved.chains.get(name)) else { continue };
            if there.len() != chain.rules.len() {
                continue;
            }
            for (at, (rule, printed)) in chain.rules.iter().zip(there).enumerate() {
                let written = render::rule(filter.family, rule);
                if written != *printed && !means_the_same(&written, printed) && !self.knows(&written, printed)
                {
                    suspects.push(Suspect { chain: name, position: at + 1, rule, written, printed });
                }
            }
        }
        suspects
    }

    fn knows(&self, written: &str, printed: &str) -> bool {
        self.0.get(written).is_some_and(|known| known == printed)
    }

    /// Asks the tool how it prints the rules that ought to be there.
    fn learn(&mut self, filter: &Filter<'_>, suspects: &[Suspect<'_>]) -> Result<(), DataplaneError> {
        let Some(probe) = ChainName::new(PROBE) else { return Ok(()) };
        let unknown: Vec<&Suspect<'_>> =
            suspects.iter().filter(|suspect| !self.0.contains_key(&suspect.written)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let rules = unknown.iter().map(|suspect| suspect.rule.clone()).collect();
        let batch = ChainBatch { write: vec![(probe.clone(), rules)], ..ChainBatch::default() };
        let output = filter.restore(&render::chains(filter.family, &batch))?;
        if !output.success {
            // What they name is gone, say. That is told already, or it is a difference in itself.
            tracing::debug!(error = output.stderr, "cannot check how iptables prints rules");
            return Ok(());
        }
        let printed = filter.read();
        filter.remove_probe()?;
        let printed = printed?.chains.remove(&probe).unwrap_or_default();
        if printed.len() != unknown.len() {
            // Somebody else is at it right now.
            return Ok(());
        }
        if self.0.len() > MOST_PRINTS {
            self.0.clear();
        }
        self.0.extend(unknown.iter().map(|suspect| suspect.written.clone()).zip(printed));
        Ok(())
    }
}

/// Whether two texts ask for the same, in whatever order: all matches of a rule must hold.
fn means_the_same(written: &str, printed: &str) -> bool {
    options(written) == options(printed)
}

/// The options of a rule with their values, sorted; quotes and escapes are undone. An exclamation mark belongs to the
/// option behind it: a rule that asks two sets, and of one that it is not, must not pass for the reverse.
fn options(rule: &str) -> Vec<Vec<String>> {
    let mut options: Vec<Vec<String>> = Vec::new();
    let mut is_negated = false;
    let mut characters = rule.chars().peekable();
    while let Some(first) = characters.peek().copied() {
        if first == ' ' {
            characters.next();
            continue;
        }
        let is_quoted = first == '"';
        if is_quoted {
            characters.next();
        }
        let end = if is_quoted { '"' } else { ' ' };
        let mut word = String::new();
        while let Some(character) = characters.next().filter(|character| *character != end) {
            let is_escape = is_quoted && character == '\\';
            word.extend(if is_escape { characters.next() } else { Some(character) });
        }
        if !is_quoted && word == "!" {
            is_negated = true;
            continue;
        }
        let word = if std::mem::take(&mut is_negated) { format!("! {word}") } else { word };
        match options.last_mut() {
            // A value, unless it begins an option.
            Some(option) if is_quoted || !word.trim_start_matches("! ").starts_with('-') => option.push(word),
            _ => options.push(vec![word]),
        }
    }
    options.sort();
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_quotes_make_no_difference_and_everything_else_does() {
        let written = "-p tcp -m tcp --dport 80 -s 10.0.0.0/8 -m comment --comment \"web\" -j RETURN";
        let printed = "-s 10.0.0.0/8 -p tcp -m comment --comment web -m tcp --dport 80 -j RETURN";
        assert!(means_the_same(written, printed));
        for (this, that) in [
            ("--dport 80", "--dport 81"),
            ("-j RETURN", "-j ACCEPT"),
            ("-s 10.0.0.0/8", "! -s 10.0.0.0/8"),
            ("-s 10.0.0.0/8", "-d 10.0.0.0/8"),
            ("-j RETURN", "-j RETURN -m limit --limit 1/sec"),
        ] {
            assert!(!means_the_same(written, &printed.replace(this, that)), "{that}");
        }
        assert!(!means_the_same("-s 10.0.0.1 -d 10.0.0.2", "-s 10.0.0.2 -d 10.0.0.1"));
        let set = |not: &str, name: &str| format!("-m set {not}--match-set {name} dst ");
        let written = set("", "tp4-nets-x") + &set("! ", "tp4-except-y");
        assert!(means_the_same(&written, &(set("! ", "tp4-except-y") + &set("", "tp4-nets-x"))));
        for other in [("! ", ""), ("", ""), ("! ", "! ")] {
            assert!(!means_the_same(&written, &(set(other.0, "tp4-nets-x") + &set(other.1, "tp4-except-y"))));
        }
    }

    #[test]
    fn what_is_quoted_is_one_value_whatever_stands_in_it() {
        let written = "-m comment --comment \"a \\\"b\\\" \\\\ 'c' -j x\" -j DROP";
        let printed = "-m comment --comment \"a \\\"b\\\" \\\\ \\'c\\' -j x\" -j DROP";
        assert!(means_the_same(written, printed));
        assert_eq!(options(written).iter().flatten().last().unwrap(), "comment");
        assert!(options(written).contains(&vec!["--comment".to_owned(), "a \"b\" \\ 'c' -j x".to_owned()]));
    }
}
