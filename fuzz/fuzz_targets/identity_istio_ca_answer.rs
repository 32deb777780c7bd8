#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_identity::fuzzing::istio_ca_answer(data));
