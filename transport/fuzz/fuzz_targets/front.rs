//! The front of a frame over UCX, on any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ditmesh_transport::ucx::read_any_front(bytes));
