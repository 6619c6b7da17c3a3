//! What iptables-save, ipset and nft print.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| towpath_fuzz::check(
    data,
    towpath::dataplane::kernel::fuzzing::tools
));
