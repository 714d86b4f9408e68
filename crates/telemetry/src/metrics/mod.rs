//! What Prometheus scrapes.

pub(crate) mod counters;
pub(crate) mod gauges;
pub(crate) mod labels;
