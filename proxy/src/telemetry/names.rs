//! Names of OpenTelemetry's semantic conventions 1.44 that metrics, spans and the access log share.

use std::borrow::Cow;

use http::Method;

use crate::error::Reason;

/// Values of `http.request.method`; everything else a client makes up is `_OTHER`.
const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", OTHER_METHOD];

/// `http.request.method` of a method that is not known.
pub const OTHER_METHOD: &str = "_OTHER";

/// Number of a method, below 16.
pub(super) fn method_index(method: &Method) -> u8 {
    match *method {
        Method::GET => 0,
        Method::HEAD => 1,
        Method::POST => 2,
        Method::PUT => 3,
        Method::DELETE => 4,
        Method::CONNECT => 5,
        Method::OPTIONS => 6,
        Method::TRACE => 7,
        Method::PATCH => 8,
        _ => OTHER_INDEX,
    }
}

/// [`method_index`] of unknown methods.
pub(super) const OTHER_INDEX: u8 = 9;

/// Name of the method with this number.
pub(super) fn method_by_index(index: u8) -> &'static str {
    METHODS.get(usize::from(index)).copied().unwrap_or(OTHER_METHOD)
}

/// `http.request.method`.
pub fn method(method: &Method) -> &'static str {
    method_by_index(method_index(method))
}

/// Name of a gRPC status code (<https://grpc.io/docs/guides/status-codes/>); `None` above 16.
pub fn grpc_status(code: u8) -> Option<&'static str> {
    #[rustfmt::skip]
    const NAMES: [&str; 17] = [
        "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
        "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
        "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
    ];
    NAMES.get(usize::from(code)).copied()
}

/// Who is looking: 4xx and most gRPC errors are the client's fault, and no error of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The exchange with our client.
    Server,
    /// One attempt at an upstream.
    Client,
}

/// Whether an exchange failed, from this side.
pub fn is_error(side: Side, status: u16, grpc: Option<u8>) -> bool {
    match (side, grpc) {
        // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS
        (Side::Server, Some(2 | 4 | 12 | 13 | 14 | 15)) => true,
        (Side::Client, Some(code)) if code != 0 => true,
        (Side::Server, _) => status >= 500,
        (Side::Client, _) => status >= 400 || status == 0,
    }
}

/// `error.type`: few values, stable. `None` when the exchange went well.
pub fn error_type(side: Side, status: u16, grpc: Option<u8>, reason: Option<Reason>) -> Option<Cow<'static, str>> {
    if let Some(reason) = reason {
        return Some(Cow::Borrowed(reason.row().error_type));
    }
    if !is_error(side, status, grpc) {
        return None;
    }
    match grpc.filter(|&code| code != 0) {
        Some(code) => Some(grpc_status(code).map_or_else(|| Cow::Owned(code.to_string()), Cow::Borrowed)),
        None if status == 0 => Some(Cow::Borrowed("_OTHER")),
        None => Some(Cow::Owned(status.to_string())),
    }
}

/// `network.protocol.version`.
pub fn protocol_version(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_09 => "0.9",
        http::Version::HTTP_10 => "1.0",
        http::Version::HTTP_2 => "2",
        http::Version::HTTP_3 => "3",
        _ => "1.1",
    }
}
