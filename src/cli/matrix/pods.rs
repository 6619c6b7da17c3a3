//! The matrix of single pods: as JSON for scripts, and as a table.

use std::fmt::Write as _;

use serde::Serialize;

use super::filter::Filter;
use crate::{
    cli::{
        terminal::Layout,
        words::{ByFamily, Word, by_family, port_and_protocol},
    },
    model::Family,
    policy::{Reach, Reachability},
};

/// The gap between two columns.
const GAP: &str = "  ";

/// The longest line of [`table`], in characters.
const WIDTH: usize = 160;

/// The whole table, in lines of up to 160 characters.
#[must_use]
pub fn table(reachability: &Reachability) -> String {
    part(reachability, Layout { width: WIDTH, color: false }, &Filter::everything())
}

/// One block per transport: senders are rows, receivers are columns. Below them, the legend.
///
/// Columns have the receivers' names while a line fits. Beyond that they are numbered, and each row starts with its number.
/// Flows that are filtered out are blank.
#[must_use]
pub(super) fn part(reachability: &Reachability, layout: Layout, filter: &Filter) -> String {
    if reachability.endpoints().is_empty() {
        return "There is no pod and no address to ask about.\n".to_owned();
    }
    if reachability.transports().is_empty() {
        return "No pod declares a port and no policy names one: say which to ask about with --port.\n"
            .to_owned();
    }
    let names: Vec<String> = reachability.endpoints().iter().map(ToString::to_string).collect();
    let titles: Vec<String> = reachability.transports().iter().map(ToString::to_string).collect();
    let ends = reachability.endpoints();
    let (rows, columns) = headings(names, &titles, layout.width);
    let first = rows.iter().chain(&titles).map(|text| text.chars().count()).max().unwrap_or_default();
    let mut text = String::new();
    let mut signs = vec![Reach::Allowed, Reach::Denied, Reach::Itself];
    for (transport, title) in titles.iter().enumerate() {
        line(&mut text, first, title, columns.iter().map(|name| (name.as_str(), name)));
        for (from, name) in rows.iter().enumerate() {
            let cells = columns.iter().enumerate().filter_map(|(to, column)| {
                let reach = reachability.reach(from, to, transport)?;
                let (sender, receiver) = (ends.get(from)?, ends.get(to)?);
                let is_shown = from == to || filter.shows(sender, receiver) && filter.shows_verdict(reach);
                if !is_shown {
                    return Some((" ", column));
                }
                if !signs.iter().any(|known| sign(*known) == sign(reach)) {
                    signs.push(reach);
                }
                Some((sign(reach), column))
            });
            line(&mut text, first, name, cells);
        }
        text.push('\n');
    }
    let legend: Vec<String> =
        signs.iter().map(|reach| format!("{} {}", sign(*reach), meaning(*reach))).collect();
    text.push_str(&legend.join("   "));
    text.push('\n');
    text
}

/// The headings of the rows and the columns.
fn headings(names: Vec<String>, titles: &[String], longest: usize) -> (Vec<String>, Vec<String>) {
    let width = |text: &String| text.chars().count();
    let first = names.iter().chain(titles).map(width).max().unwrap_or_default();
    if first + names.iter().map(|name| width(name) + GAP.len()).sum::<usize>() <= longest {
        return (names.clone(), names);
    }
    let digits = names.len().to_string().len();
    let rows = names.iter().enumerate().map(|(at, name)| format!("{:>digits$} {name}", at + 1)).collect();
    (rows, (1..=names.len()).map(|number| number.to_string()).collect())
}

/// A row whose cells are as wide as their columns' headings, without trailing blanks.
fn line<'a>(
    text: &mut String,
    first: usize,
    heading: &str,
    cells: impl Iterator<Item = (&'a str, &'a String)>,
) {
    let mut row = format!("{heading:<first$}");
    for (cell, column) in cells {
        let width = column.chars().count();
        // Writing to a String cannot fail.
        let _ = write!(row, "{GAP}{cell:<width$}");
    }
    text.push_str(row.trim_end());
    text.push('\n');
}

pub(super) const fn sign(reach: Reach) -> &'static str {
    match reach {
        Reach::Itself => "-",
        Reach::Allowed => ".",
        Reach::Denied => "X",
        Reach::Only(Family::V4, _) => "4",
        Reach::Only(Family::V6, _) => "6",
    }
}

pub(super) const fn meaning(reach: Reach) -> &'static str {
    match reach {
        Reach::Itself => "itself",
        Reach::Allowed => "allowed",
        Reach::Denied => "denied",
        Reach::Only(Family::V4, _) => "allowed over IPv4 only",
        Reach::Only(Family::V6, _) => "allowed over IPv6 only",
    }
}

/// What `-o json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Matrix {
    /// Every ordered pair of two different ends, for every transport.
    pub flows: Vec<MatrixFlow>,
    /// The ends that behave alike, as the table shows them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<MatrixGroup>,
}

/// Ends that behave alike: every flow from and to them has the same verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MatrixGroup {
    /// Its name in the table.
    pub name: String,
    /// The ends, as in the flows.
    pub members: Vec<String>,
}

/// One flow of a [`Matrix`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MatrixFlow {
    /// The sender: `ns/pod` or `ip:ADDRESS`.
    pub from: String,
    /// The receiver, likewise.
    pub to: String,
    /// The receiver's port; null for a protocol without ports.
    pub port: Option<u16>,
    /// TCP, UDP or SCTP; else the IP protocol number.
    pub protocol: String,
    /// Whether it passes, in the first family of the receiver that the sender has too.
    pub verdict: Word,
    /// The verdict of each family, if they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub families: Option<ByFamily>,
}

