//! The steps of a plan: edits of sets and chains, as data.

use super::{BuiltIn, Chain, ChainName, Member, SetKind, SetName};
use crate::model::Family;

/// One step of a plan, carried out by one run of one tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Edits of sets, in this order; each takes effect by itself.
    Sets(Vec<SetEdit>),
    /// Changes of one family's chains, which take effect all at once.
    Chains(Family, ChainBatch),
    /// Removal of sets that nothing uses any more. Nothing waits for it: the kernel may still hold a set for a
    /// moment after the last rule that used it is gone, and the next sync removes it.
    Gc(Vec<SetEdit>),
}

/// One edit of one set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetEdit {
    /// Creates an empty set.
    Create(SetName, SetKind),
    /// Adds a member.
    Add(SetName, Member),
    /// Removes a member.
    Remove(SetName, Member),
    /// Destroys a set.
    Destroy(SetName),
}

impl SetEdit {
    /// The set that it edits.
    #[must_use]
    pub const fn set(&self) -> &SetName {
        match self {
            Self::Create(name, _) | Self::Add(name, _) | Self::Remove(name, _) | Self::Destroy(name) => name,
        }
    }
}

/// Changes of the chains of one family, for one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainBatch {
    /// Chains to write completely, whether or not they exist already.
    pub write: Vec<(ChainName, Chain)>,
    /// Chains to remove.
    pub remove: Vec<ChainName>,
    /// Jumps in built-in chains to repair.
    pub hooks: Vec<HookEdit>,
}

impl ChainBatch {
    pub(super) fn is_empty(&self) -> bool {
        self.write.is_empty() && self.remove.is_empty() && self.hooks.is_empty()
    }
}

/// A change of our jump in a built-in chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookEdit {
    /// The built-in chain.
    pub at: BuiltIn,
    /// Jumps to remove, one entry for each rule.
    pub remove: Vec<ChainName>,
    /// The chain that its first rule should jump to.
    pub now: Option<ChainName>,
}
