//! Objects that an older API server admitted stay in the storage forever, and watches receive them.

use serde_json::json;

use crate::harness::{
    SOON, World,
    objects::{self, labelled, path},
    with_control_plane,
};

#[test]
fn stored_object_that_is_invalid_today_does_not_stop_other_objects() {
    with_control_plane(|plane| {
        let world =
            World::new(plane, &[("shop/db", 0), ("shop/web", 1), ("shop/odd", 1), ("shop/broken", 0)]);
        // A label value never contained blanks, so a selector with them never matched anything.
        let bad_value = objects::policy(
            "shop/bad-value",
            &json!({
                "podSelector": labelled(&json!({ "app": "db" })), "policyTypes": ["Ingress"],
                "ingress": [{ "from": [{ "podSelector": labelled(&json!({ "app": "no such value!" })) }] }],
            }),
        );
        assert!(world.api().try_create(&bad_value).is_err(), "a current API server refuses it");
        // Not a valid CIDR: this policy cannot be interpreted, and isolates what it selects.
        let bad_block = objects::policy(
            "shop/bad-block",
            &json!({
                "podSelector": labelled(&json!({ "app": "broken" })), "policyTypes": ["Ingress"],
                "ingress": [{ "from": [{ "ipBlock": { "cidr": "10.0.0.0/99" } }] }],
            }),
        );
        let mut odd_pod = world.object("shop/odd", &json!({ "app": "odd", "note": "not a label value!" }));
        odd_pod["metadata"]["uid"] = "00000000-0000-0000-0000-000000000001".into();
        let put = |kind: &str, object: &serde_json::Value| {
            let name = object["metadata"]["name"].as_str().unwrap();
            world.plane.put(&format!("/registry/{kind}/shop/{name}"), object);
        };

        // In the first list.
        put("networkpolicies", &bad_value);
        put("pods", &odd_pod);
        let daemon = world.run(0);
        world.until("shop/web", "shop/db", false, SOON);
        world.policy(
            "shop/web",
            &json!({
                "podSelector": labelled(&json!({ "app": "db" })),
                "ingress": [{ "from": [{ "podSelector": {
                    "matchExpressions": [{ "key": "app", "operator": "In", "values": ["web", "odd"] }],
                } }] }],
            }),
        );
        world.until("shop/web", "shop/db", true, SOON);
        world.until("shop/odd", "shop/db", true, SOON);

        // And during a watch; later changes are still received.
        put("networkpolicies", &bad_block);
        world.until("shop/web", "shop/broken", false, SOON);
        world.label("shop/web", &json!({ "app": "other" }));
        world.until("shop/web", "shop/db", false, SOON);
        assert!(daemon.log().contains("shop/bad-block"), "the log names the invalid object");
        world.api().delete(&path("networkpolicies", "shop/bad-block"));
        world.until("shop/web", "shop/broken", true, SOON);
    });
}
