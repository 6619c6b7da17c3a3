//! Objects that the owner of a namespace can write to harm other namespaces. The API server admits every shape, since
//! it accepts objects of up to 1.5 MB and any number of them.

use std::{fs, net::IpAddr, path::Path};

use fastrand::Rng;

/// The namespace of the hostile tenant.
pub(crate) const EVIL: &str = "evil";

/// A file and its text.
pub(crate) type File = (String, String);

/// One kind of hostile objects.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    /// The files with the objects.
    pub(crate) files: fn() -> Vec<File>,
    /// Whether it exceeds a default budget, so that the hostile pod must be closed.
    pub(crate) over_budget: bool,
    /// Whether pods of the tenant also change their labels all the time.
    pub(crate) restless: bool,
}

pub(crate) const SHAPES: [Shape; 15] = [
    shape("nothing", Vec::new, false),
    shape("20 policies of 10,000 IPv4 excepts", excepts_v4, true),
    shape("1 policy of 30,000 IPv6 excepts", excepts_v6, false),
    shape("3 policies of 11,000 rules, each with its own port and selector", sets, true),
    shape("10,000 policies", policies, true),
    shape("100 policies of 500 blocks", blocks, false),
    shape("1 policy of 15,000 blocks within its budget", large_set, false),
    shape("13 namespaces of 45,000 blocks, within their budgets", large_sets, false),
    shape("3 namespaces of 8,000 rules of a block and a port, within their budgets", rules, false),
    shape("2 namespaces of 95 selectors that match all of 2,000 pods, within their budgets", members, false),
    shape("100 policies of 1,000 ports", ports, true),
    shape("400 selectors that match all of 2,000 pods", selectors, true),
    Shape { restless: true, ..shape("1,000 label changes a second", crowd, false) },
    shape("5,000 namespaces", namespaces, false),
    shape("100,000 labels, names at their longest, 10,000 named ports", long_names, false),
];

const fn shape(name: &'static str, files: fn() -> Vec<File>, over_budget: bool) -> Shape {
    Shape { name, files, over_budget, restless: false }
}

/// A policy for all pods of the hostile namespace; `rules` is JSON.
fn policy(name: &str, direction: &str, rules: &str) -> String {
    let kind = if direction == "egress" { "Egress" } else { "Ingress" };
    format!(
        "---\n{{\"apiVersion\":\"networking.k8s.io/v1\",\"kind\":\"NetworkPolicy\",\
         \"metadata\":{{\"namespace\":\"{EVIL}\",\"name\":\"{name}\"}},\
         \"spec\":{{\"podSelector\":{{}},\"policyTypes\":[\"{kind}\"],\"{direction}\":[{rules}]}}}}\n"
    )
}

fn joined(items: impl IntoIterator<Item = String>) -> String {
    items.into_iter().collect::<Vec<_>>().join(",")
}

fn each(count: u32, document: impl Fn(u32) -> String) -> Vec<File> {
    vec![("evil.yaml".to_owned(), (0..count).map(document).collect())]
}

fn excepts_v4() -> Vec<File> {
    let policy = |at: u32| {
        let mut rng = Rng::with_seed(u64::from(at));
        let excepts = joined((0..10_000).map(|_| {
            let address = IpAddr::from(
                (rng.u64(..) >> 32).to_be_bytes().last_chunk::<4>().copied().unwrap_or_default(),
            );
            format!("\"{address}/32\"")
        }));
        let rule = format!(
            "{{\"from\":[{{\"ipBlock\":{{\"cidr\":\"0.0.0.0/0\",\"except\":[{excepts}]}}}}],\"ports\":[{{\"port\":{}}}]}}",
            1000 + at
        );
        policy(&format!("p{at}"), "ingress", &rule)
    };
    each(20, policy)
}

fn excepts_v6() -> Vec<File> {
    let mut rng = Rng::with_seed(6);
    let excepts = joined((0..30_000).map(|_| {
        let high = (rng.u64(..) >> 3) | 0x2000_0000_0000_0000;
        let bits = u128::from(high) << 64 | u128::from(rng.u64(..));
        format!("\"{}/128\"", std::net::Ipv6Addr::from(bits))
    }));
    let rule = format!("{{\"to\":[{{\"ipBlock\":{{\"cidr\":\"2000::/3\",\"except\":[{excepts}]}}}}]}}");
    each(1, |_| policy("p", "egress", &rule))
}

/// A peer: the pods of the hostile namespace whose label `key` is `value`.
fn peer(key: &str, value: u32) -> String {
    format!("{{\"podSelector\":{{\"matchLabels\":{{\"{key}\":\"v{value}\"}}}}}}")
}

