//! Root.

/// Whether the process is root, which tests with network namespaces need. If not, it prints that the test is skipped;
/// in CI nothing is skipped, and the test fails.
pub(crate) fn has_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    assert!(is_root || std::env::var("CI").as_deref() != Ok("true"), "CI runs these tests as root");
    if !is_root {
        println!("skipped: needs root, to make network namespaces");
    }
    is_root
}
