//! Whether our chains still hold the rules that we wrote.
//!
//! `iptables-save` prints a rule in its own order, leaves out defaults, and uses other names for some numbers; the
//! details depend on its version. No program can write a rule the way every version prints it. So rules are compared by
//! their options, and if even those differ, the tool itself is used: the rule is written once to a chain that no packet
//! reaches, and read back as this version prints it.

use std::collections::HashMap;

use super::chains::{Filter, PROBE, Saved};
use crate::{
    dataplane::{DataplaneError, Difference, drift::Finding},
    ruleset::{
        ChainName, Rule,
        observed::{Content, ObservedTable},
        plan::ChainBatch,
        render,
    },
};

/// How many differing prints are cached; beyond that they are learned again.
const MOST_PRINTS: usize = 10_000;

/// How this version of the tools prints rules that it prints differently, by how we write them.
#[derive(Debug, Default)]
pub(super) struct Prints(HashMap<String, String>);

/// A rule that is printed differently from how it was written.
struct Suspect<'a> {
    chain: &'a ChainName,
    position: usize,
    rule: &'a Rule,
    written: String,
    printed: &'a str,
}

impl Prints {
    /// Which chains hold other rules than `expected`, each as a sentence. Missing chains, and those with another number
    /// of rules, are left to the comparison of counts.
    pub(super) fn differences(
        &mut self,
        filter: &Filter<'_>,
        expected: &ObservedTable,
        saved: &Saved,
    ) -> Result<Vec<Finding>, DataplaneError> {
        let suspects = self.suspects(filter, expected, saved);
        if suspects.is_empty() {
            return Ok(Vec::new());
        }
        self.learn(filter, &suspects)?;
        let mut findings = Vec::new();
        let mut last = None;
        for suspect in suspects.iter().filter(|suspect| !self.knows(&suspect.written, suspect.printed)) {
            // Only one rule per chain is reported: usually the others differ because they were shifted.
            if last.replace(suspect.chain) != Some(suspect.chain) {
                let text = format!(
                    "rule {} of the {} chain {} is \"{}\" instead of \"{}\"",
                    suspect.position, filter.family, suspect.chain, suspect.printed, suspect.written
                );
                let (family, name) = (filter.family, suspect.chain.clone());
                findings.push((text, Difference::Chain { family, name, exists: true }));
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

    /// Finds out how the tool prints the desired rules.
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
            // For example, what they refer to is gone. That is already reported, or it is drift in itself.
            tracing::debug!(error = output.stderr, "cannot check how iptables prints rules");
            return Ok(());
        }
        let printed = filter.read();
        filter.remove_probe()?;
        let printed = printed?.chains.remove(&probe).unwrap_or_default();
        if printed.len() != unknown.len() {
            // Another program is changing the chain right now.
            return Ok(());
        }
        if self.0.len() > MOST_PRINTS {
            self.0.clear();
        }
        self.0.extend(unknown.iter().map(|suspect| suspect.written.clone()).zip(printed));
        Ok(())
    }
}

/// Whether two rules have the same options, in any order: all matches of a rule must hold.
pub(super) fn means_the_same(written: &str, printed: &str) -> bool {
    options(written) == options(printed)
}

/// The options of a rule with their values, sorted; quotes and escapes are undone. An exclamation mark belongs to the
/// option after it: a rule with two set matches, one of them negated, must not equal the one with the other negated.
pub(super) fn options(rule: &str) -> Vec<Vec<String>> {
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
            // A value, unless it starts an option.
            Some(option) if is_quoted || !word.trim_start_matches("! ").starts_with('-') => option.push(word),
            _ => options.push(vec![word]),
        }
    }
    options.sort();
    options
}

#[cfg(test)]
mod tests {
    use super::{
        super::variant::{Tools, Variant},
        *,
    };
    use crate::{
        dataplane::command::Commands,
        model::Family,
        ruleset::{Match, Target},
    };

    #[test]
    fn only_order_and_quotes_are_insignificant() {
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
    fn quoted_text_is_one_value() {
        let written = "-m comment --comment \"a \\\"b\\\" \\\\ 'c' -j x\" -j DROP";
        let printed = "-m comment --comment \"a \\\"b\\\" \\\\ \\'c\\' -j x\" -j DROP";
        assert!(means_the_same(written, printed));
        assert_eq!(options(written).iter().flatten().last().unwrap(), "comment");
        assert!(options(written).contains(&vec!["--comment".to_owned(), "a \"b\" \\ 'c' -j x".to_owned()]));
    }

    #[test]
    fn only_rules_with_unknown_options_need_a_closer_comparison() {
        let (commands, tools) = (Commands::default(), Tools::of(Variant::Nft));
        let filter = Filter { commands: &commands, tools: &tools, journal: None, family: Family::V4 };
        let chain = ChainName::new("TOWPATH-FORWARD").unwrap();
        let source = Match::Source("10.0.0.0/8".parse().unwrap());
        let rules = [
            Rule::new([Match::Protocol(47), source], Target::Return),
            Rule::new([Match::Protocol(4)], Target::Drop),
        ];
        let written = rules.each_ref().map(|rule| render::rule(Family::V4, rule));
        let mut expected = ObservedTable::default();
        expected.chains.insert(chain.clone(), Content::Known(rules.into_iter().collect()));
        let suspects = |prints: &Prints, printed: [&str; 2]| -> Vec<(usize, String)> {
            let rules = printed.map(str::to_owned).to_vec();
            let saved = Saved { chains: [(chain.clone(), rules)].into(), ..Saved::default() };
            let suspects = prints.suspects(&filter, &expected, &saved);
            suspects.into_iter().map(|suspect| (suspect.position, suspect.written)).collect()
        };
        let [first, second] = written.each_ref().map(String::as_str);
        let mut prints = Prints::default();
        assert_eq!(suspects(&prints, [first, second]), []);
        let in_another_order = "-s 10.0.0.0/8 -p 47 -j RETURN";
        assert_ne!(first, in_another_order);
        assert_eq!(suspects(&prints, [in_another_order, second]), []);
        let by_number = "-p 4 -j DROP";
        assert_eq!(suspects(&prints, [first, by_number]), [(2, second.to_owned())]);
        prints.0.insert(second.to_owned(), by_number.to_owned());
        assert_eq!(suspects(&prints, [first, by_number]), [], "this is how it is printed");
        assert_eq!(suspects(&prints, [first, "-j DROP"]), [(2, second.to_owned())]);
    }
}
