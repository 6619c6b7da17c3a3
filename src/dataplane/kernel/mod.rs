//! The kernel: netfilter's filter tables through `iptables`, its sets through `ipset`.
//!
//! ```text
//! variant     which of the two variants of iptables
//! chains      chains and hooks: iptables-restore, iptables-save
//! sets        ipset restore, save, list
//! verify      whether our chains still hold the rules that we wrote
//! watch       notices changes by other programs at once
//! sysctl      br_netfilter and its switches
//! ipvs        whether Services bypass FORWARD
//! conntrack   connections that a new ruleset denies
//! cleanup     removes everything of ours
//! survey      what a bug report needs
//! lock        one writer per network namespace
//! links       the interfaces of the node, and what is behind them
//! guard       what may enter through the interfaces of pods
//! nflog       copies of dropped packets
//! pod_counters   what was counted of each pod
//! netlink     the messages that watch, conntrack, links and guard exchange with the kernel
//! ```

mod chains;
pub mod cleanup;
pub mod conntrack;
#[cfg(feature = "lab")]
pub mod fuzzing;
pub mod guard;
pub mod ipvs;
pub mod links;
pub mod lock;
mod netlink;
pub mod nflog;
pub mod pod_counters;
mod sets;
pub mod survey;
pub mod sysctl;
mod variant;
mod verify;
mod watch;

use std::{io, sync::Arc};

use caps::{CapSet, Capability};

pub use variant::{Backend, BackendError, Variant};
pub use watch::Watch;

use self::{
    chains::{Filter, Saved},
    cleanup::Removed,
    variant::{Tools, usable_families},
    verify::Prints,
    watch::Journal,
};
use super::{ApplyError, CheckDepth, Dataplane, DataplaneError, Difference, Drift, command::Commands, drift};
use crate::{
    model::Family,
    ruleset::{
        BuiltIn, ChainName, Rule,
        observed::Observed,
        plan::{ChainBatch, Step},
    },
};

/// The kernel of this network namespace, as a dataplane.
#[derive(Debug)]
pub struct Kernel {
    commands: Arc<Commands>,
    tools: Tools,
    families: Vec<Family>,
    /// Only the nft variant announces changes, so only there it matters which ones are ours.
    journal: Option<Arc<Journal>>,
    prints: Prints,
}

impl Kernel {
    /// Finds out how to access the kernel; writes nothing.
    ///
    /// # Errors
    /// If this process lacks the privilege, a program is not installed, or the kernel has no sets.
    pub fn new(commands: Arc<Commands>, backend: Backend) -> Result<Self, DataplaneError> {
        require_net_admin()?;
        require_sets(&commands)?;
        let tools = variant::choose(&commands, backend)?;
        require_filter_table(&commands, &tools)?;
        let mut families = usable_families(&commands, &tools);
        families.retain(|family| is_usable(&commands, &tools, *family));
        if !families.contains(&Family::V6) {
            if variant::kernel_has_ipv6() {
                return Err(DataplaneError::Unsupported {
                    what: "IPv6 is on, but its filter table cannot be used, so that it would not be policed"
                        .to_owned(),
                    remedy: "install ip6tables and load the module ip6table_filter, or turn IPv6 off on the node",
                });
            }
            tracing::info!("IPv6 is not available");
        }
        let journal = (tools.variant == Variant::Nft).then(journal).flatten();
        Ok(Self { commands, tools, families, journal, prints: Prints::default() })
    }

    /// The variant of iptables that it uses.
    #[must_use]
    pub const fn variant(&self) -> Variant {
        self.tools.variant
    }

    /// The families that it can enforce policy for: IPv4, and IPv6 unless the kernel lacks it.
    #[must_use]
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// Whether the kernel accepts a rule like this. Tries it in a chain that nothing refers to.
    ///
    /// # Errors
    /// If that could not be tried.
    pub fn takes(&mut self, rule: &Rule) -> Result<bool, DataplaneError> {
        let Some(name) = ChainName::new("TOWPATH-TRIAL") else { return Ok(false) };
        let write = vec![(name.clone(), std::iter::once(rule.clone()).collect())];
        let trial = ChainBatch { write, ..ChainBatch::default() };
        let end = ChainBatch { remove: vec![name], ..ChainBatch::default() };
        match self.apply(&Step::Chains(Family::V4, trial)) {
            Err(ApplyError::Refused(_)) => Ok(false),
            Err(ApplyError::Failed(error)) => Err(error),
            Ok(()) => match self.apply(&Step::Chains(Family::V4, end)) {
                Err(ApplyError::Failed(error)) => Err(error),
                _ => Ok(true),
            },
        }
    }

