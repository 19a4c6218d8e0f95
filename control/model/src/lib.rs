//! Weft's resources: as written, validated, and the errors between.
pub mod config;
pub mod policy;
pub use config::Config;
pub mod condition { //! stub
#[derive(Debug, Clone, PartialEq)] #[allow(missing_docs)] pub struct Condition; 
#[derive(Debug, Clone, PartialEq)] #[allow(missing_docs)] pub struct Facts<'a> { pub status: u16, pub duration: std::time::Duration, pub method: &'a str, pub path: &'a str, pub route: &'a str, pub service: &'a str, pub reason: &'a str }
#[allow(missing_docs)] impl Condition { pub fn matches(&self, _f: &Facts<'_>) -> bool { true } } }
pub mod written { //! stub
#[derive(Debug, Clone, PartialEq, Default)] #[allow(missing_docs)] pub struct TrafficPolicySpec; }
