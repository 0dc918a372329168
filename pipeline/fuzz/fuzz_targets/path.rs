#![no_main]
//! See `tirreno_fuzz::path`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| tirreno_fuzz::run(tirreno_fuzz::path::check, data));
