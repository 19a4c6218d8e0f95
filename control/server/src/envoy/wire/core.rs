//! `envoy.config.core.v3`, `envoy.type.v3`, `envoy.type.matcher.v3` and protobuf's own.

use std::time::Duration as StdDuration;

use prost::{Message, Oneof};
use weft_wire::discovery::Any;

/// `google.protobuf.Duration`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Duration {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl From<StdDuration> for Duration {
    fn from(duration: StdDuration) -> Self {
        /// What Envoy's durations hold, 10,000 years.
        const MOST: u64 = 315_576_000_000;
        Self {
            seconds: i64::try_from(duration.as_secs().min(MOST)).unwrap_or_default(),
            nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
        }
    }
}

/// `envoy.type.v3.Percent`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Percent {
    #[prost(double, tag = "1")]
    pub value: f64,
}

/// `envoy.type.v3.FractionalPercent`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct FractionalPercent {
    #[prost(uint32, tag = "1")]
    pub numerator: u32,
    #[prost(enumeration = "Denominator", tag = "2")]
    pub denominator: i32,
}

/// Of a [`FractionalPercent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(in crate::envoy) enum Denominator {
    Hundred = 0,
    TenThousand = 1,
    Million = 2,
}

/// `RuntimeFractionalPercent`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct RuntimeFraction {
    #[prost(message, optional, tag = "1")]
    pub default_value: Option<FractionalPercent>,
}

/// `envoy.type.v3.Int64Range`: the end does not belong to it.
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Range {
    #[prost(int64, tag = "1")]
    pub start: i64,
    #[prost(int64, tag = "2")]
    pub end: i64,
}

/// `RegexMatcher`: RE2, of the whole text.
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Regex {
    #[prost(string, tag = "2")]
    pub regex: String,
}

/// `RegexMatchAndSubstitute`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct RegexRewrite {
    #[prost(message, optional, tag = "1")]
    pub pattern: Option<Regex>,
    #[prost(string, tag = "2")]
    pub substitution: String,
}

/// `StringMatcher`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct StringMatcher {
    #[prost(oneof = "TextMatch", tags = "1, 2, 5")]
    pub pattern: Option<TextMatch>,
}

/// How a [`StringMatcher`] matches.
#[derive(Clone, PartialEq, Oneof)]
pub(in crate::envoy) enum TextMatch {
    #[prost(string, tag = "1")]
    Exact(String),
    #[prost(string, tag = "2")]
    Prefix(String),
    #[prost(message, tag = "5")]
    Regex(Regex),
}

/// `Address`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Address {
    #[prost(message, optional, tag = "1")]
    pub socket_address: Option<SocketAddress>,
}

/// `SocketAddress`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct SocketAddress {
    #[prost(string, tag = "2")]
    pub address: String,
    #[prost(uint32, optional, tag = "3")]
    pub port_value: Option<u32>,
    #[prost(bool, tag = "6")]
    pub ipv4_compat: bool,
}

impl Address {
    /// A TCP address.
    pub(in crate::envoy) fn tcp(address: String, port: u16) -> Self {
        let socket = SocketAddress { address, port_value: Some(port.into()), ipv4_compat: false };
        Self { socket_address: Some(socket) }
    }
}

/// `ConfigSource`: the stream that this resource came over.
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct ConfigSource {
    #[prost(message, optional, tag = "3")]
    pub ads: Option<()>,
    #[prost(int32, tag = "6")]
    pub resource_api_version: i32,
}

impl ConfigSource {
    /// Over ADS, in version 3.
    pub(in crate::envoy) fn ads() -> Self {
        Self { ads: Some(()), resource_api_version: 2 }
    }
}

/// `TypedExtensionConfig`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Extension {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub typed_config: Option<Any>,
}

/// `TransportSocket`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct TransportSocket {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "3")]
    pub typed_config: Option<Any>,
}

/// `DataSource`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct DataSource {
    #[prost(oneof = "Data", tags = "1, 3")]
    pub specifier: Option<Data>,
}

/// Where a [`DataSource`]'s data is.
#[derive(Clone, PartialEq, Oneof)]
pub(in crate::envoy) enum Data {
    #[prost(string, tag = "1")]
    Filename(String),
    #[prost(string, tag = "3")]
    Inline(String),
}

/// `HeaderValueOption`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct HeaderOption {
    #[prost(message, optional, tag = "1")]
    pub header: Option<HeaderValue>,
    #[prost(enumeration = "AppendAction", tag = "3")]
    pub append_action: i32,
    #[prost(bool, tag = "4")]
    pub keep_empty_value: bool,
}

/// `HeaderValue`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct HeaderValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// `HeaderAppendAction`
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(in crate::envoy) enum AppendAction {
    Append = 0,
    Overwrite = 2,
}

/// `HttpProtocolOptions`: of any version of HTTP.
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct AnyHttpOptions {
    #[prost(message, optional, tag = "1")]
    pub idle_timeout: Option<Duration>,
    #[prost(message, optional, tag = "6")]
    pub max_requests_per_connection: Option<u32>,
}

/// `Http2ProtocolOptions`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Http2Options {
    #[prost(message, optional, tag = "2")]
    pub max_concurrent_streams: Option<u32>,
}

/// `HealthCheck`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct HealthCheck {
    #[prost(message, optional, tag = "1")]
    pub timeout: Option<Duration>,
    #[prost(message, optional, tag = "2")]
    pub interval: Option<Duration>,
    #[prost(message, optional, tag = "4")]
    pub unhealthy_threshold: Option<u32>,
    #[prost(message, optional, tag = "5")]
    pub healthy_threshold: Option<u32>,
    #[prost(message, optional, tag = "12")]
    pub no_traffic_interval: Option<Duration>,
    #[prost(uint32, tag = "18")]
    pub interval_jitter_percent: u32,
    #[prost(oneof = "Checker", tags = "8, 9, 11")]
    pub checker: Option<Checker>,
}

/// What a [`HealthCheck`] asks.
#[derive(Clone, PartialEq, Oneof)]
pub(in crate::envoy) enum Checker {
    #[prost(message, tag = "8")]
    Http(HttpCheck),
    #[prost(message, tag = "9")]
    Tcp(()),
    #[prost(message, tag = "11")]
    Grpc(GrpcCheck),
}

/// `HealthCheck.HttpHealthCheck`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct HttpCheck {
    #[prost(string, tag = "1")]
    pub host: String,
    #[prost(string, tag = "2")]
    pub path: String,
    #[prost(message, repeated, tag = "9")]
    pub expected_statuses: Vec<Range>,
    /// 0: HTTP/1.1, 1: HTTP/2.
    #[prost(int32, tag = "10")]
    pub codec_client_type: i32,
}

/// `HealthCheck.GrpcHealthCheck`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct GrpcCheck {
    #[prost(string, tag = "1")]
    pub service_name: String,
    #[prost(string, tag = "2")]
    pub authority: String,
}