    /// Calls `notify` from its own thread when another program changed the filter table. Several changes may be
    /// reported as one.
    ///
    /// In the nft variant the kernel announces changes, and `notify` is called only if they concern us: our chains,
    /// those that we hook into, or the table itself. In the legacy variant it is called whenever another process took
    /// the xtables lock, which programs that only read also do; call [`quick_check`](Self::quick_check) then. `None` if
    /// neither can be watched.
    #[must_use]
    pub fn watch(&self, notify: impl Fn() + Send + 'static) -> Option<Watch> {
        let watch = match self.tools.variant {
            Variant::Nft => Watch::nft(Arc::clone(self.journal.as_ref()?), notify),
            Variant::Legacy => Watch::legacy(Arc::clone(&self.commands), notify),
        };
        watch
            .inspect_err(
                |error| tracing::warn!(%error, "no change notifications from the kernel; relying on the periodic check"),
            )
            .ok()
    }

    /// Calls `notify` from its own thread when a set of ours became empty, usually within a fifth of a second. `None` if
    /// that cannot be watched.
    #[must_use]
    pub fn watch_sets(&self, notify: impl Fn() + Send + 'static) -> Option<Watch> {
        Watch::sets(notify)
            .inspect_err(|error| tracing::warn!(%error, "cannot read the sizes of sets; relying on the periodic check"))
            .ok()
    }

    /// Whether our jump is still the first rule of FORWARD: one short run of iptables for each family, 3 ms with few
    /// rules and 12 ms with 11,000. Most foreign changes of the filter table show there: a flush removes the jump.
    ///
    /// # Errors
    /// If it could not be queried.
    pub fn quick_check(&self, expected: &Observed) -> Result<Drift, DataplaneError> {
        let at = BuiltIn::Forward;
        let mut drift = Drift::default();
        for family in &self.families {
            let Some(hook) = expected.table(*family).hooks.get(&at) else { continue };
            let question = format!("-S {} 1", at.name());
            let first = self.commands.ask(&self.tools.main(*family), "filter", &question)?;
            let found = Saved::parse(&first.checked()?).hooks;
            if found.get(&at) != Some(hook) {
                let finding = format!("the first rule of the {family} chain {} is not our jump", at.name());
                drift.extend([(finding, Difference::Other)]);
            }
        }
        Ok(drift)
    }

    /// Removes our hooks and chains from the tables of the variant that is not in use, where a previous run may have
    /// left them. Call it only when the first sync is in the kernel, or there is a time without rules.
    #[must_use]
    pub fn remove_other_variant(&self) -> Removed {
        let mut removed = Removed::default();
        let others = variant::installed(&self.commands).unwrap_or_default();
        for tools in others.iter().filter(|tools| tools.variant != self.tools.variant) {
            cleanup::remove_chains(&self.commands, tools, &mut removed);
        }
        removed
    }

    fn filter(&self, family: Family) -> Filter<'_> {
        Filter { commands: &self.commands, tools: &self.tools, journal: self.journal.as_deref(), family }
    }
}

impl Dataplane for Kernel {
    fn observe(&mut self) -> Result<Observed, DataplaneError> {
        let mut observed = Observed::default();
        for family in &self.families {
            *observed.table_mut(*family) = self.filter(*family).read()?.into_observed();
        }
        let saved = sets::read(&self.commands)?;
        for (name, set) in saved.sets {
            observed.table_mut(name.family()).sets.insert(name, set);
        }
        for name in saved.others {
            observed.table_mut(name.family()).others.insert(name);
        }
        let heads = sets::read_heads(&self.commands)?;
        for (name, _) in heads.into_iter().filter(|(_, head)| head.references == 0) {
            observed.table_mut(name.family()).unused.insert(name);
        }
        Ok(observed)
    }

