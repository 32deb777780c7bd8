#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_netfilter::fuzzing::fuzz_save(data));
