#![no_main]
//! See `tirreno_fuzz::redact`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| tirreno_fuzz::run(tirreno_fuzz::redact::check, data));
