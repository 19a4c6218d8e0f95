//! Maps without a kernel, and a naive model of what they should do.

pub(crate) mod fake;
pub(crate) mod naive;
