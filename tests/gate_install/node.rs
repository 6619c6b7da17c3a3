//! The folders of a node, and the way in which a container runtime reads them.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use towpath::gate::{
    conflist::{Entry, WhenAway},
    install::Settings,
};

pub(crate) const SOCKET: &str = "/run/towpath/gate.sock";

/// The name under which flannel and k3s write their configuration.
pub(crate) const FLANNEL: &str = "10-flannel.conflist";

/// In the form of the `ConfigMap` in flannel's manifest.
pub(crate) const FLANNEL_TEXT: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
"#;

/// In the form that k3s writes.
pub(crate) const K3S_TEXT: &str = r#"{
  "name":"cbr0",
  "cniVersion":"1.0.0",
  "plugins":[
    {
      "type":"flannel",
      "delegate":{
        "forceAddress":true,
        "isDefaultGateway":true
      }
    },
    {
      "type":"bandwidth",
      "capabilities":{
        "bandwidth":true
      }
    }
  ]
}
"#;

/// A node with the usual plugins and no configuration.
pub(crate) struct Node {
    folder: TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        let node = Self { folder: tempfile::tempdir().unwrap() };
        for folder in [node.conf_dir(), node.bin_dir()] {
            fs::create_dir(folder).unwrap();
        }
        for plugin in ["flannel", "portmap", "bandwidth", "bridge", "multus"] {
            program(&node.bin_dir().join(plugin), plugin);
        }
        program(&node.source(), "the plugin of towpath");
        node
    }

    pub(crate) fn with_flannel() -> Self {
        let node = Self::new();
        node.write(FLANNEL, FLANNEL_TEXT);
        node
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn conf_dir(&self) -> PathBuf {
        self.path().join("net.d")
    }

    pub(crate) fn bin_dir(&self) -> PathBuf {
        self.path().join("bin")
    }

    /// The plugin as it is in the image.
    pub(crate) fn source(&self) -> PathBuf {
        self.path().join("towpath-cni")
    }

    /// The plugin as it is installed.
    pub(crate) fn plugin(&self) -> PathBuf {
        self.bin_dir().join("towpath-cni")
    }

    pub(crate) fn settings(&self, when_away: WhenAway) -> Settings {
        Settings {
            conf_dir: self.conf_dir(),
            bin_dir: self.bin_dir(),
            plugin: self.source(),
            entry: Entry::new(SOCKET, when_away),
            // What is to be noticed has an event, unless a test is about the rest.
            check_interval: Duration::from_hours(1),
        }
    }

    pub(crate) fn conf(&self, name: &str) -> PathBuf {
        self.conf_dir().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.conf(name), text).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.conf(name)).unwrap()
    }

    /// The names of the files in the folder of configurations.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.conf_dir()).unwrap();
        let mut names: Vec<_> = entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Whether the file has our entry, as a runtime would see it.
    pub(crate) fn is_gated(&self, name: &str) -> bool {
        let text = fs::read_to_string(self.conf(name)).unwrap_or_default();
        list(&text).is_ok_and(|plugins| plugins.last().is_some_and(|plugin| plugin["type"] == "towpath-cni"))
    }

    /// Loads the configuration as containerd does: the first file by name, which must be valid, and every plugin of which
    /// must be an executable in the folder of plugins.
    pub(crate) fn load(&self) -> Result<Vec<Value>, String> {
        let is_conf = |name: &&String| {
            [".conf", ".conflist", ".json"].iter().any(|extension| name.ends_with(extension))
        };
        let first = self.files().iter().find(is_conf).cloned().ok_or("no configuration")?;
        let plugins = list(&fs::read_to_string(self.conf(&first)).map_err(|error| error.to_string())?)?;
        for plugin in &plugins {
            let kind = plugin["type"].as_str().ok_or("no type")?;
            let file = fs::metadata(self.bin_dir().join(kind)).map_err(|_| format!("no plugin {kind}"))?;
            if !file.is_file() || file.permissions().mode() & 0o111 == 0 {
                return Err(format!("{kind} is no program"));
            }
        }
        Ok(plugins)
    }

    /// The types of the plugins that a runtime would start.
    pub(crate) fn types(&self) -> Vec<String> {
        let plugins = self.load().unwrap_or_else(|error| panic!("no pod can start: {error}"));
        plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
    }
}

/// The plugins of a list, by the rules of libcni.
fn list(text: &str) -> Result<Vec<Value>, String> {
    let list: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    list["name"].as_str().ok_or("no name")?;
    let plugins = list["plugins"].as_array().filter(|list| !list.is_empty()).ok_or("no plugins")?;
    let has_type = |plugin: &Value| plugin["type"].as_str().is_some_and(|kind| !kind.is_empty());
    if plugins.iter().all(has_type) { Ok(plugins.clone()) } else { Err("a plugin without type".to_owned()) }
}

pub(crate) fn program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