    fn apply(&mut self, step: &Step) -> Result<(), ApplyError> {
        match step {
            Step::Sets(edits) => sets::apply(&self.commands, edits),
            Step::Gc(edits) => sets::gc(&self.commands, edits),
            Step::Chains(family, batch) if self.families.contains(family) => {
                self.filter(*family).apply(batch)
            }
            // There are no packets of this family.
            Step::Chains(..) => Ok(()),
        }
    }

    fn settled(&mut self) {
        let removed = self.remove_other_variant();
        if removed.chains > 0 {
            tracing::info!(
                chains = removed.chains,
                "removed rules of a previous run from the other iptables variant"
            );
        }
        for left in removed.left {
            tracing::warn!(left = %left, "cannot remove what a previous run left");
        }
    }

    fn check(&mut self, expected: &Observed, depth: CheckDepth) -> Result<Drift, DataplaneError> {
        let mut drift = Drift::default();
        for family in &self.families {
            let filter = Filter {
                commands: &self.commands,
                tools: &self.tools,
                journal: self.journal.as_deref(),
                family: *family,
            };
            let (table, saved) = (expected.table(*family), filter.read()?);
            let counts = saved.chains.iter().map(|(name, rules)| (name.clone(), rules.len())).collect();
            drift.extend(drift::chains(*family, table, &counts, &saved.hooks));
            drift.extend(self.prints.differences(&filter, table, &saved)?);
        }
        match depth {
            CheckDepth::Counts => {
                let heads = sets::read_heads(&self.commands)?;
                for family in Family::BOTH {
                    let usual = |set: &_| heads.get(set).filter(|head| head.is_usual);
                    let entries = |set: &_| usual(set).map(|head| head.entries);
                    drift.extend(drift::sets(expected.table(family), entries));
                }
                sets::read_members(&self.commands, &mut drift.differences)?;
            }
            CheckDepth::Members => {
                let there = sets::read(&self.commands)?.sets;
                for family in Family::BOTH {
                    drift.extend(drift::members(expected.table(family), &there));
                }
            }
        }
        Ok(drift)
    }
}

fn journal() -> Option<Arc<Journal>> {
    Journal::open()
        .inspect_err(|error| tracing::warn!(%error, "no change notifications from the kernel; relying on the periodic check"))
        .ok()
        .map(Arc::new)
}

fn require_net_admin() -> Result<(), DataplaneError> {
    match caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN) {
        Ok(true) => Ok(()),
        Ok(false) => Err(DataplaneError::NotPermitted { capability: "CAP_NET_ADMIN" }),
        Err(error) => {
            let doing = "reading the capabilities of this thread".to_owned();
            Err(DataplaneError::System { doing, source: io::Error::other(error) })
        }
    }
}

fn require_sets(commands: &Commands) -> Result<(), DataplaneError> {
    let output = commands.run("ipset", &["list", "-name"], "")?;
    if output.success {
        return Ok(());
    }
    Err(DataplaneError::Unsupported {
        what: format!("this kernel has no IP sets ({})", output.stderr),
        remedy: "load the modules ip_set and xt_set (modprobe -a ip_set xt_set)",
    })
}

fn require_filter_table(commands: &Commands, tools: &Tools) -> Result<(), DataplaneError> {
    let output = commands.ask(&tools.main(Family::V4), "filter", "-S FORWARD 1")?;
    if output.success {
        return Ok(());
    }
    Err(DataplaneError::Unsupported {
        what: format!("the filter table cannot be used ({}: {})", output.command, output.stderr),
        remedy: match tools.variant {
            Variant::Nft => "load the modules nf_tables and nft_compat, or choose the legacy backend",
            Variant::Legacy => "load the module iptable_filter, or choose the nft backend",
        },
    })
}

/// Whether the family's filter table can be queried; a kernel may lack that of IPv6.
fn is_usable(commands: &Commands, tools: &Tools, family: Family) -> bool {
    if family == Family::V4 {
        return true;
    }
    match commands.ask(&tools.main(family), "filter", "-S FORWARD 1") {
        Ok(output) if output.success => true,
        Ok(output) => {
            tracing::warn!(
                command = output.command,
                error = output.stderr,
                "cannot use the IPv6 filter table"
            );
            false
        }
        Err(error) => {
            tracing::warn!(%error, "cannot use the IPv6 filter table");
            false
        }
    }
}