/// The same for scripts.
#[must_use]
pub fn json(reachability: &Reachability) -> Matrix {
    let flows = reachability.flows().map(|(from, to, transport, reach)| {
        let (port, protocol) = port_and_protocol(transport);
        MatrixFlow {
            from: from.to_string(),
            to: to.to_string(),
            port,
            protocol,
            verdict: Word::of(reach.allowed(None)),
            families: differing(reach),
        }
    });
    Matrix { flows: flows.collect(), groups: Vec::new() }
}

/// Leaves out the flows that are not shown.
pub(super) fn retain(matrix: &mut Matrix, reachability: &Reachability, filter: &Filter) {
    let mut shown = reachability
        .flows()
        .map(|(from, to, _, reach)| filter.shows(from, to) && filter.shows_verdict(reach));
    matrix.flows.retain(|_| shown.next().unwrap_or(true));
}

fn differing(reach: Reach) -> Option<ByFamily> {
    let of = |family| (family, reach.allowed(Some(family)));
    matches!(reach, Reach::Only(..)).then(|| by_family(Family::BOTH.map(of)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Change, Cluster, IpBlock, LabelSelector, NetworkPolicy, ObjectKey, Peer, Peers, Pod, PolicyRule,
        Ports, Requirement, Standing,
    };

    /// Pods with one address in each family. A policy isolates `db` for ingress, and lets in from `10.0.0.2`.
    fn cluster(names: &[&str]) -> Cluster {
        let mut cluster = Cluster::new();
        for (at, name) in names.iter().enumerate() {
            let addresses =
                vec![format!("10.0.0.{at}").parse().unwrap(), format!("fd00::{at}").parse().unwrap()];
            let labels = [("app", *name)].into_iter().collect();
            let pod = Pod { labels, addresses, ..Pod::new(ObjectKey::new("shop", *name)) };
            cluster.apply(Change::SetPod(pod));
        }
        let block = IpBlock::new("10.0.0.2/32".parse().unwrap(), []).unwrap();
        cluster.apply(Change::SetPolicy(NetworkPolicy {
            key: ObjectKey::new("shop", "p"),
            subject: LabelSelector::new([Requirement::equals("app", "db")]),
            ingress: Some(vec![PolicyRule { peers: Peers::Of(vec![Peer::Block(block)]), ports: Ports::Any }]),
            egress: None,
            standing: Standing::Accepted,
        }));
        cluster
    }

    fn reachability(names: &[&str], ports: &[&str]) -> Reachability {
        let ports: Vec<_> = ports.iter().map(|port| port.parse().unwrap()).collect();
        Reachability::new(&cluster(names), &["172.17.0.9".parse().unwrap()], &ports)
    }

    #[test]
    fn table_has_a_block_for_each_port_and_a_legend() {
        let expected = "\
80/TCP         shop/api  shop/db  shop/web  ip:172.17.0.9
shop/api       -         X        .         .
shop/db        .         -        .         .
shop/web       .         4        -         .
ip:172.17.0.9  .         X        .         -

53/UDP         shop/api  shop/db  shop/web  ip:172.17.0.9
shop/api       -         X        .         .
shop/db        .         -        .         .
shop/web       .         4        -         .
ip:172.17.0.9  .         X        .         -

. allowed   X denied   - itself   4 allowed over IPv4 only
";
        assert_eq!(table(&reachability(&["api", "db", "web"], &["80", "53/udp"])), expected);
    }

    #[test]
    fn columns_are_numbered_if_their_names_do_not_fit() {
        let names: Vec<String> = (0..20).map(|at| format!("warehouse-{at:02}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let text = table(&reachability(&names, &["80"]));
        let mut lines = text.lines();
        assert!(lines.next().unwrap().starts_with("80/TCP                1  2  3  4 "));
        assert!(lines.next().unwrap().starts_with(" 1 shop/warehouse-00  -  .  .  . "));
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
    }

    #[test]
    fn empty_table_says_what_is_missing() {
        assert!(table(&reachability(&["web"], &[])).contains("--port"));
        let empty = Reachability::new(&Cluster::new(), &[], &["80".parse().unwrap()]);
        assert!(table(&empty).contains("no pod"));
    }

    #[test]
    fn json_has_every_ordered_pair_and_families_only_if_they_differ() {
        let value = serde_json::to_value(json(&reachability(&["api", "db", "web"], &["80"]))).unwrap();
        let flows = value["flows"].as_array().unwrap();
        assert_eq!(flows.len(), 4 * 3);
        let to_db = |from: &str| {
            flows.iter().find(|flow| flow["from"] == from && flow["to"] == "shop/db").unwrap().clone()
        };
        let flow = |from: &str, verdict: &str| {
            serde_json::json!({
                "from": from, "to": "shop/db", "port": 80, "protocol": "TCP", "verdict": verdict,
            })
        };
        assert_eq!(to_db("shop/api"), flow("shop/api", "deny"));
        assert_eq!(to_db("ip:172.17.0.9"), flow("ip:172.17.0.9", "deny"));
        let mut differing = flow("shop/web", "allow");
        differing["families"] = serde_json::json!({"IPv4": "allow", "IPv6": "deny"});
        assert_eq!(to_db("shop/web"), differing);
    }
}
