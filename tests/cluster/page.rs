//! The page of `towpath ui` for a kubeconfig, in a real browser, and a real API server that decides what is applied.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    browser::{check, has_browser, play},
    harness::{ControlPlane, SOON, api::write_kubeconfig, objects, process::bound, with_control_plane},
    wait::wait_until,
};

/// The pods of the demo "stars", and two pods of towpath's daemon of which one is not ready.
fn fill(plane: &ControlPlane) {
    let api = plane.api();
    let node = "100.100.1.1".parse().unwrap();
    for (at, (namespace, name)) in [
        ("stars", "frontend"),
        ("stars", "backend"),
        ("client", "client"),
        ("management-ui", "management-ui"),
    ]
    .into_iter()
    .enumerate()
    {
        if api.get(&format!("/api/v1/namespaces/{namespace}")).is_none() {
            api.create(&objects::namespace(namespace, &json!({ "role": namespace })));
        }
        let address = format!("10.244.1.{}", at + 2).parse().unwrap();
        api.create(&objects::pod(
            &format!("{namespace}/{name}"),
            &json!({ "role": name }),
            "n1",
            &[address],
            &[node],
        ));
    }
    if api.get("/api/v1/namespaces/towpath").is_none() {
        let applied = plane.kubectl(&["apply", "-k", "deploy"], "");
        assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    }
    for (node, status, message) in
        [("n1", "True", ""), ("n2", "False", "containers with unready status: [towpath]")]
    {
        let key = format!("towpath/towpath-{node}");
        let label = json!({ "app.kubernetes.io/name": "towpath" });
        let mut pod = objects::pod(&key, &label, node, &[], &[]);
        pod["spec"]["hostNetwork"] = json!(true);
        pod["spec"]["containers"][0]["ports"] = json!([]);
        pod["status"] = json!({
            "phase": "Running", "conditions": [{ "type": "Ready", "status": status, "message": message }],
        });
        api.create(&pod);
    }
}

/// A `towpath ui` in the namespace of the control plane; it ends when this is dropped.
struct Page {
    child: Child,
    url: String,
}

impl Page {
    fn new(plane: &ControlPlane, kubeconfig: &Path, folder: &Path) -> Self {
        let out = folder.join("url");
        let mut command = bound(Path::new(env!("CARGO_BIN_EXE_towpath")));
        command.args(["ui", "--listen", "127.0.0.1:0", "--kubeconfig"]).arg(kubeconfig);
        command.stdin(Stdio::null()).stdout(fs::File::create(&out).unwrap());
        let child = plane.netns().spawn(command).unwrap();
        let read = || fs::read_to_string(&out).unwrap_or_default();
        wait_until("the address of the page", SOON, || read().ends_with('\n'));
        Self { child, url: read().trim_end().to_owned() }
    }

    fn play(&self, plane: &ControlPlane, scenario: &str) {
        let mut command: Command = play(scenario, &self.url);
        command.env("PAGE_KUBECTL", plane.program("kubectl")).env("PAGE_KUBECONFIG", plane.kubeconfig());
        check(plane.netns().output(command, "").unwrap());
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

const POLICY: &str = "/apis/networking.k8s.io/v1/namespaces/stars/networkpolicies/default-deny";

#[test]
fn page_applies_with_the_rights_of_its_kubeconfig_and_never_over_a_change_of_another() {
    with_control_plane(|plane| {
        if !has_browser() {
            return;
        }
        fill(&plane);
        let folder = tempfile::tempdir().unwrap();
        Page::new(&plane, &plane.kubeconfig(), folder.path()).play(&plane, "cluster");
        assert_eq!(plane.api().get(POLICY), None, "deleted at the end");

        // The daemon's own account may read and not write.
        let token = folder.path().join("token");
        fs::write(&token, plane.api().token("towpath/towpath", None)).unwrap();
        let kubeconfig = folder.path().join("reader");
        let user: Value = json!({ "tokenFile": token });
        let port = crate::harness::control_plane::PORT;
        write_kubeconfig(&kubeconfig, &format!("https://127.0.0.1:{port}"), &plane.pki(), &user);
        Page::new(&plane, &kubeconfig, folder.path()).play(&plane, "reader");
        assert_eq!(plane.api().get(POLICY), None);
    });
}
