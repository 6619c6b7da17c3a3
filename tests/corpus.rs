//! The kept inputs of the fuzz targets, and random changes of them: what the targets check holds for all of these
//! without cargo-fuzz as well.

#![cfg(test)]

#[path = "support/env.rs"]
mod env;

use std::{
    collections::BTreeSet,
    fs, panic,
    path::{Path, PathBuf},
};

use fastrand::Rng;
use towpath::{
    dataplane::kernel::fuzzing::{drops, netlink, tools},
    gate::fuzzing::gate,
    k8s::{manifest::fuzzing::manifest, watch::fuzzing::convert},
};

/// Checks what must hold for an input.
type Property = fn(&[u8]);

/// Every target, with what it checks.
const TARGETS: [(&str, Property); 6] = [
    ("convert", convert),
    ("drops", drops),
    ("gate", gate),
    ("manifest", manifest),
    ("netlink", netlink),
    ("tools", tools),
];

/// How many bytes the kept inputs may have in all.
const MOST: usize = 1 << 20;

fn inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Checks an input, and prints it if the check fails.
fn check(property: Property, input: &[u8], what: &str) {
    if let Err(failure) = panic::catch_unwind(|| property(input)) {
        println!("{what}: {:?}", String::from_utf8_lossy(input));
        panic::resume_unwind(failure);
    }
}

/// A copy with a few pieces cut out, doubled or replaced, some by pieces of another input.
fn changed(input: &[u8], other: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    let piece = |of: &[u8], rng: &mut Rng| {
        let start = rng.usize(..=of.len());
        start..(start + rng.usize(..=8.min(of.len() - start)))
    };
    for _ in 0..rng.usize(1..5) {
        let at = piece(&bytes, rng);
        let with = match rng.u8(..5) {
            0 => Vec::new(),
            1 => bytes[at.clone()].repeat(2),
            2 => other[piece(other, rng)].to_vec(),
            3 => vec![rng.u8(..); at.len()],
            _ => bytes[at.clone()].iter().map(|byte| byte ^ (1 << rng.u8(..8))).collect(),
        };
        bytes.splice(at, with);
    }
    bytes
}

#[test]
fn every_target_has_a_kept_corpus_that_passes() {
    let mut bytes = 0;
    for (target, property) in TARGETS {
        let inputs = inputs(target);
        assert!(inputs.len() >= 10, "{target}: {} inputs", inputs.len());
        for (path, input) in inputs {
            bytes += input.len();
            check(property, &input, &path.display().to_string());
        }
    }
    assert!(bytes < MOST, "{bytes} bytes: minimise them with `cargo fuzz cmin`");
}

#[test]
fn random_changes_of_the_kept_inputs_pass() {
    let count: usize = env::number("TOWPATH_MUTATIONS", 10);
    let seed: u64 = env::number("TOWPATH_SEED", fastrand::u64(..));
    println!("TOWPATH_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    for (target, property) in TARGETS {
        let inputs = inputs(target);
        for (path, input) in &inputs {
            for _ in 0..count {
                let (_, other) = &inputs[rng.usize(..inputs.len())];
                check(property, &changed(input, other, &mut rng), &path.display().to_string());
            }
        }
    }
}

#[test]
fn targets_of_cargo_fuzz_are_those_of_this_test() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: BTreeSet<String> = names.collect();
    assert_eq!(names, TARGETS.map(|(target, _)| format!("{target}.rs")).into());
}
