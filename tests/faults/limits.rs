//! Objects as large as the API server accepts.

use std::{net::IpAddr, time::Instant};

use towpath::{
    lab::{End, Outcome, Transport, Variant},
    model::Family,
};

use crate::{
    testbed::{Bed, for_both_variants},
    yaml_objects::{namespace, pod, policy},
};

/// `Open` and `Silent`, in both families.
#[track_caller]
fn assert_outcomes(bed: &Bed, from: End, port: u16, expected: Outcome, what: &str) {
    for family in Family::BOTH {
        let got = bed.probe(from, bed.address("shop/db", family), Transport::Tcp(port));
        assert_eq!(got, expected, "{what}, {family}");
    }
}

fn bed(variant: Variant) -> Bed {
    let bed = Bed::new(variant, &[("shop/db", 0), ("shop/near", 0), ("shop/last", 1), ("shop/no", 1)]);
    bed.write("namespaces.yaml", &[namespace("shop", "")]);
    let pods = ["db", "near", "last", "no"];
    let pods = pods.map(|app| bed.manifest(&format!("shop/{app}"), &format!("app: {app}")));
    bed.write("pods.yaml", &pods);
    bed
}

#[test]
fn objects_of_the_largest_accepted_size_are_enforced() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let (near, last, no) = (bed.end("shop/near"), bed.end("shop/last"), bed.end("shop/no"));

        let pods: Vec<String> = (0..10_000_u32)
            .map(|number| {
                let v4 = IpAddr::from((10 << 24 | 200 << 16 | number).to_be_bytes());
                let v6 = format!("fd00:10:200::{number:x}").parse().unwrap();
                pod(&format!("shop/crowd-{number}"), "app: crowd", &[v4, v6], 1, &[])
            })
            .chain([bed.manifest("shop/last", "app: crowd")])
            .collect();
        bed.write("crowd.yaml", &pods);
        let long = "p".repeat(253);
        let select = "podSelector: {matchLabels: {app: db}}";
        let takes_crowd =
            format!("{select}, ingress: [{{from: [{{podSelector: {{matchLabels: {{app: crowd}}}}}}]}}]");
        // The crowd's file defines `shop/last` differently from how the other one would.
        let others =
            ["db", "near", "no"].map(|app| bed.manifest(&format!("shop/{app}"), &format!("app: {app}")));
        bed.write("pods.yaml", &others);
        bed.write("policy.yaml", &[policy(&format!("shop/{long}"), &takes_crowd)]);
        let start = Instant::now();
        let daemon = bed.run(&[]);
        println!("{variant:?}: ready with 10,000 pods after {:?}", start.elapsed());
        assert_outcomes(&bed, last, 80, Outcome::Open, "one of 10,001");
        assert_outcomes(&bed, no, 80, Outcome::Silent, "none of 10,001");
        assert_outcomes(&bed, near, 80, Outcome::Silent, "none of 10,001");
        drop(daemon);

        // 1,000 ports that are not adjacent.
        let ports: Vec<String> = (0..1000).map(|at| format!("{{port: {}}}", 7_083 + 2 * at)).collect();
        let ports = format!("{select}, ingress: [{{ports: [{}]}}]", ports.join(", "));
        bed.write("policy.yaml", &[policy("shop/ports", &ports)]);
        bed.write("crowd.yaml", &[bed.manifest("shop/last", "app: last")]);
        let daemon = bed.run(&[]);
        assert_outcomes(&bed, no, 8081, Outcome::Open, "one of 1,000 ports");
        assert_outcomes(&bed, near, 8081, Outcome::Open, "one of 1,000 ports");
        assert_outcomes(&bed, no, 80, Outcome::Silent, "none of 1,000 ports");
        drop(daemon);

        let mut blocks: Vec<String> = (0..250_u32)
            .flat_map(|at| {
                let v4 = format!("{{ipBlock: {{cidr: 172.16.{at}.0/24, except: [172.16.{at}.128/25]}}}}");
                [v4, format!("{{ipBlock: {{cidr: \"fd11:{at:x}::/32\", except: [\"fd11:{at:x}:1::/48\"]}}}}")]
            })
            .collect();
        for family in Family::BOTH {
            let single = format!("{}/{}", bed.address("shop/last", family), family.bits());
            blocks.push(format!("{{ipBlock: {{cidr: \"{single}\"}}}}"));
        }
        let blocks = format!("{select}, ingress: [{{from: [{}]}}]", blocks.join(", "));
        bed.write("policy.yaml", &[policy("shop/blocks", &blocks)]);
        let _daemon = bed.run(&[]);
        assert_outcomes(&bed, last, 80, Outcome::Open, "one of 502 blocks");
        assert_outcomes(&bed, no, 80, Outcome::Silent, "none of 502 blocks");
    });
}
