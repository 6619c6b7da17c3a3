//! A file that cannot be read when the daemon starts keeps what a former run enforced from it.

use std::{fs, path::PathBuf, thread, time::Duration};

use towpath::{
    lab::{FloodFlow, Probe, Transport, Variant},
    model::Family,
};

use crate::{
    churn_flows::assert_none_arrived,
    conditions::{bed, db_admits},
    reach::TIMEOUT,
    testbed::{Bed, READY, for_both_variants, with_own_run},
    wait::wait_until,
    yaml_objects::namespace,
};

const UNREADABLE: &str = "kind: [\n";

#[test]
fn file_that_breaks_while_the_daemon_is_away_keeps_its_objects() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        bed.run(&[]).kill();
        let flows = Family::BOTH.map(|family| FloodFlow {
            from: bed.end("shop/far"),
            to: bed.address("shop/db", family),
            port: 4000,
        });
        let allowed = Family::BOTH.map(|family| {
            Probe::new(bed.end("shop/web"), bed.address("shop/db", family), Transport::Tcp(80))
        });
        let flood = bed.lab.flood(&flows, Duration::from_millis(1)).unwrap();
        let watch = bed.lab.watch(&allowed, Duration::from_millis(5), TIMEOUT).unwrap();
        // What isolates, and what admits: without either, one of the two flows changes.
        for broken in [vec!["db.yaml"], vec!["pod-db.yaml", "namespaces.yaml", "pod-web.yaml", "db.yaml"]] {
            for name in &broken {
                bed.objects().write_text(name, UNREADABLE);
            }
            let daemon = bed.run(&[]);
            thread::sleep(Duration::from_millis(500));
            let (_, status) = daemon.get("/status").unwrap();
            let told = "what a former run of the daemon read from this file stays enforced";
            assert_eq!(status.matches(told).count(), broken.len(), "{status}");
            assert_eq!(daemon.log().matches(told).count(), broken.len());
            daemon.kill();
        }
        assert_none_arrived(flood, &flows, 100, &format!("{variant:?}, files broken"));
        let watched = watch.stop();
        assert!(watched.failures.is_empty() && watched.broken.is_none() && watched.open > 100, "{watched:?}");
        // Mended, each file counts as it is.
        let daemon = bed.run(&[]);
        bed.write("namespaces.yaml", &[namespace("shop", "")]);
        for app in ["web", "db"] {
            bed.write(
                &format!("pod-{app}.yaml"),
                &[bed.manifest(&format!("shop/{app}"), &format!("app: {app}"))],
            );
        }
        bed.write("db.yaml", &[db_admits("far")]);
        bed.wait_until_reachable("shop/far", "shop/db", true, READY);
        bed.wait_until_reachable("shop/web", "shop/db", false, READY);
        wait_until("no file is said to be broken", READY, || {
            !daemon.get("/status").unwrap().1.contains("former run")
        });
    });
}

#[test]
fn file_that_is_deleted_while_the_daemon_is_away_loses_its_objects() {
    with_own_run(|| {
        let bed = bed(Variant::Nft);
        bed.run(&[]).kill();
        bed.objects().remove("db.yaml");
        let daemon = bed.run(&[]);
        assert_eq!(bed.reaches("shop/far", "shop/db"), [true; 2]);
        // And it is forgotten: a broken file with its name means nothing.
        daemon.kill();
        bed.objects().write_text("db.yaml", UNREADABLE);
        let _daemon = bed.run(&[]);
        assert_eq!(bed.reaches("shop/far", "shop/db"), [true; 2]);
    });
}

#[test]
fn half_a_saved_file_is_reported_and_ignored() {
    with_own_run(|| {
        let bed = bed(Variant::Nft);
        bed.run(&[]).kill();
        for file in saved_files(&bed) {
            let text = fs::read_to_string(&file).unwrap();
            fs::write(&file, &text[..text.len() / 2]).unwrap();
        }
        let daemon = bed.run(&[]);
        assert!(daemon.log().contains("cannot use what a former run saved; ignoring it"), "{}", daemon.log());
        assert_eq!(bed.reaches("shop/far", "shop/db"), [false; 2], "the files themselves are fine");
        daemon.kill();
        // It was saved again.
        bed.objects().write_text("db.yaml", UNREADABLE);
        let _daemon = bed.run(&[]);
        assert_eq!(bed.reaches("shop/far", "shop/db"), [false; 2]);
        assert_eq!(bed.reaches("shop/web", "shop/db"), [true; 2]);
    });
}

/// What the daemon has saved.
fn saved_files(bed: &Bed) -> Vec<PathBuf> {
    let folders = fs::read_dir(bed.folder().join("run")).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> = folders
        .filter(|path| path.is_dir())
        .flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()))
        .collect();
    assert!(!files.is_empty());
    files
}