fn sets() -> Vec<File> {
    each(3, |at| {
        let rules = joined((0..11_000).map(|rule| {
            let number = at * 11_000 + rule;
            format!("{{\"from\":[{}],\"ports\":[{{\"port\":{}}}]}}", peer("x", number), 1 + number)
        }));
        policy(&format!("p{at}"), "ingress", &rules)
    })
}

fn policies() -> Vec<File> {
    each(10_000, |at| {
        let rule = format!("{{\"from\":[{}],\"ports\":[{{\"port\":{}}}]}}", peer("x", at), 1 + at);
        policy(&format!("p{at}"), "ingress", &rule)
    })
}

fn block(number: u32) -> String {
    let [_, a, b, c] = (number * 2).to_be_bytes();
    format!("{{\"ipBlock\":{{\"cidr\":\"{}.{b}.{c}.7/32\"}}}}", 20 + a)
}

fn blocks() -> Vec<File> {
    each(100, |at| {
        let from = joined((0..500).map(|number| block(at * 500 + number)));
        let rules = (0..3)
            .map(|port| format!("{{\"from\":[{from}],\"ports\":[{{\"port\":{}}}]}}", at * 3 + port + 1));
        policy(&format!("p{at}"), "ingress", &joined(rules))
    })
}

fn large_set() -> Vec<File> {
    let from = joined((0..15_000).map(block));
    let rules = (0..3).map(|port| format!("{{\"from\":[{from}],\"ports\":[{{\"port\":{}}}]}}", port + 1));
    let rules = joined(rules);
    each(1, |_| policy("p", "ingress", &rules))
}

/// A pod of the node in its own namespace, and a policy for it.
fn tenant(number: u32, rules: &str) -> Vec<File> {
    let namespace = format!("{EVIL}-{number}");
    let last = u8::try_from(number).unwrap_or(u8::MAX);
    let pod = local_pod(&format!("{namespace}/pod"), IpAddr::from([10, 99, 0, last]));
    let policy = policy("p", "ingress", rules).replace(&format!("\"{EVIL}\""), &format!("\"{namespace}\""));
    vec![(format!("{namespace}.yaml"), pod + &policy)]
}

fn large_sets() -> Vec<File> {
    let of = |number: u32| {
        let from = joined((0..45_000).map(|at| block(number * 45_000 + at)));
        tenant(number, &format!("{{\"from\":[{from}]}}"))
    };
    (0..13).flat_map(of).collect()
}

fn rules() -> Vec<File> {
    let of = |number: u32| {
        let rule = |at: u32| {
            format!("{{\"from\":[{}],\"ports\":[{{\"port\":{}}}]}}", block(number * 8000 + at), 1 + at)
        };
        tenant(number, &joined((0..8000).map(rule)))
    };
    (0..3).flat_map(of).collect()
}

fn members() -> Vec<File> {
    let of = |number: u32| tenant(number, &match_all(95));
    let mut files: Vec<File> = (0..2).flat_map(of).collect();
    files.push(("crowd.yaml".to_owned(), crowd_objects(2000, 0)));
    files
}

fn ports() -> Vec<File> {
    each(100, |at| {
        let ports = joined((0..1000).map(|port| format!("{{\"port\":{}}}", 1 + 2 * (port + at))));
        policy(&format!("p{at}"), "ingress", &format!("{{\"from\":[{}],\"ports\":[{ports}]}}", peer("x", at)))
    })
}

/// A pod of another node.
fn pod(name: &str, labels: &str, number: u32, ports: &str) -> String {
    let [_, b, c, d] = number.to_be_bytes();
    format!(
        "---\n{{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{{\"namespace\":\"{EVIL}\",\"name\":\"{name}\",\
         \"labels\":{{{labels}}}}},\"spec\":{{\"nodeName\":\"n2\",\"containers\":[{{\"name\":\"main\",\
         \"image\":\"registry.example/main\",\"ports\":[{ports}]}}]}},\
         \"status\":{{\"phase\":\"Running\",\"podIPs\":[{{\"ip\":\"10.{}.{c}.{d}\"}}]}}}}\n",
        100 + b
    )
}

/// The text of a file with pods of the hostile tenant on another node, all with this label.
pub(crate) fn crowd_objects(count: u32, turn: u64) -> String {
    (0..count).map(|at| pod(&format!("crowd-{at}"), &format!("\"turn\":\"t{turn}\""), at, "")).collect()
}

/// A policy that admits a label that its pods have in every second turn.
fn crowd() -> Vec<File> {
    let rule = joined((0..50).map(|at| format!("{{\"from\":[{{\"podSelector\":{{\"matchLabels\":{{\"turn\":\"t{}\"}}}}}}],\"ports\":[{{\"port\":{}}}]}}", at % 2, 1 + at)));
    let mut files = each(1, |_| policy("p", "ingress", &rule));
    files.push(("crowd.yaml".to_owned(), crowd_objects(50, 0)));
    files
}

