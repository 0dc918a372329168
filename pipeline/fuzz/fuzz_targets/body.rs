#![no_main]
//! See `tirreno_fuzz::body`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| tirreno_fuzz::run(tirreno_fuzz::body::check, data));
