//! Connections of real packets through a node, cut when a rule denies them.
//!
//! ```text
//! client 10.1.1.2 --- 10.1.1.1 node 10.1.2.1 --- 10.1.2.2 server
//! ```

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use towpath::dataplane::kernel::conntrack::{Conntrack, EstablishedFlow};

use crate::fixtures::{in_namespace, sh};

const CLIENT: &str = "10.1.1.2";
const SERVER: &str = "10.1.2.2";

/// Two threads with a namespace each, connected to this thread's namespace.
struct Pods {
    client: Pod,
    server: Pod,
}

/// A thread that runs the work sent to it in its own namespace.
struct Pod {
    work: mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Pod {
    /// Connects it to this thread's namespace by a veth pair; the node's end has the first address of the network.
    fn new(name: &str, network: &str) -> Self {
        let (work, tasks) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (ready, thread) = mpsc::channel();
        thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            ready.send(nix::unistd::gettid()).unwrap();
            for task in tasks {
                task();
            }
        });
        let thread = thread.recv().unwrap();
        sh(&format!(
            "ip link add {name} type veth peer name eth0 netns {thread} && ip link set {name} up &&
             ip address add {network}.1/24 dev {name}"
        ));
        let pod = Self { work };
        let network = network.to_owned();
        pod.run(move || {
            sh(&format!(
                "ip address add {network}.2/24 dev eth0 && ip link set eth0 up &&
                 ip route add default via {network}.1"
            ))
        });
        pod
    }

    fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.work.send(Box::new(move || done.send(task()).unwrap())).unwrap();
        result.recv().unwrap()
    }
}

impl Pods {
    fn new() -> Self {
        let pods = Self { client: Pod::new("client", "10.1.1"), server: Pod::new("server", "10.1.2") };
        sh("ip link set lo up && echo 1 > /proc/sys/net/ipv4/ip_forward");
        // A rule must enable connection tracking.
        sh("iptables-nft -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
        pods
    }

    /// A TCP connection on which both ends send continuously; counts what each end receives.
    fn connect(&self, address: &'static str, port: u16) -> Connection {
        let listener = self.server.run(move || TcpListener::bind((SERVER, port)).unwrap());
        let client = self.client.run(move || TcpStream::connect(address).unwrap());
        let (server, _) = listener.accept().unwrap();
        Connection {
            at_server: transfer(&server, &client),
            at_client: transfer(&client, &server),
            _ends: (server, client),
        }
    }
}

/// Sends from one end every few milliseconds, and counts what the other one receives.
fn transfer(to: &TcpStream, from: &TcpStream) -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(0));
    let (mut to, mut from, counter) =
        (to.try_clone().unwrap(), from.try_clone().unwrap(), Arc::clone(&count));
    thread::spawn(move || {
        while from.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok(length @ 1..) = to.read(&mut bytes) {
            counter.fetch_add(u64::try_from(length).unwrap(), Ordering::Relaxed);
        }
    });
    count
}

struct Connection {
    at_server: Arc<AtomicU64>,
    at_client: Arc<AtomicU64>,
    _ends: (TcpStream, TcpStream),
}

impl Connection {
    /// Whether both ends receive data.
    fn is_alive(&self) -> bool {
        let (server, client) = self.received();
        server > 5 && client > 5
    }

    /// How many bytes the server, and the client, receive in 800 ms.
    fn received(&self) -> (u64, u64) {
        let before = (self.at_server.load(Ordering::Relaxed), self.at_client.load(Ordering::Relaxed));
        thread::sleep(Duration::from_millis(800));
        (self.at_server.load(Ordering::Relaxed) - before.0, self.at_client.load(Ordering::Relaxed) - before.1)
    }
}

fn denies(port: u16) -> impl Fn(&EstablishedFlow) -> bool {
    move |flow| {
        let (source, destination) = (CLIENT.parse().unwrap(), SERVER.parse().unwrap());
        *flow == EstablishedFlow { source, destination, protocol: 6, destination_port: port }
    }
}

