//! Removes what the kernel holds of an address that changes its owner.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread,
    time::Duration,
};

use tracing::{error, info, warn};

use crate::{
    dataplane::{
        DataplaneError,
        kernel::{conntrack::Conntrack, links::Links},
    },
    metrics::Metrics,
};

/// What the kernel holds of addresses that change their owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Traffic {
    /// Tracked connections. To find them it walks through a table that may have room for hundreds of thousands.
    Connections,
    /// Packets that wait for a hardware address.
    Waiting,
    /// Both.
    All,
}

/// A request to remove traffic of addresses.
struct Forget {
    traffic: Traffic,
    addresses: BTreeSet<IpAddr>,
    /// Is told whether it is removed.
    done: SyncSender<bool>,
}

/// Traffic that is being removed.
pub(super) struct Forgetting(Receiver<bool>);

impl Forgetting {
    /// Waits until it is removed, or until `patience` ends. Returns whether it is removed.
    pub(super) fn wait(self, patience: Duration) -> bool {
        self.0.recv_timeout(patience).unwrap_or_else(|_| {
            warn!("connections of the former owner of an address may still be tracked");
            false
        })
    }
}

/// The thread that removes traffic.
#[derive(Debug)]
pub(super) struct TrafficCleaner(Sender<Forget>);

impl TrafficCleaner {
    pub(super) fn start(metrics: Arc<Metrics>) -> io::Result<Self> {
        let (sender, requests) = channel();
        thread::Builder::new()
            .name("gate-forget".to_owned())
            .spawn(move || forget_traffic(&requests, &metrics))?;
        Ok(Self(sender))
    }

    /// Starts to remove what the kernel holds of these addresses.
    pub(super) fn forget(&self, traffic: Traffic, addresses: BTreeSet<IpAddr>) -> Forgetting {
        let (done, forgotten) = sync_channel(1);
        // Without a receiver, the wait ends at once with a warning.
        let _ = self.0.send(Forget { traffic, addresses, done });
        Forgetting(forgotten)
    }

    /// One that removes nothing, and answers like this.
    #[cfg(test)]
    pub(super) fn fake(mut answer: impl FnMut(Traffic) -> bool + Send + 'static) -> Self {
        let (sender, requests) = channel::<Forget>();
        thread::spawn(move || {
            for request in requests {
                let _ = request.done.try_send(answer(request.traffic));
            }
        });
        Self(sender)
    }
}

/// Deletes tracked connections, and packets that wait for hardware addresses. Pods that start together wait for one
/// walk through the tables.
fn forget_traffic(requests: &Receiver<Forget>, metrics: &Metrics) {
    while let Ok(first) = requests.recv() {
        let requests: Vec<Forget> = std::iter::once(first).chain(requests.try_iter()).collect();
        let of_all = |except: Traffic| -> BTreeSet<IpAddr> {
            let these = requests.iter().filter(|request| request.traffic != except);
            these.flat_map(|request| request.addresses.iter().copied()).collect()
        };
        let addresses = of_all(Traffic::Waiting);
        let without_connections = addresses.is_empty() || forget_connections(&addresses, metrics);
        let addresses = of_all(Traffic::Connections);
        let without_waiting = addresses.is_empty() || forget_waiting(&addresses, metrics);
        for request in requests {
            let is_done = match request.traffic {
                Traffic::Connections => without_connections,
                Traffic::Waiting => without_waiting,
                Traffic::All => without_connections && without_waiting,
            };
            // The plugin may have given up.
            let _ = request.done.try_send(is_done);
        }
    }
}

/// Deletes tracked connections. Returns whether that was possible.
fn forget_connections(addresses: &BTreeSet<IpAddr>, metrics: &Metrics) -> bool {
    match Conntrack::open().and_then(|mut conntrack| conntrack.forget(addresses)) {
        Ok(0) => {}
        Ok(count) => info!(count, "removed tracked connections of the former owner of an address"),
        Err(error) => {
            error!(%error, "cannot remove tracked connections of the former owner of an address");
            metrics.failed("conntrack", error.reason().label());
            return false;
        }
    }
    true
}

/// Drops packets that wait for hardware addresses. Returns whether that was possible.
fn forget_waiting(addresses: &BTreeSet<IpAddr>, metrics: &Metrics) -> bool {
    if let Err(source) = Links::open().and_then(|mut links| links.forget_neighbours(addresses)) {
        let doing = "dropping packets that wait for a new pod".to_owned();
        let error = DataplaneError::System { doing, source };
        error!(%error, "cannot remove what the node holds for the former owner of an address");
        metrics.failed("gate", error.reason().label());
        return false;
    }
    true
}
