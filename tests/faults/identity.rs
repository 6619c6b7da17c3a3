//! A pod that may change its interfaces tries to use another pod's address, or one that no policy covers.

use std::{net::IpAddr, thread, time::Duration};

use towpath::{
    lab::{Probe, Transport},
    model::Family,
};

use crate::{
    reach::TIMEOUT,
    testbed::{Bed, for_both_variants},
    wait::wait_until,
    yaml_objects::{namespace, policy},
};

/// Longer than the time during which a new interface is read.
const READ: Duration = Duration::from_millis(600);

impl Bed {
    /// Gives a pod this address instead of its own, as one of its processes with `CAP_NET_ADMIN` can.
    fn set_address(&self, pod: &str, address: &str) {
        let pod = self.lab.pod(self.pod(pod)).unwrap();
        let lines = [
            "addr flush dev eth0 scope global",
            "addr add ADDRESS/24 dev eth0",
            "route add default via 10.244.1.1",
        ];
        pod.netns().ip(&lines.map(|line| line.replace("ADDRESS", address))).unwrap();
    }

    /// Whether `from` reaches `to` by IPv4 now, from whatever address it has.
    fn reaches_v4(&self, from: &str, to: &str) -> bool {
        let to: IpAddr = self.address(to, Family::V4);
        let probe = Probe::new(self.end(from), to, Transport::Tcp(80));
        self.lab.probe_all(&[probe], TIMEOUT).unwrap()[0].is_open()
    }

    fn write_pods(&self, pods: &[&str]) {
        let documents = pods.iter().map(|pod| self.manifest(pod, "app: any"));
        self.write(
            "pods.yaml",
            &[namespace("shop", "team: shop")].into_iter().chain(documents).collect::<Vec<_>>(),
        );
    }
}

#[test]
fn address_that_a_pod_gave_itself_is_closed_before_and_after_its_object_is_known() {
    for_both_variants(|variant| {
        let bed = Bed::new(variant, &[("shop/open", 0), ("shop/rogue", 0)]);
        bed.write_pods(&["shop/open"]);
        let daemon = bed.run(&[]);
        thread::sleep(READ);
        // It has no object yet: it may use the address that its plugin gave it, and no other.
        assert!(bed.reaches_v4("shop/rogue", "shop/open"), "{}", daemon.log());
        let own = bed.address("shop/rogue", Family::V4).to_string();
        bed.set_address("shop/rogue", "10.244.1.200");
        thread::sleep(READ);
        assert!(!bed.reaches_v4("shop/rogue", "shop/open"));
        // Its object arrives, with a policy that isolates it.
        bed.write_pods(&["shop/open", "shop/rogue"]);
        bed.write("deny.yaml", &[policy("shop/deny", "podSelector: {}, policyTypes: [Egress]")]);
        wait_until("the policy", Duration::from_secs(10), || bed.our_rules(Family::V4).contains("TP-PE-"));
        assert!(!bed.reaches_v4("shop/rogue", "shop/open"));
        bed.set_address("shop/rogue", &own);
        thread::sleep(READ);
        assert!(!bed.reaches_v4("shop/rogue", "shop/open"), "policy denies its own address too");
        bed.objects().remove("deny.yaml");
        wait_until("its own address", Duration::from_secs(10), || bed.reaches_v4("shop/rogue", "shop/open"));
        // The next process keeps the bindings of the first one.
        bed.set_address("shop/rogue", "10.244.1.201");
        assert!(daemon.terminate().success());
        let next = bed.run(&[]);
        thread::sleep(READ);
        assert!(!bed.reaches_v4("shop/rogue", "shop/open"), "{}", next.log());
        bed.set_address("shop/rogue", &own);
        wait_until("its own address again", Duration::from_secs(10), || {
            bed.reaches_v4("shop/rogue", "shop/open")
        });
    });
}

#[test]
fn running_pod_whose_object_is_deleted_can_send_nothing() {
    for_both_variants(|variant| {
        let bed = Bed::new(variant, &[("shop/open", 0), ("shop/forced", 0)]);
        bed.write_pods(&["shop/open", "shop/forced"]);
        let daemon = bed.run(&[]);
        wait_until("reachability", Duration::from_secs(10), || bed.reaches_v4("shop/forced", "shop/open"));
        bed.write_pods(&["shop/open"]);
        wait_until("isolation", Duration::from_secs(10), || !bed.reaches_v4("shop/forced", "shop/open"));
        assert!(daemon.terminate().success());
        let next = bed.run(&[]);
        thread::sleep(READ);
        assert!(!bed.reaches_v4("shop/forced", "shop/open"), "{}", next.log());
        bed.write_pods(&["shop/open", "shop/forced"]);
        wait_until("reachability again", Duration::from_secs(10), || {
            bed.reaches_v4("shop/forced", "shop/open")
        });
    });
}
