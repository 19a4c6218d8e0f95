//! Every way in which Weft itself answers a request. One row per reason, and no answer without one.
//!
//! The reason reaches the client (`x-weft-reason`), the metrics, the span and the access log under the same name.

use std::{borrow::Cow, fmt, time::Duration};

use http::StatusCode;

/// Why Weft answered instead of an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// No route matches host, path, method, headers and query.
    NoRoute,
    /// A route matches everything but the method.
    MethodNotAllowed,
    /// A rate limit is used up.
    RateLimited,
    /// An AccessPolicy says no.
    AccessDenied,
    /// The service is unknown, has no endpoints, or none that may be used.
    NoEndpoint,
    /// The circuit breaker of the service is open.
    CircuitOpen,
    /// A limit of `connectionPool` or the node's load shedding.
    Overloaded,
    /// No connection to the endpoint could be made.
    ConnectFailed,
    /// The upstream ended the exchange before its response head was complete.
    UpstreamReset,
    /// The upstream's answer is not HTTP.
    BadUpstreamResponse,
    /// The upstream did not answer in time.
    UpstreamTimeout,
    /// The client did not send its request in time.
    RequestTimeout,
    /// The request's body is larger than allowed.
    RequestTooLarge,
    /// Header fields too large or too many.
    HeadersTooLarge,
    /// The request target is longer than allowed.
    UriTooLong,
    /// The request is malformed.
    BadRequest,
    /// `Expect` asks for something unknown.
    ExpectationFailed,
    /// This node is shutting down.
    Draining,
    /// Fault injection, as configured.
    FaultInjected,
    /// The connection's TLS server name belongs to another listener than the request's host (RFC 9110 §15.5.20).
    Misdirected,
    /// The request has come through this node too often.
    LoopDetected,
    /// The client's own deadline was over before an upstream could be asked.
    DeadlineExceeded,
    /// An attempt failed, and the service's retry budget does not allow another one.
    RetryBudgetExhausted,
    /// A defect in Weft: please report it.
    Internal,
}

/// What follows from a [`Reason`].
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Name in `x-weft-reason`, metrics, spans and logs.
    pub name: &'static str,
    /// HTTP status.
    pub status: StatusCode,
    /// gRPC status code (<https://grpc.io/docs/guides/status-codes/>).
    pub grpc: u8,
    /// Whether the request may be sent again: nothing has been processed by an upstream.
    pub retryable: bool,
    /// `error.type` of the span: few values, stable.
    pub error_type: &'static str,
    /// What to do about it; shown by tools and in the documentation.
    pub advice: &'static str,
}

impl Reason {
    /// Every reason, in the order of the declaration.
    pub const ALL: [Self; 24] = [
        Self::NoRoute,
        Self::MethodNotAllowed,
        Self::RateLimited,
        Self::AccessDenied,
        Self::NoEndpoint,
        Self::CircuitOpen,
        Self::Overloaded,
        Self::ConnectFailed,
        Self::UpstreamReset,
        Self::BadUpstreamResponse,
        Self::UpstreamTimeout,
        Self::RequestTimeout,
        Self::RequestTooLarge,
        Self::HeadersTooLarge,
        Self::UriTooLong,
        Self::BadRequest,
        Self::ExpectationFailed,
        Self::Draining,
        Self::FaultInjected,
        Self::Misdirected,
        Self::LoopDetected,
        Self::DeadlineExceeded,
        Self::RetryBudgetExhausted,
        Self::Internal,
    ];

