//! What names and ports of a question mean.

use super::*;
use crate::{
    k8s::service::TargetPort,
    model::{Change, LabelSelector, Labels, Namespace, Requirement},
};

fn port(name: Option<&str>, protocol: Protocol, number: u16) -> ContainerPort {
    ContainerPort { name: name.map(Into::into), protocol, number }
}

/// Two pods of the Deployment shop/web, shop/db, bank/db on node n1, and a Service for web.
fn objects() -> (Cluster, Vec<Service>) {
    let mut cluster = Cluster::new();
    for name in ["shop", "bank", "deploy-tools"] {
        cluster.apply(Change::SetNamespace(Namespace { name: name.into(), labels: Labels::default() }));
    }
    let web = |name: &str| Pod {
        labels: [("app", "web")].into_iter().collect(),
        ports: vec![port(Some("http"), Protocol::Tcp, 8080), port(Some("metrics"), Protocol::Tcp, 9090)],
        workload: Some(Arc::new(Workload { kind: "Deployment".into(), name: "web".into() })),
        ..Pod::new(ObjectKey::new("shop", name))
    };
    let db = |namespace: &str, ports| Pod { ports, ..Pod::new(ObjectKey::new(namespace, "db")) };
    let on_node = Pod {
        node: Some("n1".into()),
        node_addresses: vec!["192.168.0.1".parse().unwrap()],
        addresses: vec!["10.0.0.9".parse().unwrap()],
        ..db("bank", vec![port(None, Protocol::Udp, 53)])
    };
    let backup = Pod {
        workload: Some(Arc::new(Workload { kind: "Job".into(), name: "backup-2901".into() })),
        ..Pod::new(ObjectKey::new("shop", "backup-2901-x"))
    };
    for pod in [web("web-5d-aa"), web("web-5d-bb"), db("shop", Vec::new()), on_node, backup] {
        cluster.apply(Change::SetPod(pod));
    }
    let service = Service {
        key: ObjectKey::new("shop", "front"),
        addresses: vec!["10.96.0.7".parse().unwrap()],
        selector: Some(LabelSelector::new([Requirement::equals("app", "web")])),
        ports: vec![
            ServicePort {
                name: Some("web".into()),
                protocol: Protocol::Tcp,
                number: 80,
                target: TargetPort::Name("http".into()),
            },
            ServicePort {
                name: None,
                protocol: Protocol::Tcp,
                number: 443,
                target: TargetPort::Name("https".into()),
            },
        ],
    };
    let manual = Service { key: ObjectKey::new("shop", "manual"), selector: None, ..service.clone() };
    let nowhere = LabelSelector::new([Requirement::equals("app", "gone")]);
    let idle = Service {
        key: ObjectKey::new("shop", "idle"),
        selector: Some(nowhere),
        addresses: Vec::new(),
        ..service.clone()
    };
    (cluster, vec![service, Service { addresses: Vec::new(), ..manual }, idle])
}

fn resolve_in(
    namespace: Option<&str>,
    preferred: Option<&str>,
    text: &str,
) -> Result<(Option<String>, Vec<String>), String> {
    let (cluster, services) = objects();
    let names = Names { cluster: &cluster, services: &services, namespace, preferred };
    let end = names.resolve(text).map_err(|error| error.to_string())?;
    Ok((end.title, end.endpoints.iter().map(ToString::to_string).collect()))
}

/// What a name stands for.
fn means(text: &str) -> String {
    resolve_in(None, None, text).map_or_else(|error| format!("error: {error}"), |(_, ends)| ends.join(" "))
}

#[test]
fn pods_addresses_workloads_services_and_nodes_have_the_names_that_kubectl_knows() {
    for text in ["shop/db", "10.0.0.1", "ip:10.0.0.1", "fd00::1"] {
        assert_eq!(means(text).trim_start_matches("ip:"), text.trim_start_matches("ip:"));
    }
    let web = "shop/web-5d-aa shop/web-5d-bb";
    for text in
        ["deploy/web", "deployments/web", "Deployment/web", "shop/deploy/web", "shop/web", "web", "svc/front"]
    {
        assert_eq!(means(text), web, "{text}");
    }
    for text in ["shop/svc/front", "shop/service/front", "front", "10.96.0.7"] {
        assert_eq!(means(text), web, "{text}");
    }
    for text in ["cj/backup", "shop/cronjob/backup", "job/backup-2901"] {
        assert_eq!(means(text), "shop/backup-2901-x", "{text}");
    }
    assert_eq!(means("cj/backup-2901"), "error: there is no CronJob backup-2901 among the objects");
    assert_eq!(means("node/n1"), "ip:192.168.0.1");
    assert_eq!(means("n1"), "ip:192.168.0.1");
    assert_eq!(means("po/web-5d-aa"), "shop/web-5d-aa");
    assert_eq!(means("web-5d-aa"), "shop/web-5d-aa");
    let (title, _) = resolve_in(None, None, "svc/front").unwrap();
    assert_eq!(title.as_deref(), Some("shop/service/front"));
}

#[test]
fn name_in_several_namespaces_needs_one_of_them() {
    assert_eq!(means("db"), "error: \"db\" may be bank/db or shop/db: name one of them");
    let in_shop = || (None, vec!["shop/db".to_owned()]);
    assert_eq!(resolve_in(Some("shop"), None, "db"), Ok(in_shop()));
    assert_eq!(resolve_in(None, Some("shop"), "db"), Ok(in_shop()));
    assert_eq!(
        resolve_in(Some("bank"), None, "shop/db"),
        Ok(in_shop()),
        "a name with a namespace has its own"
    );
    let other = resolve_in(Some("bank"), None, "web");
    assert_eq!(other, Err("there is no pod bank/web among the objects".to_owned()));
    assert!(resolve_in(None, Some("shop"), "web").is_ok());
}

