//! The contents of the manifests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    container::capabilities,
    repository::{root, text},
    skip,
    yaml::documents,
};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `kubectl`: that of the control plane for the tests, otherwise the one in `PATH`.
fn kubectl() -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from).into_iter().collect();
    if let Ok(output) = Command::new(root().join("scripts/control-plane")).arg("--cached").output()
        && output.status.success()
    {
        folders.push(String::from_utf8(output.stdout).unwrap().trim().into());
    }
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    folders.into_iter().map(|folder| folder.join("kubectl")).find(|file| file.is_file())
}

/// What `kubectl apply -k` would apply; `None` without kubectl, which is reported.
fn rendered(folder: &str) -> Option<Vec<Value>> {
    let Some(kubectl) = kubectl() else {
        skip("there is no kubectl: set KUBEBUILDER_ASSETS, or put it into PATH");
        return None;
    };
    let output = Command::new(kubectl).arg("kustomize").arg(root().join(folder)).output().unwrap();
    assert!(output.status.success(), "{folder}: {}", String::from_utf8_lossy(&output.stderr));
    Some(documents(&String::from_utf8(output.stdout).unwrap()))
}

/// The objects of the base, from its files.
fn base() -> Vec<Value> {
    let files = ["namespace", "serviceaccount", "rbac", "daemonset"];
    files.iter().flat_map(|name| documents(&text(&format!("deploy/base/{name}.yaml")))).collect()
}

fn one<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let one = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "several {kind}");
    one
}

fn pod(daemon_set: &Value) -> &Value {
    &daemon_set["spec"]["template"]["spec"]
}

fn containers(pod: &Value) -> Vec<&Value> {
    ["initContainers", "containers"].iter().flat_map(|list| pod[list].as_array().unwrap()).collect()
}

fn environment(container: &Value) -> BTreeMap<&str, &Value> {
    let entries = container["env"].as_array().unwrap().iter();
    entries.map(|entry| (entry["name"].as_str().unwrap(), entry)).collect()
}

/// The daemon's container of the base.
fn daemon(objects: &[Value]) -> Value {
    pod(one(objects, "DaemonSet"))["containers"][0].clone()
}

fn help(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
    let output = command.args(arguments).arg("--help").env_remove("TOWPATH_LISTEN").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn rendered_file_matches_the_kustomization() {
    let Some(kubectl) = kubectl() else {
        return skip("there is no kubectl to render deploy/ with");
    };
    let output = Command::new(root().join("scripts/manifests")).env("KUBECTL", kubectl).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let fresh = String::from_utf8(output.stdout).unwrap();
    assert!(fresh == text("deploy/towpath.yaml"), "deploy/towpath.yaml is stale: make manifests");
}

#[test]
fn rule_of_the_operator_is_that_of_the_plain_file() {
    let output = Command::new(root().join("scripts/prometheus-rule")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let file = "deploy/components/alerts/prometheusrule.yaml";
    assert!(String::from_utf8(output.stdout).unwrap() == text(file), "{file} is stale: make manifests");
    let (rule, rules) = (documents(&text(file)), documents(&text("deploy/components/alerts/rules.yaml")));
    assert_eq!((rule.len(), &rule[0]["kind"]), (1, &json!("PrometheusRule")));
    assert_eq!(rule[0]["spec"], rules[0]);
}

#[test]
fn rendered_file_contains_the_objects_of_the_base() {
    let key = |object: &Value| (object["kind"].to_string(), object["metadata"]["name"].to_string());
    let sorted = |mut objects: Vec<Value>| {
        objects.sort_by_key(key);
        objects
    };
    assert_eq!(sorted(documents(&text("deploy/towpath.yaml"))), sorted(base()));
}

#[test]
fn cluster_role_grants_reading_of_four_kinds_and_nothing_else() {
    let objects = base();
    let role = one(&objects, "ClusterRole");
    let mut granted = BTreeSet::new();
    for grant in role["rules"].as_array().unwrap() {
        let grant = grant.as_object().unwrap();
        assert_eq!(grant.keys().collect::<Vec<_>>(), ["apiGroups", "resources", "verbs"]);
        let list =
            |name: &str| grant[name].as_array().unwrap().iter().map(|it| it.as_str().unwrap().to_owned());
        for group in list("apiGroups") {
            for resource in list("resources") {
                granted.extend(list("verbs").map(|verb| format!("{verb} {resource}.{group}")));
            }
        }
    }
    let kinds = ["pods.", "namespaces.", "nodes.", "networkpolicies.networking.k8s.io"];
    let verbs = ["get", "list", "watch"];
    let needed = kinds.iter().flat_map(|kind| verbs.map(|verb| format!("{verb} {kind}")));
    assert_eq!(granted, needed.collect());

    let binding = one(&objects, "ClusterRoleBinding");
    assert_eq!(
        (&binding["roleRef"], &binding["subjects"]),
        (
            &json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "towpath"}),
            &json!([{"kind": "ServiceAccount", "name": "towpath", "namespace": "towpath"}])
        )
    );
    let kinds: BTreeSet<_> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    let expected = ["ClusterRole", "ClusterRoleBinding", "DaemonSet", "Namespace", "ServiceAccount"];
    assert_eq!(kinds, expected.into());
}

