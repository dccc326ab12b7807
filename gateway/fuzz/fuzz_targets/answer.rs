//! The meter of answers: however a stream is cut into reads, the same goes out and is counted.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| forebay_gateway::fuzzing::answer(input));
