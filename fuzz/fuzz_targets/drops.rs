//! Copies of dropped packets.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| towpath_fuzz::check(
    data,
    towpath::dataplane::kernel::fuzzing::drops
));
