//! The parts of pgleash that read bytes of strangers, built by themselves: they stand on floors that
//! need nothing but compute, so the hundreds of crates above them need not be instrumented.
#![forbid(unsafe_code)]

#[path = "../../src/event.rs"]
pub mod event;
#[path = "../../src/fingerprint.rs"]
pub mod fingerprint;
#[path = "../../src/ids.rs"]
pub mod ids;
#[path = "../../src/wire/mod.rs"]
pub mod wire;

pub mod properties;
