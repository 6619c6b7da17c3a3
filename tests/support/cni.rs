//! A container runtime's part of CNI: runs the plugins of a network in order, as libcni does.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use towpath::{
    lab::{Netns, Node},
    model::Family,
};

/// Where Debian's package containernetworking-plugins has its programs.
pub(crate) const PLUGINS: &str = "/usr/lib/cni";

/// The CNI plugin of this tree, built once.
pub(crate) fn plugin() -> &'static Path {
    static PLUGIN: OnceLock<PathBuf> = OnceLock::new();
    PLUGIN.get_or_init(|| {
        let target = Path::new(env!("CARGO_BIN_EXE_towpath")).parent().unwrap();
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--locked", "--quiet", "--package", "towpath-cni"]);
        build.arg("--manifest-path").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        build.arg("--target-dir").arg(target.parent().unwrap());
        if target.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "the plugin cannot be built");
        target.join("towpath-cni")
    })
}

/// A network: the plugins that attach a container to it.
#[derive(Clone)]
pub(crate) struct Network {
    name: String,
    plugins: Vec<Value>,
}

/// The plugin that flannel's delegates to: a bridge with addresses of these blocks, which are kept in `data`.
pub(crate) fn bridge(blocks: &[String], data: &Path) -> Value {
    let ranges: Vec<Value> = blocks.iter().map(|block| json!([{ "subnet": block }])).collect();
    json!({
        "type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "hairpinMode": true,
        "mtu": 1450, "ipam": { "type": "host-local", "ranges": ranges, "dataDir": data },
    })
}

/// A container: its identifier, the pod's namespace, name and uid, and the path of its network namespace.
#[derive(Clone)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) netns: String,
}

impl Network {
    /// This plugin, and the gate with these fields behind it.
    pub(crate) fn new(first: Value, gate: Option<Value>) -> Self {
        let gate = gate.map(|mut gate| {
            gate["type"] = "towpath-cni".into();
            gate
        });
        Self { name: "cbr0".to_owned(), plugins: [first].into_iter().chain(gate).collect() }
    }

    /// Attaches a container, on this node, with these addresses of its blocks.
    ///
    /// # Errors
    /// What the first plugin that failed printed. As for a container runtime, what came before it stays.
    pub(crate) fn add(
        &self,
        node: &Netns,
        container: &Container,
        addresses: &[IpAddr],
    ) -> Result<Value, String> {
        self.add_timed(node, container, addresses).map(|(result, _)| result)
    }

    /// The same, with the time that each plugin took.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn add_timed(
        &self,
        node: &Netns,
        container: &Container,
        addresses: &[IpAddr],
    ) -> Result<(Value, Vec<Duration>), String> {
        let (mut result, mut times) = (None, Vec::new());
        for plugin in &self.plugins {
            let start = Instant::now();
            let answer = self.run(node, "ADD", container, plugin, result.as_ref(), addresses)?;
            times.push(start.elapsed());
            result = Some(serde_json::from_str(&answer).map_err(|error| format!("{error}: {answer}"))?);
        }
        Ok((result.unwrap_or_default(), times))
    }

    /// Detaches a container: all plugins in the reverse order.
    ///
    /// # Errors
    /// What the first plugin that failed printed.
    pub(crate) fn del(&self, node: &Netns, container: &Container) -> Result<(), String> {
        self.plugins
            .iter()
            .rev()
            .try_for_each(|plugin| self.run(node, "DEL", container, plugin, None, &[]).map(drop))
    }

    fn run(
        &self,
        node: &Netns,
        command: &str,
        container: &Container,
        entry: &Value,
        previous: Option<&Value>,
        addresses: &[IpAddr],
    ) -> Result<String, String> {
        let mut configuration = entry.clone();
        let fields = configuration.as_object_mut().unwrap();
        fields.insert("cniVersion".to_owned(), "1.0.0".into());
        fields.insert("name".to_owned(), self.name.clone().into());
        if !addresses.is_empty() {
            fields.insert("args".to_owned(), json!({ "cni": { "ips": addresses } }));
        }
        if let Some(previous) = previous {
            fields.insert("prevResult".to_owned(), previous.clone());
        }
        let kind = entry["type"].as_str().unwrap();
        let program = if kind == "towpath-cni" { plugin().to_owned() } else { Path::new(PLUGINS).join(kind) };
        let Container { id, namespace, name, uid, netns } = container;
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={uid}"
        );
        let mut process = Command::new(program);
        process.env("CNI_COMMAND", command).env("CNI_CONTAINERID", id).env("CNI_NETNS", netns);
        process.env("CNI_IFNAME", "eth0").env("CNI_PATH", PLUGINS).env("CNI_ARGS", arguments);
        let output = node.output(process, &configuration.to_string()).map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(text) } else { Err(format!("{kind} {command}: {text}")) }
    }
}

/// A pod whose sandbox exists and that is not attached yet.
pub(crate) struct NewPod {
    pub(crate) container: Container,
    pub(crate) netns: Netns,
    pub(crate) addresses: [IpAddr; 2],
}

impl NewPod {
    /// On this node; `name` is `namespace/name`, `host` the last part of its addresses.
    pub(crate) fn new(node: &Node, name: &str, host: usize) -> Self {
        let netns = Netns::new(name).unwrap();
        netns.sysctl(&[("ipv6/conf/all/accept_dad", "0"), ("ipv6/conf/default/accept_dad", "0")]).unwrap();
        let (namespace, pod) = name.split_once('/').unwrap();
        let addresses = Family::BOTH.map(|family| node.pod_cidr(family).hosts().nth(host).unwrap());
        let container = Container {
            id: format!("sandbox-{pod}-{host}"),
            namespace: namespace.to_owned(),
            name: pod.to_owned(),
            uid: format!("uid-{pod}-{host}"),
            netns: netns.path(),
        };
        Self { container, netns, addresses }
    }

    pub(crate) fn address(&self, family: Family) -> IpAddr {
        self.addresses.into_iter().find(|address| Family::of(*address) == family).unwrap()
    }
}
