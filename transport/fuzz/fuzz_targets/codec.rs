//! Floats in fewer bytes: element type and row in front, then the payload.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ditmesh_transport::codec::decode_anything(bytes));
