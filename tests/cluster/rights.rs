//! The ClusterRole of deploy/ grants the daemon what it needs, and nothing else.

use std::{collections::BTreeSet, thread, time::Duration};

use serde_json::{Value, json};

use crate::harness::{
    Daemon, READY, SOON, World,
    control_plane::PORT,
    objects::{labelled, namespace},
    with_control_plane,
};

const ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/towpath";

const VERBS: [&str; 3] = ["get", "list", "watch"];
const KINDS: [(&str, &str); 4] =
    [("", "pods"), ("", "namespaces"), ("", "nodes"), ("networking.k8s.io", "networkpolicies")];

/// One right of a role: a verb, an API group, and a kind in the plural.
type Right = (String, String, String);

fn right(verb: &str, group: &str, kind: &str) -> Right {
    (verb.to_owned(), group.to_owned(), kind.to_owned())
}

fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// The rights of a role, one by one.
fn rights(role: &Value) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        let fields: Vec<_> = rule.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["apiGroups", "resources", "verbs"], "the tests know rules of kinds only: {rule}");
        for verb in texts(&rule["verbs"]) {
            for group in texts(&rule["apiGroups"]) {
                rights.extend(texts(&rule["resources"]).iter().map(|kind| right(&verb, &group, kind)));
            }
        }
    }
    rights
}

fn expected_rights() -> BTreeSet<Right> {
    KINDS.iter().flat_map(|(group, kind)| VERBS.map(|verb| right(verb, group, kind))).collect()
}

/// A ServiceAccount `towpath/NAME` with exactly these rights.
fn account(world: &World, name: &str, rights: &BTreeSet<Right>) {
    let rules: Vec<Value> = rights
        .iter()
        .map(|(verb, group, kind)| json!({ "apiGroups": [group], "resources": [kind], "verbs": [verb] }))
        .collect();
    let rbac = "rbac.authorization.k8s.io";
    let api = world.api();
    api.delete(&format!("/apis/{rbac}/v1/clusterroles/{name}"));
    api.delete(&format!("/apis/{rbac}/v1/clusterrolebindings/{name}"));
    api.create(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "namespace": "towpath", "name": name },
    }));
    api.create(&json!({
        "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": { "name": name }, "rules": rules,
    }));
    api.create(&json!({
        "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": { "name": name },
        "roleRef": { "apiGroup": rbac, "kind": "ClusterRole", "name": name },
        "subjects": [{ "kind": "ServiceAccount", "namespace": "towpath", "name": name }],
    }));
}

/// What a ServiceAccount `towpath/NAME` requested, and whether it was refused.
fn requests(world: &World, name: &str) -> BTreeSet<(Right, bool)> {
    let user = format!("system:serviceaccount:towpath:{name}");
    let events = world.plane.audit().into_iter().filter(|event| event["user"]["username"] == *user);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    events
        .map(|event| {
            let object = &event["objectRef"];
            let kind = if object.is_null() { &event["requestURI"] } else { &object["resource"] };
            let right = (text(&event["verb"]), text(&object["apiGroup"]), text(kind));
            (right, event["responseStatus"]["code"] == 403)
        })
        .collect()
}

/// The role has exactly the documented rights. With it, no request of a daemon is refused, and the audit log contains
/// no request beyond the role. The next test checks which rights are necessary.
#[test]
fn deployed_role_suffices_with_get_list_and_watch_of_four_kinds() {
    with_control_plane(|plane| {
        let world = World::new(plane, &[("shop/db", 0), ("shop/web", 1)]);
        let role = rights(&world.api().get(ROLE).unwrap());
        let expected = expected_rights();
        let spare: Vec<&Right> = role.difference(&expected).collect();
        let lacking: Vec<&Right> = expected.difference(&role).collect();
        assert!(spare.is_empty(), "the role grants more than it should: {spare:?}");
        assert!(lacking.is_empty(), "the role lacks {lacking:?}");

        let daemon = world.run(0);
        world.policy("shop/db", &json!({ "podSelector": labelled(&json!({ "app": "db" })) }));
        world.until("shop/web", "shop/db", false, SOON);
        // Everything is listed and watched again.
        world.cable(0).reset(&world.plane);
        world.api().create(&namespace("later", &json!({})));
        world.label("shop/db", &json!({ "app": "open" }));
        world.until("shop/web", "shop/db", true, SOON + SOON);
        drop(daemon);
        let requests = requests(&world, "towpath");
        let refused: Vec<_> = requests.iter().filter(|(_, refused)| *refused).collect();
        assert!(refused.is_empty(), "{refused:?}");
        let beyond: Vec<_> = requests.iter().filter(|(right, _)| !expected.contains(right)).collect();
        assert!(beyond.is_empty(), "requested without a permission: {beyond:?}");
        for (group, kind) in KINDS {
            let watched = requests.contains(&(right("watch", group, kind), false));
            assert!(watched, "{kind} are not watched: {requests:?}");
        }
        println!(
            "requested: {:?}",
            requests.iter().map(|((verb, _, kind), _)| (verb, kind)).collect::<Vec<_>>()
        );
    });
}

/// The port of an API server that cannot stream lists, as all did before Kubernetes 1.32.
const WITHOUT_STREAMING: u16 = PORT + 1;

/// With each right of the role missing in turn, on an API server that streams lists and on one that does not.
///
/// `watch` is needed on both, `list` where lists are not streamed. `get` is not used today: it is in the role because
/// tools for inspecting a cluster expect it with the other two, and the test above ensures that it is in there and
/// nothing more.
#[test]
fn missing_permission_is_named_and_the_daemon_is_not_ready() {
    with_control_plane(|plane| {
        let world = World::new(plane, &[("shop/db", 0)]);
        let _second_server =
            world.plane.second_server(WITHOUT_STREAMING, &["--feature-gates=WatchList=false"]);
        let all = rights(&world.api().get(ROLE).unwrap());
        for (number, without) in all.iter().enumerate() {
            let (verb, _, kind) = without;
            let name = format!("less-{number}");
            let mut rest = all.clone();
            rest.remove(without);
            account(&world, &name, &rest);
            let token = world.api().token(&format!("towpath/{name}"), None);
            for port in [PORT, WITHOUT_STREAMING] {
                let mut command = world.command(0, &["--kubeconfig"]);
                command.arg(world.kubeconfig(&name, port, &token));
                let daemon = Daemon::start(&world, 0, command);
                let is_needed = verb == "watch" || verb == "list" && port == WITHOUT_STREAMING;
                if is_needed {
                    // The refusal names verb and kind, and where the rule can be found.
                    let refusal = format!("cannot {verb} resource \"{kind}\"");
                    let reason = daemon.wait_unready(READY, &[&refusal, "deploy/rbac.yaml"]);
                    println!("without {verb} of {kind}: {}", reason.trim());
                    thread::sleep(Duration::from_millis(300));
                    assert!(!daemon.is_ready());
                } else {
                    daemon.wait_ready();
                }
            }
        }
    });
}
