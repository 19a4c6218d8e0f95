//! `HTTPRoute`, `GRPCRoute` and `TCPRoute` as written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::DurationText;

/// `HTTPRoute.spec`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteSpec {
    /// Where the route attaches.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// Restricts the hostnames of the parents.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// Rules; one that matches everything when omitted.
    #[schemars(length(min = 1))]
    pub rules: Option<Vec<HttpRouteRule>>,
}

/// `parentRefs[]` of a route.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentRef {
    /// `gateway.networking.k8s.io` when omitted.
    pub group: Option<String>,
    /// `Gateway` when omitted; `Service` binds to captured connections.
    pub kind: Option<String>,
    /// Namespace of the route when omitted.
    pub namespace: Option<String>,
    /// Name.
    #[schemars(required)]
    pub name: Option<String>,
    /// One listener, by name.
    pub section_name: Option<String>,
    /// The listeners of one port, or one port of a Service.
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
}

/// `HTTPRoute.spec.rules[]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteRule {
    /// Unique within the route.
    pub name: Option<String>,
    /// Any of these may match; everything when omitted.
    #[serde(default)]
    pub matches: Vec<HttpRouteMatch>,
    /// What is done besides forwarding.
    #[serde(default)]
    pub filters: Vec<RouteFilter>,
    /// Where requests go.
    #[serde(default)]
    pub backend_refs: Vec<BackendRef>,
    /// Deadlines.
    pub timeouts: Option<RuleTimeouts>,
    /// Retries.
    pub retry: Option<RuleRetry>,
}

/// `HTTPRoute.spec.rules[].matches[]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteMatch {
    /// `PathPrefix /` when omitted.
    pub path: Option<PathMatch>,
    /// All of them must match.
    #[serde(default)]
    pub headers: Vec<ValueMatch>,
    /// All of them must match.
    #[serde(default)]
    pub query_params: Vec<ValueMatch>,
    /// Any method when omitted.
    pub method: Option<String>,
}

/// `HTTPRoute.spec.rules[].matches[].path`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathMatch {
    /// `PathPrefix` when omitted.
    #[serde(rename = "type")]
    pub kind: Option<PathMatchType>,
    /// `/` when omitted.
    pub value: Option<String>,
}

/// `HTTPRoute.spec.rules[].matches[].path.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum PathMatchType {
    Exact,
    PathPrefix,
    RegularExpression,
}

/// A header or query parameter to match.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ValueMatch {
    /// `Exact` when omitted.
    #[serde(rename = "type")]
    pub kind: Option<ValueMatchType>,
    /// Name of the header or parameter.
    #[schemars(required)]
    pub name: Option<String>,
    /// What its value has to be.
    #[schemars(required)]
    pub value: Option<String>,
}

/// How a value matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum ValueMatchType {
    Exact,
    RegularExpression,
}

/// `filters[]` of an HTTPRoute.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteFilter {
    /// Which of the others is given.
    #[serde(rename = "type")]
    #[schemars(required)]
    pub kind: Option<FilterType>,
    /// For `RequestHeaderModifier`.
    pub request_header_modifier: Option<HeaderModifier>,
    /// For `ResponseHeaderModifier`.
    pub response_header_modifier: Option<HeaderModifier>,
    /// For `RequestMirror`.
    pub request_mirror: Option<RequestMirror>,
    /// For `RequestRedirect`.
    pub request_redirect: Option<RequestRedirect>,
    /// For `URLRewrite`.
    pub url_rewrite: Option<UrlRewrite>,
}

/// `filters[].type` of an HTTPRoute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum FilterType {
    RequestHeaderModifier,
    ResponseHeaderModifier,
    RequestMirror,
    RequestRedirect,
    URLRewrite,
}

/// `requestHeaderModifier` and `responseHeaderModifier`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderModifier {
    /// Overwrites.
    #[serde(default)]
    pub set: Vec<Header>,
    /// Appends.
    #[serde(default)]
    pub add: Vec<Header>,
    /// Removes.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// A header to set or add.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Header {
    /// Name; case does not matter.
    #[schemars(required)]
    pub name: Option<String>,
    /// Value.
    #[schemars(required)]
    pub value: Option<String>,
}

/// `requestMirror`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestMirror {
    /// Where the copy goes.
    #[schemars(required)]
    pub backend_ref: Option<PlainBackendRef>,
    /// Share of the requests, 0–100; all of them when omitted.
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<u32>,
    /// Share of the requests as a fraction, instead of `percent`.
    pub fraction: Option<Fraction>,
}

/// `requestMirror.fraction`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fraction {
    /// Upper part.
    #[schemars(required)]
    pub numerator: Option<u32>,
    /// Lower part, 100 when omitted.
    #[schemars(range(min = 1))]
    pub denominator: Option<u32>,
}

/// `requestRedirect`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestRedirect {
    /// `http` or `https`.
    pub scheme: Option<RedirectScheme>,
    /// Host of the target.
    pub hostname: Option<String>,
    /// Path of the target.
    pub path: Option<PathModifier>,
    /// Port of the target.
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308; 302 when omitted.
    pub status_code: Option<u16>,
}

/// `requestRedirect.scheme`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum RedirectScheme {
    Http,
    Https,
}

/// `urlRewrite`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UrlRewrite {
    /// Replaces `Host`.
    pub hostname: Option<String>,
    /// Changes the path.
    pub path: Option<PathModifier>,
}

/// `path` of a redirect or rewrite.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathModifier {
    /// Which of the others is given.
    #[serde(rename = "type")]
    #[schemars(required)]
    pub kind: Option<PathModifierType>,
    /// For `ReplaceFullPath`.
    pub replace_full_path: Option<String>,
    /// For `ReplacePrefixMatch`.
    pub replace_prefix_match: Option<String>,
}

