#![no_main]
//! See `tirreno_fuzz::post`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| tirreno_fuzz::run(tirreno_fuzz::post::check, data));
