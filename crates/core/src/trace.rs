//! A trace that a statement belongs to.

/// A W3C trace context: trace id, and the id of the span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The trace id; 0 if there is none.
    pub id: u128,
    /// The span's.
    pub span: u64,
}

impl Trace {
    /// As `traceparent` is written, version 00.
    pub fn text(self) -> String {
        format!("00-{:032x}-{:016x}-01", self.id, self.span)
    }
}
