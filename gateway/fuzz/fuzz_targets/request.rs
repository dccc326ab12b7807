//! The request scan: it reads any bytes as a JSON reader does, or refuses them.
#![no_main]

libfuzzer_sys::fuzz_target!(|body: &[u8]| forebay_gateway::fuzzing::request(body));
