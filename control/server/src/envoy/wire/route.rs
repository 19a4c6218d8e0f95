//! `envoy.config.route.v3`

use prost::{Message, Oneof};

use super::{Duration, HeaderOption, Regex, RegexRewrite, RuntimeFraction, StringMatcher};

/// `RouteConfiguration`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct RouteConfiguration {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, repeated, tag = "2")]
    pub virtual_hosts: Vec<VirtualHost>,
    #[prost(bool, tag = "10")]
    pub most_specific_header_mutations_wins: bool,
    #[prost(bool, tag = "14")]
    pub ignore_port_in_host_matching: bool,
}

/// `VirtualHost`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct VirtualHost {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, repeated, tag = "2")]
    pub domains: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    pub routes: Vec<Route>,
}

/// `Route`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Route {
    #[prost(string, tag = "14")]
    pub name: String,
    #[prost(message, optional, tag = "1")]
    pub matcher: Option<RouteMatch>,
    #[prost(oneof = "Action", tags = "2, 3, 7")]
    pub action: Option<Action>,
    #[prost(message, repeated, tag = "9")]
    pub request_headers_to_add: Vec<HeaderOption>,
    #[prost(message, repeated, tag = "10")]
    pub response_headers_to_add: Vec<HeaderOption>,
    #[prost(string, repeated, tag = "11")]
    pub response_headers_to_remove: Vec<String>,
    #[prost(string, repeated, tag = "12")]
    pub request_headers_to_remove: Vec<String>,
}

/// What a route does.
#[derive(Clone, PartialEq, Oneof)]
pub(in crate::envoy) enum Action {
    #[prost(message, boxed, tag = "2")]
    Route(Box<RouteAction>),
    #[prost(message, tag = "3")]
    Redirect(Redirect),
    #[prost(message, tag = "7")]
    Direct(DirectResponse),
}

/// `RouteMatch`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct RouteMatch {
    #[prost(oneof = "PathSpecifier", tags = "1, 2, 10, 14")]
    pub path: Option<PathSpecifier>,
    #[prost(message, repeated, tag = "6")]
    pub headers: Vec<HeaderMatcher>,
    #[prost(message, repeated, tag = "7")]
    pub query_parameters: Vec<QueryMatcher>,
}

/// How a path matches.
#[derive(Clone, PartialEq, Oneof)]
pub(in crate::envoy) enum PathSpecifier {
    #[prost(string, tag = "1")]
    Prefix(String),
    #[prost(string, tag = "2")]
    Path(String),
    #[prost(message, tag = "10")]
    Regex(Regex),
    /// Whole segments.
    #[prost(string, tag = "14")]
    Segments(String),
}

/// `HeaderMatcher`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct HeaderMatcher {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(oneof = "HeaderMatch", tags = "7, 13")]
    pub specifier: Option<HeaderMatch>,
}

/// How a header matches.
#[derive(Clone, PartialEq, Oneof)]
pub(in crate::envoy) enum HeaderMatch {
    #[prost(bool, tag = "7")]
    Present(bool),
    #[prost(message, tag = "13")]
    Text(StringMatcher),
}

/// `QueryParameterMatcher`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct QueryMatcher {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "5")]
    pub string_match: Option<StringMatcher>,
}

/// `RouteAction`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct RouteAction {
    #[prost(oneof = "Target", tags = "1, 3")]
    pub target: Option<Target>,
    #[prost(string, tag = "5")]
    pub prefix_rewrite: String,
    #[prost(string, tag = "6")]
    pub host_rewrite_literal: String,
    #[prost(message, optional, tag = "8")]
    pub timeout: Option<Duration>,
    #[prost(message, optional, tag = "9")]
    pub retry_policy: Option<RetryPolicy>,
    #[prost(message, repeated, tag = "15")]
    pub hash_policy: Vec<HashPolicy>,
    #[prost(message, optional, tag = "24")]
    pub idle_timeout: Option<Duration>,
    #[prost(message, repeated, tag = "30")]
    pub request_mirror_policies: Vec<MirrorPolicy>,
    #[prost(message, optional, tag = "32")]
    pub regex_rewrite: Option<RegexRewrite>,
    #[prost(message, optional, tag = "36")]
    pub max_stream_duration: Option<StreamDuration>,
}

/// Where requests go.
#[derive(Clone, PartialEq, Oneof)]
pub(in crate::envoy) enum Target {
    #[prost(string, tag = "1")]
    Cluster(String),
    #[prost(message, tag = "3")]
    Weighted(Weighted),
}

/// `WeightedCluster`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Weighted {
    #[prost(message, repeated, tag = "1")]
    pub clusters: Vec<Share>,
}

