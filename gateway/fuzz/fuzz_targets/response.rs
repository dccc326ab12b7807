//! The framing of a replica's response: its cuts into reads change neither its head, nor its body, nor
//! its end.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| forebay_gateway::fuzzing::response(input));
