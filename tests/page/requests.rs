//! What `towpath ui` answers, and to whom.

use std::{fs, process::Command};

use serde_json::{Value, json};

use crate::served::{STARS, Served};

const DENY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: stars}\n\
                    spec: {podSelector: {}}\n";

const READS: [&str; 8] = [
    "/api/v1/about",
    "/api/v1/state",
    "/api/v1/graph",
    "/api/v1/policies",
    "/api/v1/policy?policy=stars/deny",
    "/api/v1/explain?from=stars/backend&to=client/client&port=80",
    "/api/v1/nodes",
    "/api/v1/drops",
];
const WRITES: [&str; 3] = ["/api/v1/validate", "/api/v1/diff", "/api/v1/apply"];

fn stars() -> Served {
    Served::new(&[("objects.yaml", STARS), ("deny.yaml", DENY)], &[])
}

#[test]
fn nothing_about_the_objects_is_answered_without_the_token_or_to_another_site() {
    let (served, other) = (stars(), stars());
    let host = served.host();
    let bearer = format!("Bearer {}", served.token());
    let strange = format!("Bearer {}", other.token());
    for (method, path) in READS.map(|path| ("GET", path)).into_iter().chain(WRITES.map(|path| ("POST", path)))
    {
        let status = |headers: &[(&str, &str)]| served.send(method, path, headers, "").status;
        assert_eq!(status(&[("Host", host)]), 401, "{path}");
        assert_eq!(status(&[("Host", host), ("Authorization", &strange)]), 401, "{path}");
        assert_eq!(
            status(&[("Host", host), ("Cookie", &format!("token={}", served.token()))]),
            401,
            "{path}"
        );
        // A name that another site's owner makes point here.
        assert_eq!(status(&[("Host", "evil.example"), ("Authorization", &bearer)]), 421, "{path}");
        for (name, value) in
            [("Origin", "http://evil.example"), ("Origin", "null"), ("Sec-Fetch-Site", "cross-site")]
        {
            assert_eq!(
                status(&[("Host", host), ("Authorization", &bearer), (name, value)]),
                403,
                "{path} {name}"
            );
        }
    }
    for path in READS {
        assert_eq!(served.ask("GET", path, &Value::Null).status, 200, "{path}");
    }
}

#[test]
fn no_other_origin_is_given_permission_to_send_the_token() {
    let served = stars();
    let headers = [
        ("Host", served.host()),
        ("Origin", "http://evil.example"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization"),
    ];
    let answer = served.send("OPTIONS", "/api/v1/apply", &headers, "");
    assert!(answer.status >= 400 && !answer.head.contains("access-control-"), "{answer:?}");
}

#[test]
fn every_answer_has_a_strict_content_security_policy() {
    let served = stars();
    for path in ["/", "/app.js", "/app.css", "/icon.svg", "/NOTICE.txt", "/nothing", "/api/v1/graph"] {
        let answer = served.send("GET", path, &[("Host", served.host())], "");
        let line = answer.head.lines().find(|line| line.starts_with("content-security-policy:")).unwrap();
        assert!(
            line.contains("default-src 'none'") && line.contains("frame-ancestors 'none'"),
            "{path}: {line}"
        );
        assert!(!line.contains("unsafe") && !line.contains('*') && !line.contains("http"), "{path}: {line}");
        assert!(answer.head.contains("x-content-type-options: nosniff"), "{path}");
    }
    let page = served.send("GET", "/", &[("Host", served.host())], "").body;
    assert!(!page.contains("<style") && !page.contains("onload") && !page.contains("://"), "{page}");
}

#[test]
fn page_and_command_line_explain_alike() {
    let served = stars();
    let answer = served
        .ask("GET", "/api/v1/explain?from=client/client&to=stars/backend&port=6379", &Value::Null)
        .json();
    let output = |format: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
        command.args([
            "explain",
            "--from",
            "client/client",
            "--to",
            "stars/backend",
            "--port",
            "6379",
            "-o",
            format,
        ]);
        // The page wraps lines itself.
        let output = command.args(["--width", "100000", "-f"]).arg(served.path()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(answer["explanation"], serde_json::from_str::<Value>(&output("json")).unwrap());
    assert_eq!(answer["text"], output("text"));
    assert_eq!(answer["explanation"]["verdict"], "deny");
}

#[test]
fn read_only_page_changes_nothing() {
    let served = Served::new(&[("objects.yaml", STARS), ("deny.yaml", DENY)], &["--read-only"]);
    assert_eq!(served.ask("GET", "/api/v1/about", &Value::Null).json()["writable"], false);
    let stored = served.ask("GET", "/api/v1/policy?policy=stars/deny", &Value::Null).json();
    let edit = json!({ "replaces": "stars/deny", "revision": stored["revision"], "text": null });
    assert_eq!(served.ask("POST", "/api/v1/apply", &edit).status, 403);
    assert_eq!(fs::read_to_string(served.path().join("deny.yaml")).unwrap(), DENY);
}

#[test]
fn page_is_served_on_this_machine_alone_and_from_files_that_exist() {
    let status = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_towpath"));
        let output = command.arg("ui").args(arguments).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = status(&["-f", ".", "--listen", "0.0.0.0:0"]);
    assert!(code == 2 && text.contains("ssh -L"), "{code} {text}");
    let (code, text) = status(&["-f", "/nonexistent"]);
    assert!(code == 3 && text.contains("/nonexistent"), "{code} {text}");
    let (code, text) = status(&["-f", "-"]);
    assert!(code == 2 && text.contains("standard input"), "{code} {text}");
}

#[test]
fn too_large_and_malformed_requests_are_refused() {
    let served = stars();
    let large = json!({ "text": "x".repeat(5 << 20) });
    assert_eq!(served.ask("POST", "/api/v1/validate", &large).status, 413);
    assert_eq!(served.ask("POST", "/api/v1/validate", &json!({ "txt": "" })).status, 422);
    assert_eq!(served.ask("GET", "/api/v1/policy?policy=deny", &Value::Null).status, 400);
    assert_eq!(served.ask("GET", "/api/v1/policy?policy=stars/no", &Value::Null).status, 404);
    assert_eq!(
        served.ask("GET", "/api/v1/explain?from=stars/no&to=stars/backend&port=1", &Value::Null).status,
        404
    );
}
