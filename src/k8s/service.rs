//! Services, as far as a question about a flow needs them. The daemon does not read them: policies apply to packets after
//! a Service's address was replaced by that of a pod.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::{api::core::v1, apimachinery::pkg::util::intstr::IntOrString};

use super::{
    convert::DEFAULT_NAMESPACE,
    manifest::deserialize::ObjectReader,
    yaml::{
        node::{self, Value, YamlNode},
        pieces::pieces,
    },
};
use crate::model::{LabelSelector, ObjectKey, Pod, Protocol, Requirement};

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace and name.
    pub key: ObjectKey,
    /// Its cluster addresses; none if it is headless.
    pub addresses: Vec<IpAddr>,
    /// The pods of its namespace that it leads to; `None` if others say where it leads.
    pub selector: Option<LabelSelector>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, if it has one.
    pub name: Option<Arc<str>>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number at the address of the Service.
    pub number: u16,
    /// The port of the pods that it leads to.
    pub target: TargetPort,
}

/// The port of a pod that a port of a Service leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// This number.
    Number(u16),
    /// The port that the pod declares by this name.
    Name(Arc<str>),
}

impl Service {
    /// The Service of an API object; `None` if it has no name or is one for a name outside of the cluster.
    #[must_use]
    pub fn new(object: &v1::Service) -> Option<Self> {
        let name = object.metadata.name.as_deref().filter(|name| !name.is_empty())?;
        let namespace = object.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        let spec = object.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return None;
        }
        let many = spec.cluster_ips.iter().flatten();
        let mut addresses: Vec<IpAddr> =
            many.chain(&spec.cluster_ip).filter_map(|text| text.parse().ok()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty());
        let selector = selector.map(|selector| {
            let pairs = selector.iter().map(|(key, value)| Requirement::equals(key.as_str(), value.as_str()));
            LabelSelector::new(pairs)
        });
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            let number = u16::try_from(port.port).ok().filter(|number| *number > 0)?;
            let target = match &port.target_port {
                None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
                Some(IntOrString::Int(target)) => TargetPort::Number(u16::try_from(*target).ok()?),
                Some(IntOrString::String(name)) => TargetPort::Name(name.as_str().into()),
            };
            let protocol = match port.protocol.as_deref() {
                None => Protocol::Tcp,
                Some(protocol) => protocol.parse().ok()?,
            };
            let name = port.name.as_deref().filter(|name| !name.is_empty()).map(Arc::from);
            Some(ServicePort { name, protocol, number, target })
        });
        let ports = ports.collect();
        Some(Self { key: ObjectKey::new(namespace, name), addresses, selector, ports })
    }

    /// Whether it leads to this pod.
    #[must_use]
    pub fn selects(&self, pod: &Pod) -> bool {
        pod.key.namespace == self.key.namespace
            && !pod.is_finished()
            && self.selector.as_ref().is_some_and(|selector| selector.matches(&pod.labels))
    }
}

impl ServicePort {
    /// Its number at this pod; `None` if it is a name that the pod does not declare.
    #[must_use]
    pub fn at(&self, pod: &Pod) -> Option<u16> {
        match &self.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => pod.named_port(name, self.protocol).first().copied(),
        }
    }
}

/// The Services among the objects of a text. What is wrong with the text is no matter of this function.
#[must_use]
pub fn in_text(text: &str) -> Vec<Service> {
    let mut found = Vec::new();
    for piece in pieces(text).iter().filter(|piece| piece.text.contains("Service")) {
        let (documents, _) = node::parse(piece.text);
        for root in documents.iter().filter_map(|document| document.root.as_ref()) {
            collect(root, "", &mut found);
        }
    }
    found
}

/// `kind` is that of the list's items, if this is one that need not say so.
fn collect(root: &YamlNode<'_>, kind: &str, found: &mut Vec<Service>) {
    let text = |field| root.get(field).and_then(YamlNode::as_str);
    let kind = text("kind").unwrap_or(kind);
    match (kind, root.get("items").map(|items| &items.value)) {
        ("List" | "ServiceList", Some(Value::List(items))) => {
            let kind = kind.trim_end_matches("List");
            for item in items {
                collect(item, kind, found);
            }
        }
        ("Service", _) if text("apiVersion").is_none_or(|api| api == "v1") => {
            let object = ObjectReader::new(root).read::<v1::Service>();
            found.extend(object.as_ref().and_then(Service::new));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ContainerPort;

    const TEXT: &str = "\
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.7, selector: {app: web},
  ports: [{name: http, port: 80, targetPort: http}, {port: 443, targetPort: 8443}, {port: 53, protocol: UDP}]}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: Service}}
---
apiVersion: v1
kind: List
items:
  - {apiVersion: v1, kind: Service, metadata: {name: outside}, spec: {type: ExternalName, externalName: a.example}}
  - {apiVersion: v1, kind: Service, metadata: {name: manual}, spec: {clusterIP: None, ports: [{port: 1}]}}
  - {apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: other}, spec: {template: {}}}
---
apiVersion: v1
kind: ServiceList
items: [{metadata: {name: listed, namespace: shop}, spec: {selector: {app: db}, ports: [{port: 5432}]}}]
";

    #[test]
    fn services_are_found_alone_and_in_lists() {
        let names: Vec<String> = in_text(TEXT).iter().map(|service| service.key.to_string()).collect();
        assert_eq!(names, ["shop/web", "default/manual", "shop/listed"]);
    }

    #[test]
    fn service_leads_to_its_pods_and_to_their_ports() {
        let services = in_text(TEXT);
        let [web, manual, listed] = &services[..] else { panic!("{services:?}") };
        assert_eq!(web.addresses, ["10.96.0.7".parse::<IpAddr>().unwrap()]);
        assert_eq!((&manual.selector, &manual.addresses[..]), (&None, &[][..]));
        let port = ContainerPort { name: Some("http".into()), protocol: Protocol::Tcp, number: 8080 };
        let labels = [("app", "web")].into_iter().collect();
        let pod = Pod { labels, ports: vec![port], ..Pod::new(ObjectKey::new("shop", "web-1")) };
        assert!(web.selects(&pod) && !manual.selects(&pod) && !listed.selects(&pod));
        assert!(!web.selects(&Pod { key: ObjectKey::new("bank", "web-1"), ..pod.clone() }));
        let at: Vec<Option<u16>> = web.ports.iter().map(|port| port.at(&pod)).collect();
        assert_eq!(at, [Some(8080), Some(8443), Some(53)]);
        assert_eq!(web.ports[0].at(&Pod { ports: Vec::new(), ..pod }), None);
        assert_eq!(web.ports[2].protocol, Protocol::Udp);
    }
}
