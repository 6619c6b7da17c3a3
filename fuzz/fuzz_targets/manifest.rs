//! Files with manifests.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| towpath_fuzz::check(
    data,
    towpath::k8s::manifest::fuzzing::manifest
));
