#![no_main]
//! See `tirreno_fuzz::xmlrpc`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| tirreno_fuzz::run(tirreno_fuzz::xmlrpc::check, data));
