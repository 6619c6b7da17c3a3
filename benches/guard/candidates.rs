//! Candidates for checking the sender of a bridged packet: the cost of each for a packet of an established flow from
//! the last pod.
//!
//! Each checks interface, hardware address and source of every IPv4 packet, and drops what does not match. Only the
//! guard itself also checks other things, such as claims in ARP.

use std::fmt::Write as _;

use crate::{
    Size, figures, median,
    testbed::{Bed, Pair},
};
use towpath::lab::Topology;

/// One candidate: how it is installed, as a program and its input, and the commands that remove it.
struct Candidate {
    name: &'static str,
    install: (&'static str, &'static [&'static str], String),
    remove: &'static [&'static [&'static str]],
}

/// What every bridged packet passes on a node of towpath: connection tracking, and one rule.
const TRACKED: &str = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\nCOMMIT\n";
const RESTORE: &[&str] = &["--noflush"];

pub(crate) fn measure(size: Size) {
    println!("nanoseconds per packet of an established flow, median (best) of {} rounds", size.rounds);
    for &pods in size.pods {
        let bed = Bed::new(Topology::Bridge, pods);
        bed.lab.set_bridge_nf_call(0, true).expect("br_netfilter");
        bed.succeed("iptables-nft-restore", &[], TRACKED);
        let pair = Pair::new(&bed);
        let mut candidates = candidates(&bed, pods);
        candidates.retain(|candidate| match install(&bed, candidate) {
            Ok(()) => {
                remove(&bed, candidate);
                true
            }
            Err(reason) => {
                println!("  {}: not possible here: {reason}", candidate.name);
                false
            }
        });
        let mut nothing = Vec::new();
        let mut taken = vec![Vec::new(); candidates.len()];
        for _ in 0..size.rounds {
            nothing.push(pair.established(size.established));
            for (candidate, taken) in candidates.iter().zip(&mut taken) {
                install(&bed, candidate).expect("what was installed before");
                taken.push(pair.established(size.established));
                remove(&bed, candidate);
            }
        }
        println!("  {pods} pods: nothing {}", figures(nothing.clone()));
        for (candidate, taken) in candidates.iter().zip(taken) {
            let differences = taken.iter().zip(&nothing).map(|(taken, nothing)| taken - nothing).collect();
            println!("    {}: {}, difference {:.0}", candidate.name, figures(taken), median(differences));
        }
    }
}

fn candidates(bed: &Bed, pods: usize) -> Vec<Candidate> {
    let mut elements = Vec::new();
    let mut interfaces = Vec::new();
    let mut ebtables =
        "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n-A FORWARD -p ARP -j ACCEPT\n".to_owned();
    let mut physdev = "*filter\n:TP-TEST - [0:0]\n-I FORWARD -j TP-TEST\n".to_owned();
    let mut flower = String::new();
    for pod in 0..pods {
        let (interface, mac, address) = (bed.interface(pod), bed.mac(pod), bed.address(pod));
        elements.push(format!("\"{interface}\" . {mac} . {address}"));
        interfaces.push(format!("\"{interface}\""));
        // Writing to a String cannot fail.
        let _ = writeln!(ebtables, "-A FORWARD -p IPv4 -i {interface} -s {mac} --ip-src {address} -j ACCEPT");
        let _ = writeln!(ebtables, "-A FORWARD -i {interface} -j DROP");
        let port = format!("-A TP-TEST -m physdev --physdev-in {interface}");
        let _ = writeln!(physdev, "{port} -m mac --mac-source {mac} -s {address}/32 -j RETURN");
        let _ = writeln!(physdev, "{port} -j DROP");
        let _ = writeln!(flower, "qdisc add dev {interface} clsact");
        let filter = format!("filter add dev {interface} ingress");
        let _ =
            writeln!(flower, "{filter} protocol ip pref 1 flower src_mac {mac} src_ip {address} action pass");
        let _ = writeln!(flower, "{filter} protocol ip pref 2 matchall action drop");
    }
    physdev.push_str("COMMIT\n");
    ebtables.push_str("COMMIT\n");
    let set = format!(
        "set s {{ type iface_index . ether_addr . ipv4_addr; elements = {{ {} }}; }}",
        elements.join(", ")
    );
    let rules = "ether type != ip accept\niif . ether saddr . ip saddr @s accept\n";
    let ports = interfaces.join(", ");
    // The guard does not check packets from other interfaces.
    let bridge = format!(
        "table bridge test {{\n{set}\nset p {{ type iface_index; elements = {{ {ports} }}; }}\nchain c {{\n\
         type filter hook prerouting priority -300; policy accept;\n{rules}iif @p drop\n}}\n}}\n"
    );
    let netdev = format!(
        "table netdev test {{\n{set}\nchain c {{\ntype filter hook ingress devices = {{ {ports} }} priority -300; \
         policy drop;\n{rules}}}\n}}\n"
    );
    let nft = |name, text, remove| Candidate { name, install: ("nft", &["-f", "-"], text), remove };
    let restore = |name, program, text, remove| Candidate { name, install: (program, RESTORE, text), remove };
    vec![
        nft(
            "the whole guard",
            bed.guard(pods).whole(),
            &[
                &["nft", "delete", "table", "bridge", "towpath"],
                &["nft", "delete", "table", "netdev", "towpath"],
            ],
        ),
        nft("nft bridge prerouting, one set", bridge, &[&["nft", "delete", "table", "bridge", "test"]]),
        nft("nft netdev ingress, one set", netdev, &[&["nft", "delete", "table", "netdev", "test"]]),
        Candidate {
            name: "ebtables-nft, two rules a pod",
            install: ("ebtables-nft-restore", &[], ebtables),
            remove: &[&["ebtables-nft", "-F"]],
        },
        restore(
            "iptables-nft physdev, two rules a pod",
            "iptables-nft-restore",
            physdev.clone(),
            &[
                &["iptables-nft", "-D", "FORWARD", "-j", "TP-TEST"],
                &["iptables-nft", "-F", "TP-TEST"],
                &["iptables-nft", "-X", "TP-TEST"],
            ],
        ),
        restore(
            "iptables-legacy physdev, two rules a pod",
            "iptables-legacy-restore",
            physdev,
            &[
                &["iptables-legacy", "-D", "FORWARD", "-j", "TP-TEST"],
                &["iptables-legacy", "-F", "TP-TEST"],
                &["iptables-legacy", "-X", "TP-TEST"],
            ],
        ),
        Candidate {
            name: "tc flower, two filters a pod",
            install: ("tc", &["-batch", "-"], flower),
            remove: &[],
        },
    ]
}

fn install(bed: &Bed, candidate: &Candidate) -> Result<(), String> {
    let (program, arguments, text) = &candidate.install;
    let mut command = std::process::Command::new(program);
    command.args(*arguments);
    let output = bed.netns().output(command, text).map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(errors.lines().next().unwrap_or("no reason given").to_owned())
}

fn remove(bed: &Bed, candidate: &Candidate) {
    for command in candidate.remove {
        bed.succeed(command[0], &command[1..], "");
    }
}