/// `path.type` of a redirect or rewrite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum PathModifierType {
    ReplaceFullPath,
    ReplacePrefixMatch,
}

/// `requestMirror.backendRef`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlainBackendRef {
    /// The core group or `weft.dev`; both mean Weft's Service of this name.
    pub group: Option<String>,
    /// `Service` when omitted.
    pub kind: Option<String>,
    /// Name.
    #[schemars(required)]
    pub name: Option<String>,
    /// Namespace of the route when omitted.
    pub namespace: Option<String>,
    /// Port of the Service.
    #[schemars(required, range(min = 1, max = 65535))]
    pub port: Option<u16>,
}

/// `backendRefs[]` of an HTTPRoute.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef {
    /// The core group or `weft.dev`; both mean Weft's Service of this name.
    pub group: Option<String>,
    /// `Service` when omitted.
    pub kind: Option<String>,
    /// Name.
    #[schemars(required)]
    pub name: Option<String>,
    /// Namespace of the route when omitted.
    pub namespace: Option<String>,
    /// Port of the Service.
    #[schemars(required, range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Relative share; 1 when omitted, 0 for none.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: Option<u32>,
    /// For requests that go to this backend.
    #[serde(default)]
    pub filters: Vec<RouteFilter>,
}

/// `HTTPRoute.spec.rules[].timeouts`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleTimeouts {
    /// The whole request; `0s` switches it off.
    pub request: Option<DurationText>,
    /// One attempt; at most `request`.
    pub backend_request: Option<DurationText>,
}

/// `HTTPRoute.spec.rules[].retry`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleRetry {
    /// Status codes to retry on.
    #[serde(default)]
    #[schemars(inner(range(min = 400, max = 599)))]
    pub codes: Vec<u16>,
    /// Attempts after the first.
    pub attempts: Option<u32>,
    /// Least wait between two attempts.
    pub backoff: Option<DurationText>,
}

/// `GRPCRoute.spec`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteSpec {
    /// Where the route attaches.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// Restricts the hostnames of the parents.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// Rules; one that matches everything when omitted.
    #[serde(default)]
    pub rules: Vec<GrpcRouteRule>,
}

/// `GRPCRoute.spec.rules[]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteRule {
    /// Unique within the route.
    pub name: Option<String>,
    /// Any of these may match; everything when omitted.
    #[serde(default)]
    pub matches: Vec<GrpcRouteMatch>,
    /// What is done besides forwarding.
    #[serde(default)]
    pub filters: Vec<GrpcRouteFilter>,
    /// Where requests go.
    #[serde(default)]
    pub backend_refs: Vec<GrpcBackendRef>,
}

/// `GRPCRoute.spec.rules[].matches[]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteMatch {
    /// Service and method; every one when omitted.
    pub method: Option<GrpcMethodMatch>,
    /// All of them must match.
    #[serde(default)]
    pub headers: Vec<ValueMatch>,
}

/// `GRPCRoute.spec.rules[].matches[].method`. At least one of `service` and `method` is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcMethodMatch {
    /// `Exact` when omitted.
    #[serde(rename = "type")]
    pub kind: Option<ValueMatchType>,
    /// Full name of the service.
    pub service: Option<String>,
    /// Name of the method.
    pub method: Option<String>,
}

/// `filters[]` of a GRPCRoute.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteFilter {
    /// Which of the others is given.
    #[serde(rename = "type")]
    #[schemars(required)]
    pub kind: Option<GrpcFilterType>,
    /// For `RequestHeaderModifier`.
    pub request_header_modifier: Option<HeaderModifier>,
    /// For `ResponseHeaderModifier`.
    pub response_header_modifier: Option<HeaderModifier>,
    /// For `RequestMirror`.
    pub request_mirror: Option<RequestMirror>,
}

/// `filters[].type` of a GRPCRoute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum GrpcFilterType {
    RequestHeaderModifier,
    ResponseHeaderModifier,
    RequestMirror,
}

/// `backendRefs[]` of a GRPCRoute.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcBackendRef {
    /// The core group or `weft.dev`; both mean Weft's Service of this name.
    pub group: Option<String>,
    /// `Service` when omitted.
    pub kind: Option<String>,
    /// Name.
    #[schemars(required)]
    pub name: Option<String>,
    /// Namespace of the route when omitted.
    pub namespace: Option<String>,
    /// Port of the Service.
    #[schemars(required, range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Relative share; 1 when omitted, 0 for none.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: Option<u32>,
    /// For requests that go to this backend.
    #[serde(default)]
    pub filters: Vec<GrpcRouteFilter>,
}

/// `TCPRoute.spec`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRouteSpec {
    /// Where the route attaches.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// Exactly one.
    #[schemars(required, length(min = 1))]
    pub rules: Option<Vec<TcpRouteRule>>,
}

/// `TCPRoute.spec.rules[]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRouteRule {
    /// Ignored but for its form.
    pub name: Option<String>,
    /// Where connections go.
    #[schemars(required, length(min = 1))]
    pub backend_refs: Option<Vec<TcpBackendRef>>,
}

/// `backendRefs[]` of a TCPRoute.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpBackendRef {
    /// The core group or `weft.dev`; both mean Weft's Service of this name.
    pub group: Option<String>,
    /// `Service` when omitted.
    pub kind: Option<String>,
    /// Name.
    #[schemars(required)]
    pub name: Option<String>,
    /// Namespace of the route when omitted.
    pub namespace: Option<String>,
    /// Port of the Service.
    #[schemars(required, range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Relative share; 1 when omitted, 0 for none.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: Option<u32>,
}
