//! Behind the real `bridge`, `host-local` and `portmap` plugins, in a network namespace with a pod in another (root).
//!
//! The chain is called as libcni does it: each plugin gets the result of the one before it, and `DEL` goes backwards with
//! the last result.

use std::{path::Path, process::Command};

use nix::sched::CloneFlags;
use serde_json::{Value, json};

use crate::{call::Call, daemon::Daemon, isolated::isolated, root::has_root, skip};

/// Where distributions put the reference plugins.
const FOLDERS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// The versions that the reference plugins of all these distributions speak.
const VERSIONS: [&str; 3] = ["0.3.1", "0.4.0", "1.0.0"];

const IPV4: &str = r#"[{"subnet": "10.244.1.0/24"}]"#;
const IPV6: &str = r#"[{"subnet": "fd00:244:1::/64"}]"#;

/// The answer of `ip` in JSON.
fn ip(arguments: &str) -> Value {
    let output = Command::new("ip").arg("-j").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    if output.stdout.is_empty() { json!([]) } else { serde_json::from_slice(&output.stdout).unwrap() }
}

/// A field of each object of a list.
fn each(list: &Value, field: &str) -> Vec<Value> {
    list.as_array().unwrap().iter().map(|one| one[field].clone()).collect()
}

/// A network whose plugins are called one by one.
struct Chain {
    folder: &'static str,
    version: &'static str,
    daemon: Daemon,
    ranges: Value,
}

impl Chain {
    /// The fields that a plugin has in the configuration list.
    fn entry(&self, plugin: &str) -> Value {
        match plugin {
            "bridge" => json!({
                "type": plugin, "bridge": "cni0", "isGateway": true,
                "ipam": {
                    "type": "host-local", "dataDir": self.daemon.folder().join("addresses"), "ranges": self.ranges,
                },
            }),
            "portmap" => {
                let mapping = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
                json!({"type": plugin, "runtimeConfig": {"portMappings": [mapping]}})
            }
            _ => json!({"type": plugin, "socket": self.daemon.socket()}),
        }
    }

    /// Calls a plugin; returns what it printed.
    fn call(&self, command: &str, plugin: &str, prev_result: Option<&str>) -> String {
        let mut config = self.entry(plugin);
        config["cniVersion"] = json!(self.version);
        config["name"] = json!("pods");
        let mut input = config.to_string();
        if let Some(prev_result) = prev_result {
            input.truncate(input.len() - 1);
            input.extend([r#","prevResult":"#, prev_result, "}"]);
        }
        let mut call =
            Call::new(command).with("CNI_PATH", self.folder).with("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        if plugin != "towpath-cni" {
            call = call.program(Path::new(self.folder).join(plugin));
        }
        let finished = call.input(input).run();
        assert_eq!(finished.status, Some(0), "{command} {plugin}: {finished:?}");
        finished.stdout
    }

    fn run(&self) {
        ip("netns add pod");
        let bridged = self.call("ADD", "bridge", None);
        let mapped = self.call("ADD", "portmap", Some(&bridged));
        let result = self.call("ADD", "towpath-cni", Some(&mapped));
        assert_eq!(result, mapped);
        self.is_what_the_kernel_has();

        if self.version != "0.3.1" {
            assert_eq!(self.call("CHECK", "towpath-cni", Some(&result)), "");
            let (add, check) = (&self.daemon.requests()[0], &self.daemon.requests()[1]);
            assert_eq!(check["command"], "check");
            for field in ["host_interfaces", "mac", "addresses", "pod", "netns", "ifname", "container_id"] {
                assert_eq!(check[field], add[field], "{field}");
            }
        }
        for plugin in ["towpath-cni", "portmap", "bridge"] {
            assert_eq!(self.call("DEL", plugin, Some(&result)), "");
        }
        let del = json!({"command": "del", "container_id": "c0ffee5d8a3b", "ifname": "eth0"});
        assert_eq!(self.daemon.requests().last(), Some(&del));
        assert_eq!(ip("link show type veth"), json!([]));
    }

    /// Compares what the daemon was told with both namespaces.
    fn is_what_the_kernel_has(&self) {
        let [told]: [Value; 1] = self.daemon.requests().try_into().unwrap();
        assert_eq!(told["command"], "add");

        let veths = ip("link show type veth");
        let [veth] = &veths.as_array().unwrap()[..] else { panic!("{veths}") };
        assert_eq!(each(&ip("link show type bridge"), "ifname"), ["cni0"]);
        assert_eq!(told["host_interfaces"], json!(["cni0", veth["ifname"]]));
        assert_eq!(veth["master"], "cni0");

        let inside = ip("-n pod address show dev eth0");
        assert_eq!(veth["link_index"], inside[0]["ifindex"], "the veth leads elsewhere");
        assert_eq!(told["mac"], inside[0]["address"]);
        let global = inside[0]["addr_info"].as_array().unwrap().iter().filter(|one| one["scope"] == "global");
        let mut addresses: Vec<&str> = global.map(|one| one["local"].as_str().unwrap()).collect();
        let mut told: Vec<&str> =
            told["addresses"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
        addresses.sort_unstable();
        told.sort_unstable();
        assert_eq!(told, addresses);
        assert_eq!(told.len(), self.ranges.as_array().unwrap().len());
    }
}

/// Runs the chain in every version with these ranges of addresses.
fn in_every_version(ranges: &str) {
    if !has_root() {
        return;
    }
    let has_plugins = |folder: &&str| {
        ["bridge", "host-local", "portmap"].iter().all(|plugin| Path::new(folder).join(plugin).exists())
    };
    let Some(folder) = FOLDERS.into_iter().find(has_plugins) else {
        return skip("no CNI plugins: install containernetworking-plugins");
    };
    for version in VERSIONS {
        let ranges = serde_json::from_str(ranges).unwrap();
        isolated(CloneFlags::CLONE_NEWNET, move || {
            Chain { folder, version, daemon: Daemon::done(), ranges }.run();
        });
    }
}

#[test]
fn daemon_is_told_the_interface_and_address_of_a_bridged_pod() {
    in_every_version(&format!("[{IPV4}]"));
}

#[test]
fn daemon_is_told_both_addresses_of_a_dual_stack_pod() {
    in_every_version(&format!("[{IPV4}, {IPV6}]"));
}

#[test]
fn daemon_is_told_the_address_of_a_pod_with_ipv6_alone() {
    in_every_version(&format!("[{IPV6}]"));
}
