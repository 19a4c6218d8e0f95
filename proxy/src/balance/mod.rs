//! Picking an endpoint: pure deciders, one algorithm per file.
pub mod ewma;