#[test]
fn file_named_in_messages_is_the_one_that_is_applied() {
    assert_eq!(text("deploy/rbac.yaml"), text("deploy/base/rbac.yaml"));
}

#[test]
fn daemon_set_runs_on_every_linux_node_with_high_priority() {
    let objects = base();
    let daemon_set = one(&objects, "DaemonSet");
    let pod = pod(daemon_set);
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(pod["nodeSelector"], json!({"kubernetes.io/os": "linux"}));
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!((&pod["hostNetwork"], &pod["dnsPolicy"]), (&json!(true), &json!("Default")));
    assert!(pod["terminationGracePeriodSeconds"].as_i64().unwrap() <= 10);
    let update = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}});
    assert_eq!(daemon_set["spec"]["updateStrategy"], update);
    let labels = &daemon_set["spec"]["template"]["metadata"]["labels"];
    assert_eq!(&daemon_set["spec"]["selector"]["matchLabels"], labels);

    let resources = &daemon(&objects)["resources"];
    assert!(resources["requests"]["cpu"].is_string() && resources["requests"]["memory"].is_string());
    let limits: Vec<_> = resources["limits"].as_object().unwrap().keys().collect();
    assert_eq!(limits, ["memory"], "no CPU limit: a throttled daemon enforces late");

    let namespace = one(&objects, "Namespace");
    for mode in ["enforce", "audit", "warn"] {
        assert_eq!(
            namespace["metadata"]["labels"][format!("pod-security.kubernetes.io/{mode}")],
            "privileged"
        );
    }
}

#[test]
fn token_is_mounted_only_in_the_daemons_pod() {
    let objects = base();
    assert_eq!(one(&objects, "ServiceAccount")["automountServiceAccountToken"], false);
    let pod = pod(one(&objects, "DaemonSet"));
    assert_eq!(
        (&pod["serviceAccountName"], &pod["automountServiceAccountToken"]),
        (&json!("towpath"), &json!(true))
    );
    let cleanup = documents(&text("deploy/uninstall/daemonset.yaml"));
    assert_eq!(self::pod(one(&cleanup, "DaemonSet"))["automountServiceAccountToken"], false);
}

