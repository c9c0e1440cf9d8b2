//! Every message of the control protocol, on any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ditmesh_actors::protocol::decode_anything(bytes));
