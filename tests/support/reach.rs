//! TCP connections between pods, in both families.

use std::{net::IpAddr, time::Duration};

use towpath::lab::{End, Lab, Probe, Transport};

/// Long enough for an answer on a busy machine, too short for a dropped SYN to be retransmitted (after one second).
pub(crate) const TIMEOUT: Duration = Duration::from_millis(900);

/// Whether TCP port 80 answers at each of the two addresses of a pod.
pub(crate) fn reaches(lab: &Lab, from: End, to: [IpAddr; 2]) -> [bool; 2] {
    let probes = to.map(|address| Probe::new(from, address, Transport::Tcp(80)));
    let outcomes = lab.probe_all(&probes, TIMEOUT).unwrap();
    [outcomes[0].is_open(), outcomes[1].is_open()]
}
