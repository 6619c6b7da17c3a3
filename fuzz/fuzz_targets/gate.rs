//! What the gate reads: messages, records, CNI configurations.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| towpath_fuzz::check(data, towpath::gate::fuzzing::gate));
