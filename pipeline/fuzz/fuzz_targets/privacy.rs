#![no_main]
//! See `tirreno_fuzz::privacy`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| tirreno_fuzz::run(tirreno_fuzz::privacy::check, data));