    /// The row of this reason.
    #[rustfmt::skip]
    pub const fn row(self) -> Row {
        const fn row(name: &'static str, status: StatusCode, grpc: u8, retryable: bool, error_type: &'static str, advice: &'static str) -> Row {
            Row { name, status, grpc, retryable, error_type, advice }
        }
        use StatusCode as S;
        match self {
            Self::NoRoute => row("no_route", S::NOT_FOUND, 12, false, "no_route", "check hostnames and matches of the routes attached to this listener"),
            Self::MethodNotAllowed => row("method_not_allowed", S::METHOD_NOT_ALLOWED, 12, false, "method_not_allowed", "a rule matches this path with other methods, see `allow`"),
            Self::RateLimited => row("rate_limited", S::TOO_MANY_REQUESTS, 8, false, "rate_limited", "slow down, or raise rateLimit in the TrafficPolicy"),
            Self::AccessDenied => row("access_denied", S::FORBIDDEN, 7, false, "access_denied", "an AccessPolicy on the service refuses this source"),
            Self::NoEndpoint => row("no_endpoint", S::SERVICE_UNAVAILABLE, 14, true, "no_endpoint", "the service has no usable endpoint: see /endpoints on the node's admin port"),
            Self::CircuitOpen => row("circuit_open", S::SERVICE_UNAVAILABLE, 14, false, "circuit_open", "the service fails; see /endpoints for the evidence"),
            Self::Overloaded => row("overloaded", S::SERVICE_UNAVAILABLE, 14, true, "overloaded", "a limit is reached, the detail says which: raise it or add endpoints"),
            Self::ConnectFailed => row("connect_failed", S::SERVICE_UNAVAILABLE, 14, true, "connect_error", "nothing listens at the endpoint, or TLS to it fails; the detail says which"),
            Self::UpstreamReset => row("upstream_reset", S::BAD_GATEWAY, 14, false, "reset", "the endpoint closed the connection before answering: look at its log"),
            Self::BadUpstreamResponse => row("bad_upstream_response", S::BAD_GATEWAY, 13, false, "bad_response", "the endpoint does not speak the protocol in the service's appProtocol"),
            Self::UpstreamTimeout => row("upstream_timeout", S::GATEWAY_TIMEOUT, 4, false, "timeout", "the endpoint is slower than the time-out in force"),
            Self::RequestTimeout => row("request_timeout", S::REQUEST_TIMEOUT, 4, false, "timeout", "the client sent its request too slowly"),
            Self::RequestTooLarge => row("request_too_large", S::PAYLOAD_TOO_LARGE, 8, false, "request_too_large", "raise --max-body-bytes"),
            Self::HeadersTooLarge => row("headers_too_large", S::REQUEST_HEADER_FIELDS_TOO_LARGE, 8, false, "headers_too_large", "raise --max-header-bytes or --max-headers"),
            Self::UriTooLong => row("uri_too_long", S::URI_TOO_LONG, 8, false, "uri_too_long", "raise --max-uri-bytes"),
            Self::BadRequest => row("bad_request", S::BAD_REQUEST, 3, false, "bad_request", "the request breaks HTTP's rules; the detail says which"),
            Self::ExpectationFailed => row("expectation_failed", S::EXPECTATION_FAILED, 3, false, "expectation_failed", "only `Expect: 100-continue` is known"),
            Self::Draining => row("draining", S::SERVICE_UNAVAILABLE, 14, true, "draining", "the node shuts down: connect again to reach another one"),
            Self::FaultInjected => row("fault_injected", S::SERVICE_UNAVAILABLE, 14, false, "fault_injected", "a fault is configured in the TrafficPolicy"),
            Self::Misdirected => row("misdirected", S::MISDIRECTED_REQUEST, 3, false, "misdirected", "connect again with the host's own server name"),
            Self::LoopDetected => row("loop_detected", S::LOOP_DETECTED, 13, false, "loop_detected", "a route leads back to this node"),
            Self::DeadlineExceeded => row("deadline_exceeded", S::GATEWAY_TIMEOUT, 4, false, "timeout", "the client's own deadline was over: it gave too little time"),
            Self::RetryBudgetExhausted => row("retry_budget_exhausted", S::SERVICE_UNAVAILABLE, 14, false, "retry_budget_exhausted", "the service fails so often that retries are held back: see /endpoints"),
            Self::Internal => row("internal_error", S::INTERNAL_SERVER_ERROR, 13, false, "internal_error", "a defect in Weft: please report it with the log"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().name)
    }
}

/// A request that Weft answers itself.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// For the person who reads the reply; never contains client input.
    pub detail: Cow<'static, str>,
    /// `Retry-After`, when the time is known.
    pub retry_after: Option<Duration>,
    /// A status to answer with instead of the reason's own: a configured fault.
    pub status: Option<Abort>,
}

/// The status of an injected fault, in the language that it was configured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abort {
    /// HTTP.
    Status(StatusCode),
    /// gRPC, below 17.
    Grpc(u8),
}

impl Abort {
    /// For a client that speaks plain HTTP, as `google/rpc/code.proto` maps them.
    pub fn http(self) -> StatusCode {
        let code = match self {
            Self::Status(status) => return status,
            Self::Grpc(code) => code,
        };
        match code {
            0 => StatusCode::OK,
            // No registered status is about a client that has gone.
            1 => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            3 | 9 | 11 => StatusCode::BAD_REQUEST,
            4 => StatusCode::GATEWAY_TIMEOUT,
            5 => StatusCode::NOT_FOUND,
            6 | 10 => StatusCode::CONFLICT,
            7 => StatusCode::FORBIDDEN,
            8 => StatusCode::TOO_MANY_REQUESTS,
            12 => StatusCode::NOT_IMPLEMENTED,
            14 => StatusCode::SERVICE_UNAVAILABLE,
            16 => StatusCode::UNAUTHORIZED,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// For a gRPC client, as gRPC's "HTTP to gRPC Status Code Mapping" has it.
    pub fn grpc(self) -> u8 {
        match self {
            Self::Grpc(code) => code,
            Self::Status(status) => match status.as_u16() {
                200 => 0,
                400 => 13,
                401 => 16,
                403 => 7,
                404 => 12,
                429 | 502..=504 => 14,
                _ => 2,
            },
        }
    }
}

impl Refusal {
    /// A refusal with a fixed explanation.
    pub const fn new(reason: Reason, detail: &'static str) -> Self {
        Self { reason, detail: Cow::Borrowed(detail), retry_after: None, status: None }
    }

    /// A refusal whose explanation was made for this request.
    pub fn with(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: Cow::Owned(detail.into()), retry_after: None, status: None }
    }

    /// A configured fault.
    pub fn fault(status: Abort) -> Self {
        Self { status: Some(status), ..Self::new(Reason::FaultInjected, "a configured fault answers this request") }
    }

    /// The HTTP status that a plain client gets.
    pub fn http_status(&self) -> StatusCode {
        self.status.map_or(self.reason.row().status, Abort::http)
    }

    /// The status that a gRPC client gets.
    pub fn grpc_status(&self) -> u8 {
        self.status.map_or(self.reason.row().grpc, Abort::grpc)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests;