#[test]
fn denied_connection_is_cut_while_its_server_sends_and_an_allowed_one_continues() {
    in_namespace(|| {
        let pods = Pods::new();
        let denied = pods.connect("10.1.2.2:80", 80);
        let allowed = pods.connect("10.1.2.2:81", 81);
        assert!(denied.is_alive());
        sh("iptables-nft -A FORWARD -s 10.1.1.2 -p tcp --dport 80 -j DROP");
        assert!(denied.is_alive(), "the rule alone does not end an established connection");
        let mut conntrack = Conntrack::open().unwrap();
        assert_eq!(conntrack.cut(denies(80)).unwrap(), 1);
        thread::sleep(Duration::from_millis(300));
        assert_eq!(denied.received().0, 0, "nothing from the client arrives");
        assert_eq!(denied.received(), (0, 0), "nothing from the server arrives without acknowledgements");
        assert!(allowed.is_alive());
        assert_eq!(conntrack.cut(denies(80)).unwrap(), 0, "the connection was cut already");
        assert_eq!(denied.received(), (0, 0));
    });
}

#[test]
fn reconnection_from_the_same_port_is_evaluated_as_new() {
    in_namespace(|| {
        let pods = Pods::new();
        let listener = pods.server.run(|| TcpListener::bind((SERVER, 80)).unwrap());
        let connect = || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            let address = |text: &str| text.parse::<std::net::SocketAddr>().unwrap().into();
            socket.bind(&address("10.1.1.2:40000")).unwrap();
            // Closing resets the connection, so that nothing remains at the client.
            socket.set_linger(Some(Duration::ZERO)).unwrap();
            socket.connect_timeout(&address("10.1.2.2:80"), Duration::from_millis(1500)).map(|()| socket)
        };
        let first = pods.client.run(connect).unwrap();
        let server = listener.accept().unwrap();
        sh("iptables-nft -A FORWARD -s 10.1.1.2 -p tcp --dport 80 -j DROP");
        assert_eq!(Conntrack::open().unwrap().cut(denies(80)).unwrap(), 1);
        drop(first);
        assert!(pods.client.run(connect).is_err());
        sh("iptables-nft -D FORWARD -s 10.1.1.2 -p tcp --dport 80 -j DROP");
        drop(server);
        assert!(
            pods.client.run(connect).is_ok(),
            "the cut does not affect a connection that is allowed again"
        );
    });
}

#[test]
fn connection_through_a_service_is_cut_by_its_backend_pod() {
    in_namespace(|| {
        let pods = Pods::new();
        sh(
            "iptables-nft -t nat -A PREROUTING -d 10.96.0.1 -p tcp --dport 80 -j DNAT --to-destination 10.1.2.2:8080",
        );
        let connection = pods.connect("10.96.0.1:80", 8080);
        assert!(connection.is_alive());
        sh("iptables-nft -A FORWARD -s 10.1.1.2 -p tcp --dport 8080 -j DROP");
        assert_eq!(Conntrack::open().unwrap().cut(denies(8080)).unwrap(), 1);
        thread::sleep(Duration::from_millis(300));
        assert_eq!(connection.received(), (0, 0));
    });
}

#[test]
fn node_connections_are_not_cut_and_others_are_listed_with_ports() {
    in_namespace(|| {
        let pods = Pods::new();
        let server = pods.server.run(|| UdpSocket::bind((SERVER, 53)).unwrap());
        let client = pods.client.run(|| UdpSocket::bind((CLIENT, 5000)).unwrap());
        let probe = UdpSocket::bind("10.1.2.1:6000").unwrap();
        let mut bytes = [0; 8];
        for sender in [&client, &probe] {
            sender.send_to(b"?", (SERVER, 53)).unwrap();
            server.recv_from(&mut bytes).unwrap();
        }
        let mut conntrack = Conntrack::open().unwrap();
        let mut found = Vec::new();
        conntrack.each(|entry| found.push(entry)).unwrap();
        let entry = found.iter().find(|entry| entry.original.source_port == 5000).unwrap();
        let flow = EstablishedFlow {
            source: CLIENT.parse().unwrap(),
            destination: SERVER.parse().unwrap(),
            protocol: 17,
            destination_port: 53,
        };
        assert_eq!(entry.flow(), flow);
        assert_eq!(conntrack.cut(|_| true).unwrap(), 1);
        assert!(!conntrack.delete(entry).unwrap(), "the entry is already deleted");
        let mut left = Vec::new();
        conntrack.each(|entry| left.push(entry.original.source_port)).unwrap();
        assert_eq!(left, [6000]);
    });
}
