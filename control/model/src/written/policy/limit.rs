//! Limits on requests.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::written::scalar::{Chosen, DurationText};

/// `rateLimit[]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    /// Requests admitted …
    #[schemars(required, range(min = 1))]
    pub requests: Option<u32>,
    /// … in this time.
    #[schemars(required)]
    pub per: Option<DurationText>,
    /// Requests admitted at once; as many as `requests` when omitted.
    #[schemars(range(min = 1))]
    pub burst: Option<u32>,
    /// What shares a budget; `global` when omitted. A request without it is not limited by this entry.
    pub key: Option<RateKey>,
    /// Who counts together; `Node` when omitted.
    pub scope: Option<RateScope>,
    /// What happens while the service's breaker is open.
    pub on_breaker_open: Option<OnBreakerOpen>,
}

/// `rateLimit[].scope`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RateScope {
    /// Each node by itself.
    Node,
}

/// `rateLimit[].key`: `global`, `sourceIP`, `identity`, `path`, or a mapping with one of the fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RateKey {
    /// One without parameters.
    Name(RateKeyName),
    /// Any.
    Field(RateKeyField),
}

/// `rateLimit[].key` in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub enum RateKeyName {
    Global,
    #[serde(rename = "sourceIP")]
    SourceIp,
    Identity,
    Path,
}

/// `rateLimit[].key`: exactly one field.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateKeyField {
    /// Everybody.
    pub global: Option<Chosen>,
    /// Value of a header.
    pub header: Option<String>,
    /// Value of a cookie.
    pub cookie: Option<String>,
    /// The client's address.
    #[serde(rename = "sourceIP")]
    pub source_ip: Option<Chosen>,
    /// The client's SPIFFE id.
    pub identity: Option<Chosen>,
    /// The path without its query.
    pub path: Option<Chosen>,
}

/// `rateLimit[].onBreakerOpen`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OnBreakerOpen {
    /// Share of the rate admitted while open; 0.3 when omitted.
    #[schemars(range(min = 0, max = 1))]
    pub factor: Option<f64>,
    /// Recovery afterwards, more than 0; 5 when omitted.
    #[schemars(range(min = 0))]
    pub recover_percent_per_minute: Option<f64>,
}

/// `concurrency`: a limit on the requests of a service port whose response has not ended, for the whole node. It is found
/// from the time to the response's head. Streams that stay open count against it all the while; a limit that they fill
/// grows by one per second when nothing else is heard of the service for 10 seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Concurrency {
    /// A limit found by measuring.
    #[schemars(required)]
    pub adaptive: Option<Adaptive>,
}

/// `concurrency.adaptive`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Adaptive {
    /// `Gradient` when omitted.
    pub algorithm: Option<ConcurrencyAlgorithm>,
    /// Lower bound; 3 when omitted.
    #[schemars(range(min = 1))]
    pub min: Option<u32>,
    /// Upper bound; 1000 when omitted.
    #[schemars(range(min = 1))]
    pub max: Option<u32>,
}

/// `concurrency.adaptive.algorithm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum ConcurrencyAlgorithm {
    Gradient,
}
