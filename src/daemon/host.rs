//! Settings of the host without which packets bypass the rules: checked every two seconds, without starting a process.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use tracing::{error, info};

use crate::{
    agent::Status,
    dataplane::{
        command::Commands,
        kernel::{ipvs, sysctl::Bridge},
    },
    metrics::Metrics,
};

/// Which settings to check.
#[derive(Debug)]
pub struct HostChecks {
    /// Whether bridged packets must pass through iptables.
    pub bridge_netfilter: bool,
    /// Whether the node is not ready while IPVS balances Services.
    pub ipvs: bool,
    /// The directory of the network sysctls.
    pub proc_sys_net: PathBuf,
}

/// The part of the daemon that reports IPVS.
const IPVS: &str = "ipvs";

/// The part of the daemon that reports bridged packets.
const BRIDGE: &str = "bridge";

/// How often to check.
const INTERVAL: Duration = Duration::from_secs(2);

/// Checks at once, and then on its own thread for as long as the process runs.
pub(super) fn watch(
    wanted: &HostChecks,
    commands: &Arc<Commands>,
    metrics: &Arc<Metrics>,
    status: &Arc<Status>,
) -> io::Result<()> {
    let mut checks: Vec<Box<dyn FnMut() + Send>> = vec![ipvs(wanted.ipvs, status.clone())];
    if wanted.bridge_netfilter {
        let bridge = Bridge::below(&wanted.proc_sys_net);
        checks.push(bridge_netfilter(bridge, commands.clone(), metrics.clone(), status.clone()));
    }
    let mut check = move || {
        for check in &mut checks {
            check();
        }
    };
    check();
    thread::Builder::new().name("host".to_owned()).spawn(move || {
        loop {
            thread::sleep(INTERVAL);
            check();
        }
    })?;
    Ok(())
}

/// Sets the sysctls for bridged packets, and sets them again when they are changed.
fn bridge_netfilter(
    bridge: Bridge,
    commands: Arc<Commands>,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
) -> Box<dyn FnMut() + Send> {
    let mut first = true;
    Box::new(move || {
        let is_repair = !std::mem::replace(&mut first, false);
        let faults = bridge.check();
        if faults.is_empty() {
            status.set_condition(BRIDGE, None);
            return;
        }
        match bridge.ensure(&commands) {
            Ok(changes) => {
                for change in changes {
                    info!(%change, "changed a kernel setting");
                }
                if is_repair {
                    metrics.drift_repairs.inc();
                }
                status.set_condition(BRIDGE, None);
            }
            Err(error) => {
                error!(%error, "packets between pods of this node bypass iptables");
                status.set_condition(BRIDGE, Some(error.to_string()));
            }
        }
    })
}

/// Checks whether IPVS balances Services: packets to them bypass the rules.
fn ipvs(refused: bool, status: Arc<Status>) -> Box<dyn FnMut() + Send> {
    let mut reported = false;
    Box::new(move || {
        let services = ipvs::services(Path::new(ipvs::PROC_IP_VS));
        let found = services > 0 && refused;
        if found && !reported {
            error!(services, "IPVS serves Services: traffic from pods to them is not policed");
        }
        reported = found;
        status.set_condition(
            IPVS,
            found.then(|| {
                format!(
                    "IPVS balances {services} Services on this node, and what pods send to these bypasses FORWARD, \
                     where policy is enforced: run kube-proxy in mode iptables or nftables, or set --ipvs=ignore"
                )
            }),
        );
    })
}