/// `WeightedCluster.ClusterWeight`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Share {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub weight: Option<u32>,
    #[prost(message, repeated, tag = "4")]
    pub request_headers_to_add: Vec<HeaderOption>,
    #[prost(message, repeated, tag = "5")]
    pub response_headers_to_add: Vec<HeaderOption>,
    #[prost(string, repeated, tag = "6")]
    pub response_headers_to_remove: Vec<String>,
    #[prost(string, repeated, tag = "9")]
    pub request_headers_to_remove: Vec<String>,
    #[prost(string, tag = "11")]
    pub host_rewrite_literal: String,
}

/// `RouteAction.MaxStreamDuration`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct StreamDuration {
    #[prost(message, optional, tag = "1")]
    pub max_stream_duration: Option<Duration>,
}

/// `RouteAction.RequestMirrorPolicy`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct MirrorPolicy {
    #[prost(string, tag = "1")]
    pub cluster: String,
    #[prost(message, optional, tag = "3")]
    pub runtime_fraction: Option<RuntimeFraction>,
    #[prost(bool, tag = "6")]
    pub disable_shadow_host_suffix_append: bool,
}

/// `RouteAction.HashPolicy`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct HashPolicy {
    #[prost(oneof = "Hashed", tags = "1, 2, 3")]
    pub hashed: Option<Hashed>,
}

/// What is hashed.
#[derive(Clone, PartialEq, Oneof)]
pub(in crate::envoy) enum Hashed {
    #[prost(message, tag = "1")]
    Header(HashedHeader),
    #[prost(message, tag = "2")]
    Cookie(HashedCookie),
    #[prost(message, tag = "3")]
    Connection(HashedConnection),
}

/// `RouteAction.HashPolicy.Header`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct HashedHeader {
    #[prost(string, tag = "1")]
    pub header_name: String,
    #[prost(message, optional, tag = "2")]
    pub regex_rewrite: Option<RegexRewrite>,
}

/// `RouteAction.HashPolicy.Cookie`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct HashedCookie {
    #[prost(string, tag = "1")]
    pub name: String,
}

/// `RouteAction.HashPolicy.ConnectionProperties`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct HashedConnection {
    #[prost(bool, tag = "1")]
    pub source_ip: bool,
}

/// `RetryPolicy`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct RetryPolicy {
    #[prost(string, tag = "1")]
    pub retry_on: String,
    #[prost(message, optional, tag = "2")]
    pub num_retries: Option<u32>,
    #[prost(message, optional, tag = "3")]
    pub per_try_timeout: Option<Duration>,
    #[prost(message, repeated, tag = "5")]
    pub retry_host_predicate: Vec<HostPredicate>,
    #[prost(int64, tag = "6")]
    pub host_selection_retry_max_attempts: i64,
    #[prost(uint32, repeated, tag = "7")]
    pub retriable_status_codes: Vec<u32>,
    #[prost(message, optional, tag = "8")]
    pub retry_back_off: Option<RetryBackOff>,
    #[prost(message, repeated, tag = "10")]
    pub retriable_request_headers: Vec<HeaderMatcher>,
}

/// `RetryPolicy.RetryHostPredicate`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct HostPredicate {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "3")]
    pub typed_config: Option<weft_wire::discovery::Any>,
}

/// `RetryPolicy.RetryBackOff`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct RetryBackOff {
    #[prost(message, optional, tag = "1")]
    pub base_interval: Option<Duration>,
    #[prost(message, optional, tag = "2")]
    pub max_interval: Option<Duration>,
}

/// `RedirectAction`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Redirect {
    #[prost(string, tag = "1")]
    pub host_redirect: String,
    #[prost(oneof = "RedirectPath", tags = "2, 5, 9")]
    pub path: Option<RedirectPath>,
    #[prost(enumeration = "RedirectCode", tag = "3")]
    pub response_code: i32,
    #[prost(string, optional, tag = "7")]
    pub scheme_redirect: Option<String>,
    #[prost(uint32, tag = "8")]
    pub port_redirect: u32,
}

/// What becomes of the path in a redirect.
#[derive(Clone, PartialEq, Oneof)]
pub(in crate::envoy) enum RedirectPath {
    #[prost(string, tag = "2")]
    Full(String),
    #[prost(string, tag = "5")]
    Prefix(String),
    #[prost(message, tag = "9")]
    Regex(RegexRewrite),
}

/// `RedirectAction.RedirectResponseCode`
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(in crate::envoy) enum RedirectCode {
    MovedPermanently = 0,
    Found = 1,
    SeeOther = 2,
    TemporaryRedirect = 3,
    PermanentRedirect = 4,
}

/// `DirectResponseAction`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct DirectResponse {
    #[prost(uint32, tag = "1")]
    pub status: u32,
}
