//! What must hold for the bytes of strangers, whatever they are.
#![forbid(unsafe_code)]

pub mod properties;
