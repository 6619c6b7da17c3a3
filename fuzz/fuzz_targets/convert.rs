//! Objects as the API server sends them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| towpath_fuzz::check(data, towpath::k8s::watch::fuzzing::convert));
