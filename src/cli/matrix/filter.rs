//! Which flows of a matrix are shown.

use std::{fmt, net::IpAddr, str::FromStr};

use clap::Args;

use crate::{
    cli::Ended,
    model::{Cluster, Endpoint},
    policy::Reach,
};

/// Which flows to show.
#[derive(Debug, Args)]
pub(super) struct FilterArgs {
    /// Only flows from these: NAMESPACE, NAMESPACE/POD, NAMESPACE/WORKLOAD or an IP address of --external; may be
    /// repeated.
    #[arg(long, value_name = "X", env = "TOWPATH_FROM", value_delimiter = ',')]
    from: Vec<Selected>,
    /// Only flows to these, likewise.
    #[arg(long, value_name = "Y", env = "TOWPATH_TO", value_delimiter = ',')]
    to: Vec<Selected>,
    /// Only flows from or to pods in this namespace; may be repeated.
    #[arg(short, long, value_name = "NAMESPACE", env = "TOWPATH_NAMESPACE", value_delimiter = ',')]
    namespace: Vec<String>,
    /// Only flows from or to this workload; may be repeated.
    #[arg(long, value_name = "NAMESPACE/NAME", env = "TOWPATH_WORKLOAD", value_delimiter = ',')]
    workload: Vec<String>,
    /// Only flows that pass.
    #[arg(long, env = "TOWPATH_ALLOWED", conflicts_with = "denied")]
    allowed: bool,
    /// Only flows that are denied.
    #[arg(long, env = "TOWPATH_DENIED")]
    denied: bool,
}

/// Some ends.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Selected {
    Namespace(String),
    /// A pod, or the pods of a workload.
    Named {
        namespace: String,
        name: String,
    },
    Address(IpAddr),
}

impl FromStr for Selected {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.strip_prefix("ip:").unwrap_or(text).parse() {
            return Ok(Self::Address(address));
        }
        match text.split_once('/') {
            None if !text.is_empty() => Ok(Self::Namespace(text.to_owned())),
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self::Named { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("{text:?} is neither NAMESPACE, NAMESPACE/NAME nor an IP address")),
        }
    }
}

impl fmt::Display for Selected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(namespace) => write!(f, "pod in the namespace {namespace:?}"),
            Self::Named { namespace, name } => {
                write!(f, "pod or workload {:?}", format!("{namespace}/{name}"))
            }
            Self::Address(address) => write!(f, "address {address} among those of --external"),
        }
    }
}

impl Selected {
    fn selects(&self, cluster: &Cluster, end: &Endpoint) -> bool {
        match (self, end) {
            (Self::Address(address), Endpoint::Address(end)) => address == end,
            (Self::Namespace(namespace), Endpoint::Pod(key)) => *key.namespace == **namespace,
            (Self::Named { namespace, name }, Endpoint::Pod(key)) => {
                let workload = cluster.pod(key).and_then(|pod| pod.workload.as_ref());
                *key.namespace == **namespace
                    && (*key.name == **name || workload.is_some_and(|workload| *workload.name == **name))
            }
            _ => false,
        }
    }
}

/// Which ends each flag selects; `None` if it was not given.
#[derive(Debug)]
pub(super) struct Filter {
    from: Option<Vec<Endpoint>>,
    to: Option<Vec<Endpoint>>,
    either: Option<Vec<Endpoint>>,
    /// Whether flows that pass, or those that do not, are left out.
    without: Option<bool>,
}

impl Filter {
    /// Every flow.
    pub(super) const fn everything() -> Self {
        Self { from: None, to: None, either: None, without: None }
    }

    /// What selects nothing is a mistake, and reported.
    pub(super) fn new(args: &FilterArgs, cluster: &Cluster, external: &[IpAddr]) -> Result<Self, Ended> {
        let pods = cluster.pods().filter(|pod| !pod.is_finished()).map(|pod| Endpoint::Pod(pod.key.clone()));
        let ends: Vec<Endpoint> = pods.chain(external.iter().copied().map(Endpoint::Address)).collect();
        let selected = |by: &[Selected]| -> Result<Option<Vec<Endpoint>>, Ended> {
            for one in by {
                if !ends.iter().any(|end| one.selects(cluster, end)) {
                    return Err(Ended::WrongUse(anyhow::anyhow!("there is no {one}")));
                }
            }
            let is_selected = |end: &&Endpoint| by.iter().any(|one| one.selects(cluster, end));
            let mut selected: Vec<Endpoint> = ends.iter().filter(is_selected).cloned().collect();
            selected.sort_unstable();
            Ok((!by.is_empty()).then_some(selected))
        };
        let mut either: Vec<Selected> = args.namespace.iter().cloned().map(Selected::Namespace).collect();
        for workload in &args.workload {
            let Ok(named @ Selected::Named { .. }) = workload.parse() else {
                return Err(Ended::WrongUse(anyhow::anyhow!(
                    "{workload:?} is not of the form NAMESPACE/NAME"
                )));
            };
            either.push(named);
        }
        Ok(Self {
            from: selected(&args.from)?,
            to: selected(&args.to)?,
            either: selected(&either)?,
            without: (args.allowed || args.denied).then_some(args.denied),
        })
    }

    /// Whether it leaves out any flow.
    pub(super) const fn is_active(&self) -> bool {
        self.from.is_some() || self.to.is_some() || self.either.is_some() || self.without.is_some()
    }

    /// Whether only flows that do not pass are shown.
    pub(super) fn is_of_denied(&self) -> bool {
        self.without == Some(true)
    }

    /// Whether flows between these ends are shown.
    pub(super) fn shows(&self, from: &Endpoint, to: &Endpoint) -> bool {
        Self::shows_selected(self.of(from), self.of(to))
    }

    /// The same by how the flags select them.
    pub(super) const fn shows_selected(from: Selection, to: Selection) -> bool {
        from.sender && to.receiver && (from.either || to.either)
    }

    /// Whether flows with this verdict are shown. One that depends on the family is both.
    pub(super) fn shows_verdict(&self, reach: Reach) -> bool {
        match (self.without, reach) {
            (None, _) | (_, Reach::Only(..)) => true,
            (Some(passing), reach) => passing != reach.allowed(None),
        }
    }

    /// How the flags select this end. Ends that differ here are not shown as one.
    pub(super) fn of(&self, end: &Endpoint) -> Selection {
        let has =
            |ends: &Option<Vec<Endpoint>>| ends.as_ref().is_none_or(|ends| ends.binary_search(end).is_ok());
        Selection { sender: has(&self.from), receiver: has(&self.to), either: has(&self.either) }
    }
}

/// As what an end is selected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Selection {
    sender: bool,
    receiver: bool,
    either: bool,
}
