//! Every decoder of the wire, on any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ditmesh_transport::frame::decode_anything(bytes));