#[test]
fn misspelt_names_are_answered_with_the_nearest_ones() {
    let error = |text| means(text).strip_prefix("error: ").unwrap().to_owned();
    assert_eq!(error("shop/bd"), "there is no pod shop/bd among the objects: did you mean db?");
    assert_eq!(error("shpo/db"), "there is no namespace shpo among the objects: did you mean shop?");
    assert_eq!(error("deploy/wbe"), "there is no Deployment wbe among the objects: did you mean web?");
    assert_eq!(
        error("shop/svc/fornt"),
        "there is no Service shop/fornt among the objects: did you mean front?"
    );
    assert_eq!(error("node/n2"), "there is no node n2 among the objects: did you mean n1?");
    assert_eq!(
        error("shop/web-5d"),
        "there is no pod shop/web-5d among the objects: did you mean web-5d-aa?"
    );
    assert_eq!(error("shop/zzzzzz"), "there is no pod shop/zzzzzz among the objects");
    assert_eq!(error("shop/deplyo/web"), "\"deplyo\" is not a kind of pods: did you mean deploy?");
    assert!(error("shop/svc/idle").starts_with("the Service shop/idle leads nowhere: no pod has app=gone"));
    assert!(error("svc/manual").starts_with("the Service shop/manual has no selector"));
    for text in ["", "/", "a//b", "a/b/c/d", "a b", "10.0.0", "\u{1b}[31m\n"] {
        let error = error(text);
        assert!(error.contains("is neither NAMESPACE/POD nor an IP address"), "{error}");
        assert!(!error.contains('\u{1b}'), "{error}");
    }
}

fn asked(
    to: &str,
    port: Option<&str>,
    protocol: Option<Protocol>,
) -> Result<(Vec<String>, Option<String>), String> {
    let (cluster, services) = objects();
    let names = Names { cluster: &cluster, services: &services, namespace: None, preferred: None };
    let to = names.resolve(to).map_err(|error| error.to_string())?;
    let port = port.map(asked_port).transpose()?;
    let ports = ports(&cluster, &to, port.as_ref(), protocol).map_err(|error| error.to_string())?;
    let mut transports: Vec<String> = ports.asked.iter().map(|port| port.transport.to_string()).collect();
    transports.dedup();
    Ok((transports, ports.why))
}

#[test]
fn ports_are_numbers_names_and_those_of_services() {
    let port = |to, port| asked(to, Some(port), None).map(|(ports, _)| ports.join(" "));
    assert_eq!(port("shop/db", "80").unwrap(), "80/TCP");
    assert_eq!(port("shop/db", "53/udp").unwrap(), "53/UDP");
    assert_eq!(port("shop/web-5d-aa", "metrics").unwrap(), "9090/TCP");
    assert_eq!(port("svc/front", "80").unwrap(), "8080/TCP");
    assert_eq!(port("svc/front", "web").unwrap(), "8080/TCP");
    assert_eq!(asked("shop/db", Some("53"), Some(Protocol::Udp)).unwrap().0, ["53/UDP"]);

    assert_eq!(
        port("shop/web-5d-aa", "metrisc").unwrap_err(),
        "shop/web-5d-aa has no port named metrisc: did you mean metrics?; its ports are http (8080/TCP), \
         metrics (9090/TCP)"
    );
    assert!(port("shop/web-5d-aa", "metrics/UDP").unwrap_err().contains("has no port named metrics"));
    assert!(port("198.51.100.1", "http").unwrap_err().contains("give its number"));
    assert!(port("svc/front", "8080").unwrap_err().contains("its ports are web (80/TCP), 443/TCP"));
    assert!(
        port("svc/front", "443")
            .unwrap_err()
            .contains("leads to a port that shop/web-5d-aa does not declare")
    );
    let both = asked("shop/db", Some("53/TCP"), Some(Protocol::Udp)).unwrap_err();
    assert_eq!(both, "--port asks for TCP and --protocol for UDP: give one of them");
    for wrong in ["0", "65536", "-1", "80/ICMP", "", "a b", "UPPER", "--", "name-that-is-too-long"] {
        assert!(asked_port(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn without_a_port_the_declared_ones_are_asked_about_and_80_if_there_is_none() {
    let (ports, why) = asked("web", None, None).unwrap();
    assert_eq!(ports, ["8080/TCP", "9090/TCP", "8080/TCP", "9090/TCP"], "of each of the two pods");
    assert_eq!(why.unwrap(), "without --port, the ports that shop/deployment/web declares are asked about");
    let (ports, why) = asked("shop/db", None, None).unwrap();
    assert_eq!(
        (ports, why.unwrap().as_str()),
        (vec!["80/TCP".to_owned()], "shop/db declares no port, so 80/TCP is asked about")
    );
    let (ports, why) = asked("bank/db", None, None).unwrap();
    assert_eq!(ports, ["53/UDP"]);
    assert_eq!(why.unwrap(), "without --port, the only port that bank/db declares is asked about");
    assert_eq!(asked("bank/db", None, Some(Protocol::Tcp)).unwrap().0, ["80/TCP"]);
    // 443 leads to a port that the pods do not declare.
    assert_eq!(asked("svc/front", None, None).unwrap().0, ["8080/TCP"]);
    let (ports, why) = asked("198.51.100.1", None, None).unwrap();
    assert_eq!(
        (ports, why.unwrap().as_str()),
        (vec!["80/TCP".to_owned()], "without --port, 80/TCP is asked about")
    );
}
