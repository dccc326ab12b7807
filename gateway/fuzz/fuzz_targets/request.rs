//! The request scan: whatever is sent, it is read as a JSON reader reads it, or refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|body: &[u8]| forebay_gateway::fuzzing::request(body));
