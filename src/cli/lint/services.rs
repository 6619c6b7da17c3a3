//! The Services beside the policies: their ports are easily taken for those of pods.

use crate::{
    k8s::service::{self, TargetPort},
    policy::findings::{Service, ServicePort, Target},
};

/// Those that lead to pods, as far as their ports are concerned.
pub(super) fn of(services: &[service::Service]) -> Vec<Service> {
    let convert = |one: &service::Service| {
        let ports = one.ports.iter().map(|port| ServicePort {
            protocol: port.protocol,
            port: port.number,
            target: match &port.target {
                TargetPort::Number(number) => Target::Number(*number),
                TargetPort::Name(name) => Target::Name(name.clone()),
            },
        });
        let pods = one.selector.clone()?;
        Some(Service { key: one.key.clone(), pods, ports: ports.collect() })
    };
    services.iter().filter_map(convert).collect()
}
