#![no_main]
//! See `tirreno_fuzz::json`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| tirreno_fuzz::run(tirreno_fuzz::json::check, data));
