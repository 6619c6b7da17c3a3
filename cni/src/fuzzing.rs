//! What must hold for any configuration and environment that a runtime passes.

use std::ffi::OsString;

use crate::{
    config::Config,
    environment,
    prev_result::{self, Made},
};

/// Reads `text` as the configuration on standard input, and checks what is read.
///
/// # Panics
/// If what is read breaks a rule of the plugin.
pub fn configuration(text: &[u8]) {
    let Ok(config) = Config::parse(text) else { return };
    if let Ok(network) = config.network() {
        assert!(crate::protocol::is_name(&network), "{network:?}");
    }
    if let Ok(socket) = config.socket() {
        assert!(socket.is_absolute() && socket.as_os_str().len() <= 107, "{}", socket.display());
    }
    if let Ok(entry) = config.entry() {
        assert!((1..=240).contains(&entry.timeout.as_secs()), "{:?}", entry.timeout);
        assert!(config.refuse_unknown_fields().is_ok());
    }
    for id in config.valid_attachments().unwrap_or_default() {
        assert_eq!(id.file_name().matches('/').count(), 0, "{id}");
    }
    let Ok(previous) = config.prev_result() else { return };
    let raw = previous.get().as_bytes();
    assert!(text.windows(raw.len()).any(|part| part == raw), "it is passed on as it came");
    for ifname in ["eth0", "", "net1"] {
        let Ok(Made { host_interfaces, mac, addresses }) = prev_result::read(previous, ifname) else {
            continue;
        };
        let text = previous.get();
        let names = text.matches("\"name\"").count() + text.matches('\\').count();
        assert!(host_interfaces.len() <= names, "{host_interfaces:?}");
        assert!(mac.is_none_or(|mac| !mac.is_empty()));
        assert!(addresses.len() <= text.len() / 2);
    }
}

/// Reads `text` as `CNI_ARGS`, `CNI_CONTAINERID` and `CNI_IFNAME`, and checks what is read.
///
/// # Panics
/// If what is read breaks a rule of the plugin.
pub fn environment(text: &str) {
    let variables = |_: &str| Some(OsString::from(text));
    if let Ok(Some(pod)) = environment::pod(&variables) {
        assert!(!pod.name.is_empty() && !pod.namespace.is_empty(), "{pod}");
        assert!(pod.uid.is_none_or(|uid| !uid.is_empty()));
    }
    if let Ok(id) = environment::attachment_id(&variables) {
        assert!(!id.file_name().contains(['/', '\0']), "{id}");
    }
}
