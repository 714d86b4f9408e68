#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pgleash_fuzz::properties::prepared(bytes));
