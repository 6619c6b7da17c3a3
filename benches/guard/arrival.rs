//! How long a new pod's interface is in a bridge of pods until it is guarded, and until it is bound to its pod.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use towpath::lab::{
    Capture, Netns, RawSocket, Tap, Topology, Variant,
    frame::{Ip, Link, Token, protocol},
};

use crate::{
    Size, quantile,
    testbed::{Bed, PORT, pod_object},
};

/// The kind in a frame's token, between the number of its pod and its sequence number.
const FORGED: u32 = 1 << 20;
const OWN: u32 = 2 << 20;
const SEQUENCE: u32 = (1 << 20) - 1;

/// How long frames are sent: the guard must be active long before.
const WATCHED: Duration = Duration::from_millis(400);
const BEAT: Duration = Duration::from_micros(100);

type Seen = Arc<Mutex<Vec<(u32, Instant)>>>;

pub(crate) fn measure(size: Size) {
    println!("milliseconds for {} pods one after another: median, p99, worst", size.arrivals);
    for known in [false, true] {
        pods(size, known);
    }
}

fn pods(size: Size, known: bool) {
    let bed = Bed::new(Topology::Bridge, 10);
    let address = |number: u8| IpAddr::from([10, 244, 1, 100 + number]);
    if known {
        let objects = (0..size.arrivals).map(|number| pod_object(&format!("new-{number}"), address(number)));
        bed.write("new.yaml", &objects.collect::<String>());
    }
    let mut daemon = bed.daemon(Variant::Nft, true);
    let seen: Seen = Arc::default();
    let writes = seen.clone();
    let capture = Capture::start(bed.inside(0), Tap::Frames, move |frame| {
        let at = Instant::now();
        let mut seen = writes.lock().expect("a list");
        seen.extend(Token::find(frame).map(|token| (token.0, at)));
    })
    .expect("a capture");
    let (mut from_link, mut from_up, mut from_address) = (Vec::new(), Vec::new(), Vec::new());
    let (mut bound, mut leaked, mut shut) = (Vec::new(), 0, 0);
    for number in 0..size.arrivals {
        let netns = Netns::new(format!("new-{number}")).expect("a namespace");
        let interface = format!("new{number}");
        let linked = Instant::now();
        bed.netns()
            .ip(&[
                format!("link add {interface} type veth peer name eth0 netns {}", netns.path()),
                format!("link set {interface} master cni0 up"),
            ])
            .expect("a link");
        let raw = RawSocket::open(&netns, "eth0").expect("a raw socket");
        let to = bed.address(0);
        let link = Link { source: raw.mac(), destination: bed.mac(0) };
        let frame = move |source: IpAddr, kind: u32, sequence: u32| {
            let ip = Ip::new(source, to);
            let token = Token(u32::from(number) << 24 | kind | sequence).bytes();
            link.ip(&ip.packet(protocol::UDP, &ip.udp(9, PORT, &token)))
        };
        // The forged one has the address of another pod of the node.
        let (other, this) = (bed.address(2), address(number));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let sender = netns
            .start_thread("sender", move || {
                for sequence in 0..SEQUENCE {
                    // Refused until the interface is up.
                    let _ = raw.send(&frame(other, FORGED, sequence));
                    let _ = raw.send(&frame(this, OWN, sequence));
                    sleep(BEAT);
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                }
            })
            .expect("a sender");
        let up = Instant::now();
        netns
            .ip(&["link set eth0 up".to_owned(), format!("addr add {}/24 dev eth0", address(number))])
            .expect("an address");
        let addressed = Instant::now();
        sleep(WATCHED);
        stop.store(true, Ordering::Relaxed);
        sender.join().expect("a sender");
        let seen = std::mem::take(&mut *seen.lock().expect("a list"));
        let of = |kind: u32| {
            let wanted = u32::from(number) << 24 | kind;
            let frames = seen.iter().filter(move |(token, _)| token & !SEQUENCE == wanted);
            frames.map(|(token, at)| (token & SEQUENCE, *at))
        };
        let last = of(FORGED).next_back().map(|(_, at)| at);
        leaked += of(FORGED).count();
        let since = |start: Instant, at: Option<Instant>| {
            at.map_or(0.0, |at| at.saturating_duration_since(start).as_secs_f64() * 1e3)
        };
        from_link.push(since(linked, last));
        from_up.push(since(up, last));
        from_address.push(since(addressed, last));
        // After the last forged one, and after the last of its own that was dropped.
        let own: Vec<(u32, Instant)> = of(OWN).collect();
        let gap = own.windows(2).rposition(|pair| pair[1].0 != pair[0].0 + 1);
        shut += usize::from(gap.is_some());
        let rest = gap.map_or(&own[..], |gap| &own[gap + 1..]);
        let guarded = last.unwrap_or(linked);
        let first = rest.iter().map(|(_, at)| *at).find(|at| *at > guarded);
        bound.push(since(addressed, Some(first.expect("the pod's own frames arrive once it is guarded"))));
    }
    drop(capture);
    daemon.stop().expect("its end");
    println!("  the pod's object is {}:", if known { "there before" } else { "not there" });
    for (name, values) in [
        ("the last forged frame arrived, after the start of `ip link add`", from_link),
        ("after the start of the `ip` that sets the interface up and gives it its address", from_up),
        ("after the end of that", from_address),
        ("the pod's own frames passed for good, after the end of that", bound),
    ] {
        let at = |share| quantile(values.clone(), share);
        println!("    {name}: {:.1}, {:.1}, {:.1}", at(0.5), at(0.99), at(1.0));
    }
    println!(
        "    forged frames that arrived: {leaked}; pods whose own frames were dropped for a while: {shut}"
    );
}
