#![no_main]
//! See `tirreno_fuzz::form`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| tirreno_fuzz::run(tirreno_fuzz::form::check, data));