/// A number of rules, each with a selector that matches every pod.
fn match_all(count: u32) -> String {
    joined((0..count).map(|at| {
        let peer = format!(
            "{{\"namespaceSelector\":{{}},\"podSelector\":{{\"matchExpressions\":[{{\"key\":\"x\",\"operator\":\"NotIn\",\
             \"values\":[\"v{at}\"]}}]}}}}"
        );
        format!("{{\"from\":[{peer}],\"ports\":[{{\"port\":{}}}]}}", 1 + at)
    }))
}

fn selectors() -> Vec<File> {
    let mut files = each(1, |_| policy("p", "ingress", &match_all(400)));
    files.push(("crowd.yaml".to_owned(), crowd_objects(2000, 0)));
    files
}

fn namespaces() -> Vec<File> {
    let namespace = |at: u32| {
        format!(
            "---\n{{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{{\"name\":\"evil-{at}\",\"labels\":{{\"x\":\"v{at}\"}}}}}}\n"
        )
    };
    let rules = joined((0..500).map(|at| {
        let peer = format!("{{\"namespaceSelector\":{{\"matchLabels\":{{\"x\":\"v{at}\"}}}}}}");
        format!("{{\"from\":[{peer}],\"ports\":[{{\"port\":{}}}]}}", 1 + at)
    }));
    let mut files = each(5000, namespace);
    files.push(("policy.yaml".to_owned(), policy("p", "ingress", &rules)));
    files
}

fn long_names() -> Vec<File> {
    let labels = |count: u32| {
        joined((0..count).map(|at| {
            let prefix = "p".repeat(60);
            format!("\"{prefix}.{prefix}.example/{at}-{}\":\"{}\"", "k".repeat(50), "v".repeat(63))
        }))
    };
    let plain = joined((0..100_000).map(|at| format!("\"k{at}\":\"v\"")));
    let ports = joined((0..10_000).map(|at| format!("{{\"name\":\"n{at}\",\"containerPort\":{}}}", 1 + at)));
    let mut text = pod("plain", &plain, 1, "");
    for at in 0..20 {
        let name = format!("{}{at}", "n".repeat(240));
        text.push_str(&pod(&name, &labels(1000), 2 + at, &ports));
    }
    let names = joined((0..500).map(|at| format!("{{\"port\":\"n{at}\"}}")));
    let rule = format!("{{\"to\":[{}],\"ports\":[{names}]}}", peer("x", 1));
    vec![("evil.yaml".to_owned(), text), ("policy.yaml".to_owned(), policy("p", "egress", &rule))]
}

/// Writes files atomically, by renaming each.
pub(crate) fn write(folder: &Path, files: &[File]) {
    for (name, text) in files {
        let next = folder.join(format!("{name}.next"));
        fs::write(&next, text).expect("a file");
        fs::rename(&next, folder.join(name)).expect("a file in its place");
    }
}

/// A pod of the lab as a manifest. One of the hostile tenant has an IPv6 address as well, and its namespace comes with
/// it.
pub(crate) fn local_pod(key: &str, address: IpAddr) -> String {
    let (namespace, name) = key.split_once('/').unwrap_or(("default", key));
    let (mut v6, mut declared) = (String::new(), String::new());
    if namespace.starts_with(EVIL) {
        v6 = format!(",{{\"ip\":\"fd00::{address}\"}}");
        declared = format!(
            "---\n{{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{{\"name\":\"{namespace}\"}}}}\n"
        );
    }
    format!(
        "{declared}---\n{{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\
         \"metadata\":{{\"namespace\":\"{namespace}\",\"name\":\"{name}\",\
         \"labels\":{{\"role\":\"{name}\"}}}},\"spec\":{{\"nodeName\":\"n1\"}},\
         \"status\":{{\"phase\":\"Running\",\"podIPs\":[{{\"ip\":\"{address}\"}}{v6}]}}}}\n"
    )
}

/// The honest tenant's policy for its server: everything is denied, or its client is allowed.
pub(crate) fn honest_policy(allow: bool) -> String {
    let rule =
        if allow { "[{\"from\":[{\"podSelector\":{\"matchLabels\":{\"role\":\"client\"}}}]}]" } else { "[]" };
    format!(
        "{{\"apiVersion\":\"networking.k8s.io/v1\",\"kind\":\"NetworkPolicy\",\
         \"metadata\":{{\"namespace\":\"shop\",\"name\":\"server\"}},\
         \"spec\":{{\"podSelector\":{{\"matchLabels\":{{\"role\":\"server\"}}}},\"ingress\":{rule}}}}}\n"
    )
}

/// The peak memory of a process, in KiB.
pub(crate) fn peak_memory(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
