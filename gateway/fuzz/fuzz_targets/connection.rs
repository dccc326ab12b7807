//! The framing of a client's requests: its cuts into reads change neither what is read nor what is
//! answered.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| forebay_gateway::fuzzing::connection(input));
