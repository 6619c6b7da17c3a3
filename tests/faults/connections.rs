//! Established connections while policy changes.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use towpath::{
    lab::{Pulse, Stream, Variant},
    model::Family,
};

use crate::{
    testbed::{Bed, for_both_variants},
    wait::wait_until,
    yaml_objects::{namespace, policy},
};

fn bed(variant: Variant) -> Bed {
    let bed = Bed::new(variant, &[("shop/web", 0), ("shop/db", 0), ("shop/far", 1)]);
    bed.write("namespaces.yaml", &[namespace("shop", "")]);
    let pods = ["web", "db", "far"].map(|app| bed.manifest(&format!("shop/{app}"), &format!("app: {app}")));
    bed.write("pods.yaml", &pods);
    bed.write("db.yaml", &[db_admits("[web, far]")]);
    bed
}

fn db_admits(apps: &str) -> String {
    policy(
        "shop/db",
        &format!(
            "podSelector: {{matchLabels: {{app: db}}}}, \
             ingress: [{{from: [{{podSelector: {{matchExpressions: \
             [{{key: app, operator: In, values: {apps}}}]}}}}]}}]"
        ),
    )
}

fn streams(bed: &Bed, from: &str) -> Vec<Stream> {
    let to = |family| SocketAddr::new(bed.address("shop/db", family), 80);
    let open = |family| bed.lab.open_stream(bed.pod(from), to(family), Duration::from_secs(2)).unwrap();
    Family::BOTH.map(open).into()
}

fn pulses(streams: &mut [Stream], within: Duration) -> Vec<Pulse> {
    streams.iter_mut().map(|stream| stream.pulse(within).unwrap()).collect()
}

/// A server in the pod `shop/db` that sends continuously, and a client in `from` that only receives.
struct Feed {
    last_received: Arc<Mutex<Instant>>,
    stop: Arc<AtomicBool>,
}

impl Feed {
    fn start(bed: &Bed, from: &str, family: Family) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let last_received = Arc::new(Mutex::new(Instant::now()));
        let to = SocketAddr::new(bed.address("shop/db", family), 90);
        let server = bed.lab.pod(bed.pod("shop/db")).unwrap().netns();
        let listener = server.run(move || TcpListener::bind(to).unwrap()).unwrap();
        let server_stop = stop.clone();
        let serve = move || {
            let (mut connection, _) = listener.accept().unwrap();
            // The next one may listen here as soon as this one is connected.
            drop(listener);
            connection.set_nodelay(true).unwrap();
            while !server_stop.load(Ordering::Relaxed) && connection.write_all(b"tick\n").is_ok() {
                thread::sleep(Duration::from_millis(5));
            }
        };
        drop(server.start_thread("server", serve).unwrap());
        let client = bed.lab.pod(bed.pod(from)).unwrap().netns();
        let connect = move || TcpStream::connect_timeout(&to, Duration::from_secs(2)).unwrap();
        let mut connection = client.run(connect).unwrap();
        let (client_stop, received) = (stop.clone(), last_received.clone());
        connection.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 1024];
            while !client_stop.load(Ordering::Relaxed) {
                match connection.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(_) => *received.lock().unwrap() = Instant::now(),
                    Err(_) => {}
                }
            }
        });
        Self { last_received, stop }
    }

    fn silence(&self) -> Duration {
        self.last_received.lock().unwrap().elapsed()
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[test]
fn connection_that_is_no_longer_allowed_is_cut_even_while_its_server_sends() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let daemon = bed.run(&[]);
        for from in ["shop/web", "shop/far"] {
            bed.write("db.yaml", &[db_admits("[web, far]")]);
            bed.wait_until_reachable(from, "shop/db", true, Duration::from_secs(5));
            let mut streams = streams(&bed, from);
            assert_eq!(pulses(&mut streams, Duration::from_secs(1)), [Pulse::Through; 2]);
            let feeds = Family::BOTH.map(|family| Feed::start(&bed, from, family));
            thread::sleep(Duration::from_millis(200));
            assert!(feeds.iter().all(|feed| feed.silence() < Duration::from_millis(150)));
            let start = Instant::now();
            bed.write("db.yaml", &[db_admits("[none]")]);
            wait_until("the client receives nothing", Duration::from_secs(3), || {
                feeds.iter().all(|feed| feed.silence() > Duration::from_millis(500))
            });
            let cut = start.elapsed().saturating_sub(feeds.iter().map(Feed::silence).min().unwrap());
            println!("{variant:?}: {from}: cut {cut:?} after its policy was written");
            assert!(cut < Duration::from_secs(1), "{cut:?}");
            let pulses = pulses(&mut streams, Duration::from_millis(300));
            assert!(!pulses.contains(&Pulse::Through), "{pulses:?}");
            // It does not recover.
            thread::sleep(Duration::from_millis(700));
            assert!(feeds.iter().all(|feed| feed.silence() > Duration::from_millis(700)));
        }
        assert!(daemon.metric("towpath_connections_cut_total") >= 8.0);
    });
}

#[test]
fn established_connection_is_kept_with_the_keep_option() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let daemon = bed.run(&["--established", "keep"]);
        let mut streams = streams(&bed, "shop/web");
        assert_eq!(pulses(&mut streams, Duration::from_secs(1)), [Pulse::Through; 2]);
        bed.write("db.yaml", &[db_admits("[none]")]);
        bed.wait_until_reachable("shop/web", "shop/db", false, Duration::from_secs(5));
        thread::sleep(Duration::from_millis(800));
        assert_eq!(pulses(&mut streams, Duration::from_secs(1)), [Pulse::Through; 2]);
        assert!(daemon.metric("towpath_connections_cut_total") < 1.0);
    });
}

#[test]
fn connection_that_stays_allowed_survives_other_changes_restarts_and_cuts() {
    for_both_variants(|variant| {
        let bed = bed(variant);
        let first = bed.run(&[]);
        let mut kept: Vec<Stream> =
            ["shop/web", "shop/far"].iter().flat_map(|from| streams(&bed, from)).collect();
        let feed = Feed::start(&bed, "shop/web", Family::V4);
        let mut assert_kept = |what: &str| {
            assert_eq!(pulses(&mut kept, Duration::from_secs(1)), [Pulse::Through; 4], "{variant:?}: {what}");
            assert!(feed.silence() < Duration::from_millis(300), "{variant:?}: {what}");
        };
        assert_kept("initially");
        for turn in 0..10 {
            bed.write("other.yaml", &[policy("shop/other", "podSelector: {matchLabels: {app: none}}")]);
            bed.write("db.yaml", &[db_admits(if turn % 2 == 0 { "[web, far, x]" } else { "[far, web]" })]);
            thread::sleep(Duration::from_millis(60));
            assert_kept("a policy is rewritten");
        }
        first.kill();
        let second = bed.run(&[]);
        thread::sleep(Duration::from_millis(700));
        assert_kept("killed and restarted");
        assert!(second.terminate().success());
        let third = bed.run(&[]);
        let extra = policy("shop/extra", "podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]");
        bed.write("extra.yaml", &[extra]);
        bed.wait_until_reachable("shop/far", "shop/web", false, Duration::from_secs(5));
        thread::sleep(Duration::from_millis(700));
        assert_kept("the client's ingress became isolated");
        drop(third);
    });
}
