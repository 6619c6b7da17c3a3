//! What the plugins before this one made.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{Code, Error};

/// What the daemon needs of a previous result. It has this form since version 0.3.0; fields that later versions added or
/// removed (`version` of `ips`) are not needed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) host_interfaces: Vec<String>,
    pub(crate) mac: Option<String>,
    pub(crate) addresses: Vec<IpAddr>,
}

#[derive(Deserialize)]
struct PrevResult {
    interfaces: Option<Vec<Interface>>,
    ips: Option<Vec<Ip>>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    mac: Option<String>,
    /// "The isolation domain reference (e.g. path to network namespace) for the interface, or empty if on the host."
    sandbox: Option<String>,
}

impl Interface {
    fn is_on_host(&self) -> bool {
        self.sandbox.as_deref().unwrap_or_default().is_empty()
    }
}

#[derive(Deserialize)]
struct Ip {
    /// "An IP address in CIDR notation"
    address: String,
    /// "The index into the `interfaces` list [...] indicating which interface this IP configuration should be applied
    /// to."
    interface: Option<usize>,
}

/// Reads a previous result for the interface `ifname` in the container.
pub(crate) fn read(raw: &RawValue, ifname: &str) -> Result<Made, Error> {
    let result: PrevResult = serde_json::from_str(raw.get())
        .map_err(|error| Error::new(Code::Decode, "prevResult cannot be read", error))?;
    let interfaces = result.interfaces.unwrap_or_default();
    let place = interfaces.iter().position(|one| !one.is_on_host() && one.name == ifname);

    let mut addresses = Vec::new();
    for ip in result.ips.unwrap_or_default() {
        if let Some(index) = ip.interface
            && index >= interfaces.len()
        {
            let details = format!("{} is for interface {index}, of {}", ip.address, interfaces.len());
            return Err(Error::new(
                Code::InvalidConfig,
                "prevResult names an interface that it lacks",
                details,
            ));
        }
        if ip.interface.is_none() || ip.interface == place {
            let address = ip.address.split('/').next().unwrap_or_default().parse().map_err(|_| {
                let details = format!("{:?} is no address in CIDR notation", ip.address);
                Error::new(Code::Decode, "prevResult cannot be read", details)
            })?;
            addresses.push(address);
        }
    }
    Ok(Made {
        mac: place.and_then(|place| interfaces[place].mac.clone()).filter(|mac| !mac.is_empty()),
        host_interfaces: interfaces.into_iter().filter(Interface::is_on_host).map(|one| one.name).collect(),
        addresses,
    })
}
