//! The meter of answers: the cuts of a stream into reads change neither its output nor its counts.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| forebay_gateway::fuzzing::answer(input));
