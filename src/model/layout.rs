//! Which layout of names, chains, sets and tables this process writes.
//!
//! A release has one layout. A build with the lab can write another one, as another version of this program could: with
//! other digests, names, types of sets and shapes of chains. Tests upgrade a node from one to the other and back.

#[cfg(feature = "lab")]
static IS_OTHER: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Makes this process write the other layout. To be called before anything is named.
#[cfg(feature = "lab")]
pub fn use_other() {
    IS_OTHER.store(true, std::sync::atomic::Ordering::Relaxed);
}

/// Whether this process writes the other layout.
#[cfg(feature = "lab")]
pub(crate) fn is_other() -> bool {
    IS_OTHER.load(std::sync::atomic::Ordering::Relaxed)
}

/// Whether this process writes the other layout: never in a release.
#[cfg(not(feature = "lab"))]
pub(crate) const fn is_other() -> bool {
    false
}
