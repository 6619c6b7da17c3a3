//! One record of the drop log, as readers get it.

use std::{fmt::Write as _, sync::Arc};

use serde::{Deserialize, Serialize};

/// Packets of one flow that were dropped within a minute. Fields may be added, none changes its meaning. Times are RFC
/// 3339, in UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The position of this state of the record in the log: higher than that of all states before it.
    pub cursor: u64,
    /// Identifies the record: the cursor that it had first.
    pub id: u64,
    /// The node that dropped them.
    pub node: String,
    /// When the first one was seen.
    pub first: String,
    /// When the last one was seen.
    pub last: String,
    /// How many copies the kernel made. Of many packets it copies only some.
    pub count: u64,
    /// Whether the record is complete: further packets are another record.
    pub complete: bool,
    /// Which rules dropped them: `policy`, `no-chain`, `unknown-pod`, `tunnel` or `link`.
    pub kind: String,
    /// `ingress` or `egress`, if isolation in this direction is the reason.
    pub direction: Option<String>,
    /// The sender.
    pub from: End,
    /// The receiver, after any translation of a Service's address.
    pub to: End,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6`, `ARP`, or an IP protocol number; null if it could not be read.
    pub protocol: Option<String>,
    /// The destination port; null if there is none.
    pub port: Option<u16>,
    /// The source port of the last packet; null if there is none.
    pub source_port: Option<u16>,
    /// The policies that isolate the pod in this direction, as `namespace/name`; at most ten.
    pub policies: Vec<String>,
    /// Why, in words.
    pub reason: String,
    /// What else is known, in words; null if nothing is.
    pub note: Option<String>,
}

/// One end of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct End {
    /// Its address; null if it could not be read.
    pub address: Option<String>,
    /// The pod that has the address, as `namespace/name`.
    pub pod: Option<String>,
    /// What created the pod, such as `Deployment web`.
    pub workload: Option<String>,
    /// The node of the pod, or the node that has the address.
    pub node: Option<String>,
    /// The pod's uid, if it is of the node that dropped the packets.
    #[serde(skip)]
    pub uid: Option<Arc<str>>,
}

impl End {
    /// The namespace of its pod.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.pod.as_deref().and_then(|pod| pod.split_once('/')).map(|(namespace, _)| namespace)
    }

    /// As people name it: `shop/web (Deployment web)`, `node n2 (192.0.2.2)`, `203.0.113.9`.
    fn name(&self, with_workload: bool) -> String {
        let address = self.address.as_deref().unwrap_or("unknown");
        match (&self.pod, &self.workload, &self.node) {
            (Some(pod), Some(workload), _) if with_workload => format!("{pod} ({workload})"),
            (Some(pod), ..) => pod.clone(),
            (None, _, Some(node)) => format!("node {node} ({address})"),
            (None, _, None) if address.contains(':') => format!("[{address}]"),
            (None, _, None) => address.to_owned(),
        }
    }
}

impl Record {
    /// `shop/web (Deployment web) -> shop/db:5432/TCP`.
    #[must_use]
    pub fn flow(&self) -> String {
        let mut text = format!("{} -> {}", self.from.name(true), self.to.name(false));
        match (self.port, &self.protocol) {
            // Writing into memory cannot fail.
            (Some(port), Some(protocol)) => drop(write!(text, ":{port}/{protocol}")),
            (Some(port), None) => drop(write!(text, ":{port}")),
            (None, Some(protocol)) => drop(write!(text, " {protocol}")),
            (None, None) => {}
        }
        if let Some(workload) = &self.to.workload {
            let _ = write!(text, " ({workload})");
        }
        text
    }

    /// The reason and what else is known.
    #[must_use]
    pub fn explanation(&self) -> String {
        match &self.note {
            Some(note) => format!("{}; {note}", self.reason),
            None => self.reason.clone(),
        }
    }

    /// One line for people, without its end:
    /// `06:12:03  shop/web (Deployment web) -> shop/db:5432/TCP  denied by ingress of shop/db: ...  (x12)`.
    #[must_use]
    pub fn line(&self) -> String {
        let time = self.last.split_once('T').map_or(&*self.last, |(_, time)| time);
        let time = time.split(['.', 'Z']).next().unwrap_or_default();
        let count = if self.count > 1 { format!("  (x{})", self.count) } else { String::new() };
        escaped(&format!("{time}  {}  {}{count}", self.flow(), self.explanation()))
    }
}

/// A text in which control characters, and those that change the direction of text, are written as escapes: names come
/// from others, and must not reach a terminal or a log as commands.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        let turns =
            matches!(character, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if character.is_control() || turns {
            escaped.extend(character.escape_unicode());
        } else {
            escaped.push(character);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(pod: Option<&str>, workload: Option<&str>, address: &str) -> End {
        let owned = |text: &str| text.to_owned();
        let (pod, workload) = (pod.map(owned), workload.map(owned));
        End { address: Some(owned(address)), pod, workload, ..End::default() }
    }

    fn record() -> Record {
        Record {
            last: "2026-11-26T06:12:03.250Z".to_owned(),
            count: 12,
            from: end(Some("shop/web"), Some("Deployment web"), "10.244.1.7"),
            to: end(Some("shop/db"), None, "10.244.1.9"),
            protocol: Some("TCP".to_owned()),
            port: Some(5432),
            reason: "denied by ingress of shop/db: because".to_owned(),
            ..Record::default()
        }
    }

    #[test]
    fn line_says_when_who_and_why() {
        let line = "06:12:03  shop/web (Deployment web) -> shop/db:5432/TCP  denied by ingress of shop/db: because  (x12)";
        assert_eq!(record().line(), line);
        let once = Record { count: 1, note: Some("late".to_owned()), ..record() };
        assert!(once.line().ends_with("because; late"), "{}", once.line());
    }

    #[test]
    fn ends_without_a_pod_are_nodes_or_addresses() {
        let node = End { node: Some("n2".to_owned()), ..end(None, None, "192.0.2.2") };
        let ping = Record {
            from: node,
            to: end(None, None, "fd00::9"),
            protocol: Some("ICMPv6".to_owned()),
            port: None,
            ..record()
        };
        assert_eq!(ping.flow(), "node n2 (192.0.2.2) -> [fd00::9] ICMPv6");
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        let hostile = Record { from: end(Some("shop/\u{1b}[2Jweb\n"), None, "10.0.0.1"), ..record() };
        let line = hostile.line();
        assert!(line.contains("shop/\\u{1b}[2Jweb\\u{a} ->"), "{line}");
        assert!(!line.contains(char::is_control));
        assert_eq!(escaped("a\u{202e}b"), "a\\u{202e}b");
    }
}
