#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_identity::fuzzing::token_review(data));
