#![no_main]
//! See `tirreno_fuzz::record`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| tirreno_fuzz::run(tirreno_fuzz::record::check, data));
