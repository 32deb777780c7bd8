#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_init::fuzz_flags(data));