#[test]
fn probes_and_scrapes_use_the_daemons_port() {
    let objects = base();
    let container = daemon(&objects);
    let port = json!([{"name": "metrics", "containerPort": 9586, "hostPort": 9586, "protocol": "TCP"}]);
    assert_eq!(container["ports"], port);
    let probes = [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")];
    for (probe, path) in probes {
        // Without a host, kubelet connects to the pod's address, which is the node's.
        assert_eq!(container[probe]["httpGet"], json!({"path": path, "port": "metrics"}), "{probe}");
    }
    let environment = environment(&container);
    assert_eq!(environment["HOST_IP"]["valueFrom"], json!({"fieldRef": {"fieldPath": "status.hostIP"}}));
    assert_eq!(environment["TOWPATH_LISTEN"]["value"], "$(HOST_IP):9586");
    assert!(help(&["run"]).contains("[default: 127.0.0.1:9586]"), "the program has another default port");
    let monitor = documents(&text("deploy/components/prometheus/podmonitor.yaml"));
    let endpoint = &monitor[0]["spec"]["podMetricsEndpoints"][0];
    assert_eq!((&endpoint["port"], &endpoint["path"]), (&json!("metrics"), &json!("/metrics")));
}

#[test]
fn manifest_uses_only_arguments_and_variables_of_the_program() {
    let mut files = vec![text("deploy/base/daemonset.yaml"), text("deploy/uninstall/daemonset.yaml")];
    for component in folders("deploy/components") {
        files.push(text(&format!("deploy/components/{component}/kustomization.yaml")));
    }
    let run = help(&["run"]);
    let mut variables = 0;
    for file in &files {
        for word in file
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .filter(|it| it.starts_with("TOWPATH_"))
        {
            assert!(run.contains(&format!("[env: {word}=")), "`towpath run` has no {word}");
            variables += 1;
        }
    }
    assert!(variables >= 5, "only {variables} variables");
    let mut called = BTreeSet::new();
    for file in &files[..2] {
        let objects = documents(file);
        for container in containers(pod(one(&objects, "DaemonSet"))) {
            let arguments = container["args"].as_array().unwrap();
            let arguments: Vec<&str> = arguments.iter().map(|it| it.as_str().unwrap()).collect();
            let (command, flags) = arguments.split_first().unwrap();
            let help = help(&[*command]);
            assert!(help.contains(&format!("Usage: towpath {command}")), "there is no towpath {command}");
            for flag in flags {
                assert!(help.split_whitespace().any(|word| word == *flag), "towpath {command} has no {flag}");
            }
            called.insert((*command).to_owned());
        }
    }
    assert_eq!(called, ["cleanup", "prepare", "run"].map(str::to_owned).into());
}

#[test]
fn containers_have_no_unneeded_privileges() {
    let daemon = base();
    let cleanup = documents(&text("deploy/uninstall/daemonset.yaml"));
    let mut allowed = BTreeMap::new();
    for objects in [&daemon, &cleanup] {
        let pod = pod(one(objects, "DaemonSet"));
        assert_eq!(pod["securityContext"]["seccompProfile"], json!({"type": "RuntimeDefault"}));
        for namespace in ["hostPID", "hostIPC", "shareProcessNamespace"] {
            assert!(pod[namespace].is_null(), "{namespace}");
        }
        for container in containers(pod) {
            let security = &container["securityContext"];
            assert_eq!(security["readOnlyRootFilesystem"], true);
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert!(security["privileged"].is_null() && security["procMount"].is_null());
            allowed.insert(container["name"].as_str().unwrap().to_owned(), capabilities(container));
        }
    }
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let network = names(&["cap_net_admin", "cap_net_raw"]);
    let expected = [
        ("prepare", names(&["cap_sys_module"])),
        ("towpath", network.clone()),
        ("cleanup", network.clone()),
        ("done", network),
    ];
    assert_eq!(allowed, expected.map(|(name, list)| (name.to_owned(), list)).into());
    let mounted = |name: &str| {
        let all = containers(pod(one(&daemon, "DaemonSet")));
        let mounts = all.iter().find(|it| it["name"] == name).unwrap()["volumeMounts"].as_array().unwrap();
        mounts.iter().map(|it| it["mountPath"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(mounted("prepare"), ["/lib/modules"]);
    let of_the_gate = ["/host/etc/cni/net.d", "/host/opt/cni/bin"];
    let others = ["/run/xtables.lock", "/run/towpath", "/host/proc/sys/net"];
    assert_eq!(mounted("towpath"), [&others[..], &of_the_gate].concat());
}

/// Lines that grant something. Below `volumes:`, each volume of the node does.
fn grants(text: &str) -> Vec<(usize, &str)> {
    let mut grants = Vec::new();
    let mut in_volumes = false;
    for (number, line) in text.lines().enumerate() {
        let word = line.trim();
        if line.starts_with("      ") && !line.starts_with("       ") {
            in_volumes = word == "volumes:";
        }
        let is_capability = word.strip_prefix("- ").is_some_and(|name| {
            name.len() > 3 && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
        });
        let is_volume = in_volumes && line.starts_with("        - name: ");
        let others = ["hostNetwork: true", "seLinuxOptions:", "priorityClassName: system-node-critical"];
        if is_capability || is_volume || others.contains(&word) {
            grants.push((number, word));
        }
    }
    grants
}

#[test]
fn every_privilege_is_explained_in_a_comment() {
    for (file, least) in [("deploy/base/daemonset.yaml", 10), ("deploy/uninstall/daemonset.yaml", 7)] {
        let text = text(file);
        let lines: Vec<&str> = text.lines().collect();
        let grants = grants(&text);
        assert!(grants.len() >= least, "{file}: only {grants:?}");
        for (number, word) in grants {
            // Consecutive lines share one sentence: the volume's own lines come after it.
            assert!(
                lines[number - 1].trim().starts_with("# "),
                "{file}:{}: {word} has no comment that explains it",
                number + 1
            );
        }
    }
}

#[test]
fn image_tag_is_the_programs_version_everywhere() {
    let name = "ghcr.io/towpath/towpath:";
    let mut found = 0;
    for file in [
        "deploy/base/daemonset.yaml",
        "deploy/uninstall/daemonset.yaml",
        "deploy/towpath.yaml",
        "deploy/Dockerfile",
        "docs/operations.md",
        "README.md",
    ] {
        for (_, rest) in
            text(file).match_indices(name).map(|(at, _)| (at, text(file)[at + name.len()..].to_owned()))
        {
            let tag = rest.split(|c: char| !c.is_ascii_alphanumeric() && !".-_".contains(c)).next().unwrap();
            assert_eq!(tag, VERSION, "{file}");
            found += 1;
        }
    }
    assert!(found >= 7, "only {found}");
}

/// The names of the folders in a folder.
fn folders(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(root().join(folder)).unwrap().map(Result::unwrap);
    entries.filter(|it| it.path().is_dir()).map(|it| it.file_name().into_string().unwrap()).collect()
}

#[test]
fn every_component_has_an_overlay_on_the_base() {
    let components = folders("deploy/components");
    assert_eq!(components, folders("deploy/overlays"));
    let Some(base) = rendered("deploy") else { return };
    for component in &components {
        let overlay = rendered(&format!("deploy/overlays/{component}")).unwrap();
        let more: Vec<_> = overlay.iter().filter(|object| !base.contains(object)).collect();
        let less: Vec<_> = base.iter().filter(|object| !overlay.contains(object)).collect();
        let listen = |objects: &[Value]| environment(&daemon(objects))["TOWPATH_LISTEN"]["value"].clone();
        match component.as_str() {
            "prometheus" => {
                assert_eq!((more.len(), less.len()), (1, 0));
                assert_eq!(
                    (&more[0]["kind"], &more[0]["metadata"]["namespace"]),
                    (&json!("PodMonitor"), &json!("towpath"))
                );
                let selector = &more[0]["spec"]["selector"]["matchLabels"];
                assert_eq!(selector, &one(&base, "DaemonSet")["spec"]["selector"]["matchLabels"]);
            }
            "alerts" => {
                let kinds: BTreeSet<_> = more.iter().map(|it| it["kind"].as_str().unwrap()).collect();
                assert_eq!((kinds, less.len()), (["PodMonitor", "PrometheusRule"].into(), 0));
                let rule = one(&overlay, "PrometheusRule");
                assert_eq!(rule["metadata"]["namespace"], "towpath");
                let rules = documents(&text("deploy/components/alerts/rules.yaml"));
                assert_eq!(rule["spec"], rules[0]);
            }
            "grafana" => {
                assert_eq!((more.len(), less.len()), (1, 0));
                let map = one(&overlay, "ConfigMap");
                assert_eq!(
                    (&map["metadata"]["name"], &map["metadata"]["namespace"]),
                    (&json!("towpath-dashboard"), &json!("towpath"))
                );
                // Without quotes the API server would refuse the label.
                assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
                let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
                let file = text("deploy/components/grafana/towpath.json");
                assert_eq!(json(map["data"]["towpath.json"].as_str().unwrap()), json(&file));
            }
            "kube-proxy-nftables" => {
                assert_eq!((more.len(), less.len()), (1, 1));
                let container = daemon(&overlay);
                assert_eq!(environment(&container)["TOWPATH_IPTABLES_BACKEND"]["value"], "nft");
                assert_eq!(listen(&overlay), listen(&base));
            }
            "events" => {
                assert_eq!((more.len(), less.len()), (1, 1));
                let rules =
                    |objects: &[Value]| one(objects, "ClusterRole")["rules"].as_array().unwrap().clone();
                let (ours, base) = (rules(&overlay), rules(&base));
                let create =
                    json!({"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]});
                assert_eq!(ours, [base, vec![create]].concat());
            }
            "drop-events" => {
                assert_eq!((more.len(), less.len()), (2, 2));
                let rules =
                    |objects: &[Value]| one(objects, "ClusterRole")["rules"].as_array().unwrap().clone();
                let (ours, base) = (rules(&overlay), rules(&base));
                let create =
                    json!({"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]});
                assert_eq!(ours, [base, vec![create]].concat());
                assert_eq!(environment(&daemon(&overlay))["TOWPATH_DROP_EVENTS"]["value"], "true");
            }
            "dual-stack" => {
                assert_eq!((more.len(), less.len()), (1, 1));
                assert_eq!(listen(&overlay), "[::]:9586");
            }
            "k3s" | "microk8s" => {
                assert_eq!((more.len(), less.len()), (1, 1));
                let (conf_dir, bin_dir) = match component.as_str() {
                    "k3s" => ("/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/cni"),
                    _ => (
                        "/var/snap/microk8s/current/args/cni-network",
                        "/var/snap/microk8s/current/opt/cni/bin",
                    ),
                };
                // A folder that kubelet creates is not the runtime's.
                let folder = |path: &str| json!({"path": path, "type": "Directory"});
                let expected = [Some(folder(conf_dir)), Some(folder(bin_dir))];
                assert_eq!(gate_folders(&overlay, "towpath"), expected);
                assert_eq!(daemon(&overlay), daemon(&base));
                let uninstall = rendered(&format!("deploy/uninstall-overlays/{component}")).unwrap();
                assert_eq!(gate_folders(&uninstall, "cleanup"), expected);
                assert_eq!(gate_folders(&uninstall, "done"), expected);
            }
            "no-gate" => {
                assert_eq!((more.len(), less.len()), (1, 1));
                assert_eq!(gate_folders(&overlay, "towpath"), [None, None]);
                assert!(!overlay.iter().any(|object| object.to_string().contains("cni")), "{overlay:?}");
                let uninstall = rendered("deploy/uninstall-overlays/no-gate").unwrap();
                assert!(!uninstall.iter().any(|object| object.to_string().contains("cni")), "{uninstall:?}");
            }
            other => panic!("{other} is not tested here"),
        }
    }
}

/// The node's folders in which a container installs the gate, or removes it: of configurations, and of plugins.
fn gate_folders(objects: &[Value], container: &str) -> [Option<Value>; 2] {
    let pod = pod(one(objects, "DaemonSet"));
    let all = containers(pod);
    let container = all.iter().find(|it| it["name"] == container).unwrap();
    let none = Vec::new();
    let entries = |list: &Value| list.as_array().unwrap_or(&none).clone();
    ["TOWPATH_CNI_CONF_DIR", "TOWPATH_CNI_BIN_DIR"].map(|variable| {
        let variable = entries(&container["env"]).into_iter().find(|it| it["name"] == variable)?;
        let mounts = entries(&container["volumeMounts"]);
        let mount = mounts.iter().find(|it| it["mountPath"] == variable["value"]).unwrap();
        assert!(mount["readOnly"].is_null());
        let volumes = entries(&pod["volumes"]);
        Some(volumes.iter().find(|it| it["name"] == mount["name"]).unwrap()["hostPath"].clone())
    })
}

#[test]
fn gate_is_removed_from_the_folders_in_which_it_is_installed() {
    let cleanup = documents(&text("deploy/uninstall/daemonset.yaml"));
    let folder = |path: &str| Some(json!({"path": path, "type": "DirectoryOrCreate"}));
    let expected = [folder("/etc/cni/net.d"), folder("/opt/cni/bin")];
    assert_eq!(gate_folders(&base(), "towpath"), expected);
    assert_eq!(gate_folders(&cleanup, "cleanup"), expected);
    assert_eq!(gate_folders(&cleanup, "done"), expected);
    // The daemon's folder of sockets is where the plugin looks for it on the node.
    let objects = base();
    let volumes = pod(one(&objects, "DaemonSet"))["volumes"].as_array().unwrap();
    let run = volumes.iter().find(|it| it["name"] == "run").unwrap();
    assert_eq!(run["hostPath"]["path"], "/run/towpath");
    let help = help(&["run"]);
    assert!(help.contains("Default: gate.sock in --run-dir") && help.contains("[default: /run/towpath]"));
    assert!(help.contains("[default: /usr/libexec/towpath/towpath-cni]"));

    let with_folders = ["k3s", "microk8s", "no-gate"].map(str::to_owned);
    assert_eq!(folders("deploy/uninstall-overlays"), with_folders.into());
}

#[test]
fn uninstall_runs_on_the_same_nodes_as_the_daemon() {
    let base = base();
    let cleanup = documents(&text("deploy/uninstall/daemonset.yaml"));
    let (daemon, cleanup) = (one(&base, "DaemonSet"), one(&cleanup, "DaemonSet"));
    for field in ["tolerations", "nodeSelector", "hostNetwork", "priorityClassName"] {
        assert_eq!(pod(daemon)[field], pod(cleanup)[field], "{field}");
    }
    assert_eq!(daemon["metadata"]["namespace"], cleanup["metadata"]["namespace"]);
    assert_ne!(daemon["spec"]["selector"], cleanup["spec"]["selector"]);
    // Its pods become ready when this has succeeded.
    assert_eq!(pod(cleanup)["initContainers"][0]["args"], json!(["cleanup"]));
    if let Some(objects) = rendered("deploy/uninstall") {
        assert_eq!(objects, std::slice::from_ref(cleanup));
    }
}

#[test]
fn image_is_built_with_the_tested_toolchain_and_debian() {
    let file = text("deploy/Dockerfile");
    let line = |start: &str| file.lines().find_map(|line| line.strip_prefix(start)).unwrap();
    let tag = line("FROM rust:").split(' ').next().unwrap();
    let (version, release) = tag.split_once("-slim-").unwrap();
    assert_eq!(version.split('.').count(), 3, "{tag} is not an exact version");
    assert_eq!(line("ENV RUSTUP_TOOLCHAIN="), version);
    assert!(version.starts_with(&format!("{}.", env!("CARGO_PKG_RUST_VERSION"))), "{tag}");
    assert!(text("deploy/rootfs").lines().any(|line| line == format!("release={release}")), "{release}");
    let rootfs =
        "RUN plugin=$(scripts/cni-plugin) && deploy/rootfs /image target/release/towpath \"$plugin\"\n";
    assert!(file.contains(rootfs));
    assert!(file.contains("FROM scratch\nCOPY --from=build /image/ /\n"));
    assert_eq!(line("ENV PATH="), crate::container::PATH);
    assert_eq!(line("ENTRYPOINT "), "[\"/usr/bin/towpath\"]");
    assert_eq!(line("USER "), "0:0");
}

#[test]
fn shell_scripts_pass_shellcheck() {
    let mut scripts: Vec<PathBuf> =
        fs::read_dir(root().join("scripts")).unwrap().map(|it| it.unwrap().path()).collect();
    scripts.extend([".ci/run", "deploy/rootfs"].map(|script| root().join(script)));
    scripts.retain(|script| is_shell(script));
    assert!(scripts.len() >= 4, "{scripts:?}");
    match Command::new("shellcheck").args(&scripts).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => skip(&format!("shellcheck: {error}")),
    }
}

fn is_shell(path: &Path) -> bool {
    fs::read_to_string(path)
        .is_ok_and(|text| text.starts_with("#!") && text.lines().next().unwrap().ends_with("sh"))
}
