#![no_main]
//! See `tirreno_fuzz::answer`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| tirreno_fuzz::run(tirreno_fuzz::answer::check, data));
