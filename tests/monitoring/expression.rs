//! The names in an expression of `PromQL`: its metrics, each with the labels that it matches, and the labels by which it
//! groups. Prometheus itself checks the syntax.

use std::collections::BTreeSet;

/// What an expression refers to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Expression {
    pub(crate) metrics: Vec<Selector>,
    /// The labels after `by`, `on`, `without` and so on, and those that `label_replace` reads.
    pub(crate) labels: BTreeSet<String>,
}

/// A metric with its matchers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Selector {
    pub(crate) name: String,
    /// Label, operator, value.
    pub(crate) matchers: Vec<(String, String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Symbol(char),
}

const GROUPINGS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
const OPERATORS: [&str; 5] = ["and", "or", "unless", "bool", "offset"];

impl Expression {
    pub(crate) fn parse(text: &str) -> Self {
        let tokens = tokens(text);
        let mut found = Self::default();
        let mut at = 0;
        while at < tokens.len() {
            let Token::Word(word) = &tokens[at] else {
                at += 1;
                continue;
            };
            let next = tokens.get(at + 1);
            at += 1;
            if word == "label_replace" {
                found.labels.extend(source_label(&tokens[at..]));
            } else if GROUPINGS.contains(&word.as_str()) && next == Some(&Token::Symbol('(')) {
                while tokens[at] != Token::Symbol(')') {
                    if let Token::Word(label) = &tokens[at] {
                        found.labels.insert(label.clone());
                    }
                    at += 1;
                }
            } else if next == Some(&Token::Symbol('{')) {
                let end = at + tokens[at..].iter().position(|token| *token == Token::Symbol('}')).unwrap();
                found.metrics.push(Selector { name: word.clone(), matchers: matchers(&tokens[at + 1..end]) });
                at = end;
            } else if is_aggregated(next) {
                // `sum by (..) (..)`: the name of an aggregation.
            } else if next != Some(&Token::Symbol('(')) && !OPERATORS.contains(&word.as_str()) {
                found.metrics.push(Selector { name: word.clone(), matchers: Vec::new() });
            }
        }
        found
    }
}

fn is_aggregated(next: Option<&Token>) -> bool {
    matches!(next, Some(Token::Word(word)) if word == "by" || word == "without")
}

/// The fourth argument of the `label_replace` whose parenthesis is the first token.
fn source_label(call: &[Token]) -> Option<String> {
    let mut depth = 0;
    let mut texts = Vec::new();
    for token in call {
        match token {
            Token::Symbol('(') => depth += 1,
            Token::Symbol(')') if depth == 1 => break,
            Token::Symbol(')') => depth -= 1,
            Token::Text(text) if depth == 1 => texts.push(text.clone()),
            _ => {}
        }
    }
    // Those within the braces of a selector come before the four of the call.
    texts.into_iter().rev().nth(1)
}

fn matchers(tokens: &[Token]) -> Vec<(String, String, String)> {
    let mut matchers = Vec::new();
    for matcher in tokens.split(|token| *token == Token::Symbol(',')) {
        let [Token::Word(label), operator @ .., Token::Text(value)] = matcher else {
            panic!("{matcher:?}");
        };
        let operator = operator.iter().map(|token| match token {
            Token::Symbol(symbol) => *symbol,
            other => panic!("{other:?}"),
        });
        matchers.push((label.clone(), operator.collect(), value.clone()));
    }
    matchers
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if first == '"' {
            let end = 1 + rest[1..].find('"').unwrap();
            tokens.push(Token::Text(rest[1..end].to_owned()));
            end + 1
        } else if first == '[' {
            rest.find(']').unwrap() + 1
        } else if first.is_ascii_alphabetic() || first == '_' {
            let is_end = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':');
            let end = rest.find(is_end).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            end
        } else if first.is_ascii_digit() {
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.')).unwrap_or(rest.len())
        } else {
            if !first.is_whitespace() {
                tokens.push(Token::Symbol(first));
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

#[test]
fn metrics_matchers_and_labels_are_found() {
    let text = r#"max by (kind) (label_replace(rate(a_total{kind=~"x|y", node!=""}[5m]), "to", "$1", "from", "(.+)")) > 2e3
        and on (job) b or vector(0)"#;
    let found = Expression::parse(text);
    let matcher = |label: &str, operator: &str, value: &str| (label.into(), operator.into(), value.into());
    let a = Selector {
        name: "a_total".to_owned(),
        matchers: vec![matcher("kind", "=~", "x|y"), matcher("node", "!=", "")],
    };
    assert_eq!(found.metrics, [a, Selector { name: "b".to_owned(), matchers: Vec::new() }]);
    assert_eq!(found.labels, ["from", "job", "kind"].map(str::to_owned).into());
}
