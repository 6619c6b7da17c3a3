//! A container as a runtime creates it from a pod's manifest: in the network namespace of the node, in its own mount
//! and process namespaces, with a read-only root and the mounts, environment and capabilities of the manifest.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// Where the image has its programs.
pub(crate) const PATH: &str = "/usr/sbin:/usr/bin";

/// The manifest of a pod.
pub(crate) struct PodTemplate(Value);

impl PodTemplate {
    /// The pod of the `DaemonSet` among some objects.
    pub(crate) fn of(manifests: &[Value]) -> Self {
        let daemon_set = manifests.iter().find(|object| object["kind"] == "DaemonSet").unwrap();
        Self(daemon_set["spec"]["template"]["spec"].clone())
    }

    /// The manifest of a container, init container or not.
    pub(crate) fn container(&self, name: &str) -> &Value {
        let lists = ["initContainers", "containers"].map(|list| self.0[list].as_array().unwrap());
        lists.into_iter().flatten().find(|container| container["name"] == name).unwrap()
    }

    /// The path of a volume on the node.
    fn host_path(&self, volume: &str) -> &str {
        let volumes = self.0["volumes"].as_array().unwrap();
        volumes.iter().find(|entry| entry["name"] == volume).unwrap()["hostPath"]["path"].as_str().unwrap()
    }
}

/// The capabilities of a container, which drops all others.
pub(crate) fn capabilities(container: &Value) -> Vec<String> {
    let capabilities = &container["securityContext"]["capabilities"];
    assert_eq!(capabilities["drop"], serde_json::json!(["ALL"]));
    let names = capabilities["add"].as_array().unwrap().iter();
    names.map(|name| format!("cap_{}", name.as_str().unwrap().to_lowercase())).collect()
}

/// How to start a container.
pub(crate) struct Container<'a> {
    /// The image's root filesystem.
    pub(crate) image: &'a Path,
    pub(crate) pod: &'a PodTemplate,
    pub(crate) name: &'a str,
    /// Where the node's `/etc` and `/opt` are.
    pub(crate) node: &'a Path,
    /// The values of the fields that the environment refers to.
    pub(crate) fields: BTreeMap<&'static str, String>,
    /// More environment, and more mounts: from where, to where.
    pub(crate) environment: Vec<(&'static str, String)>,
    pub(crate) mounts: Vec<(PathBuf, &'static str)>,
    /// A capability to leave out.
    pub(crate) without: Option<&'a str>,
}

/// Runs as process 1 of the container's process namespace. The arguments: the image, the capabilities to drop, the
/// number of mounts, each as source and target, the program's arguments.
const INSIDE: &str = r#"
image=$1 drop=$2 mounts=$3
shift 3
mount --bind "$image" "$image"
mount -t proc proc "$image/proc"
mount --bind "$image/proc/sys" "$image/proc/sys"
mount -o remount,bind,ro "$image/proc/sys"
mount -t tmpfs tmpfs "$image/dev"
for device in null zero random urandom; do
  : > "$image/dev/$device"
  mount --bind "/dev/$device" "$image/dev/$device"
done
while [ "$mounts" -gt 0 ]; do
  mount --bind "$1" "$image$2"
  shift 2
  mounts=$((mounts - 1))
done
mount -o remount,bind,ro "$image"
exec capsh --chroot="$image" --drop="$drop" --no-new-privs --shell=/usr/bin/towpath -- "$@"
"#;

impl Container<'_> {
    /// The command that starts it. Run it in the network namespace of the node.
    pub(crate) fn command(&self) -> Command {
        let container = self.pod.container(self.name);
        let security = &container["securityContext"];
        assert_eq!(security["readOnlyRootFilesystem"], true);
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_ne!(security["privileged"], true);

        let none = Vec::new();
        let listed = container["volumeMounts"].as_array().unwrap_or(&none).iter();
        let mut mounts: Vec<(PathBuf, &str)> = listed
            .map(|mount| {
                let volume = mount["name"].as_str().unwrap();
                (self.on_node(self.pod.host_path(volume)), mount["mountPath"].as_str().unwrap())
            })
            .collect();
        mounts.extend(self.mounts.iter().cloned());
        for (source, target) in &mounts {
            make_mount_point(source, &self.image.join(target.trim_start_matches('/')));
        }

        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-eu", "-c", INSIDE, "sh"]);
        command.arg(self.image).arg(self.dropped(container)).arg(mounts.len().to_string());
        for (source, target) in &mounts {
            command.arg(source).arg(target);
        }
        command.args(container["args"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()));
        command.env_clear().env("PATH", PATH);
        command.envs(self.environment(container));
        command
    }

    /// A path of the node. What a test would leave on this machine is in a folder of its own.
    fn on_node(&self, path: &str) -> PathBuf {
        let is_own = path.starts_with("/etc/") || path.starts_with("/opt/");
        if is_own { self.node.join(path.trim_start_matches('/')) } else { path.into() }
    }

    /// Every capability that the kernel knows except those that the container has.
    fn dropped(&self, container: &Value) -> String {
        let kept = capabilities(container);
        let is_dropped = |name: &String| !kept.contains(name) || self.without == Some(name.as_str());
        known_capabilities().into_iter().filter(is_dropped).collect::<Vec<_>>().join(",")
    }

    fn environment(&self, container: &Value) -> BTreeMap<String, String> {
        let mut environment: BTreeMap<String, String> = BTreeMap::new();
        let none = Vec::new();
        for entry in container["env"].as_array().unwrap_or(&none) {
            let value = match entry["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some(field) => self.fields[field].clone(),
                None => entry["value"].as_str().unwrap().to_owned(),
            };
            // As kubelet does: earlier variables can be referred to.
            let value = environment
                .iter()
                .fold(value, |text: String, (name, value)| text.replace(&format!("$({name})"), value));
            assert!(!value.contains("$("), "{value} refers to a variable that is not defined before it");
            environment.insert(entry["name"].as_str().unwrap().to_owned(), value);
        }
        environment.extend(self.environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        environment
    }
}

/// A runtime creates the mount points before the root becomes read-only. Kubelet creates what is missing on the node.
fn make_mount_point(source: &Path, target: &Path) {
    let is_file = source.extension().is_some_and(|extension| extension == "lock");
    if !source.exists() {
        if is_file {
            fs::write(source, "").unwrap();
        } else {
            fs::create_dir_all(source).unwrap();
        }
    }
    if is_file {
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::write(target, "").unwrap();
    } else {
        fs::create_dir_all(target).unwrap();
    }
}

/// The names of the capabilities, by number.
fn known_capabilities() -> Vec<String> {
    let last: u32 = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap().trim().parse().unwrap();
    let name = |number: u32| {
        let mask = format!("{:x}", 1_u64 << number);
        let output = Command::new("capsh").arg(format!("--decode={mask}")).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.trim().rsplit('=').next().unwrap().to_owned()
    };
    (0..=last).map(name).collect()
}
