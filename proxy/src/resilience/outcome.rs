//! What one attempt says about its endpoint: the language in which breakers, retries and tests speak of failures.

use std::{borrow::Cow, time::Duration};

use crate::{error::Reason, telemetry::names};

/// The end of an attempt, as far as its endpoint is to blame. What Weft refuses itself, what the client broke off and
/// what it did wrong has no outcome: it says nothing about an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// `None`: it succeeded.
    pub failure: Option<Failure>,
    /// From the start of the attempt to the response's head, or to its failure.
    pub took: Duration,
}

/// How an endpoint fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// No connection: refused, unreachable, too slow, or TLS failed.
    ConnectFailed,
    /// It ended the exchange before its response was complete.
    Reset,
    /// It did not answer in time.
    Timeout,
    /// What it answered is not HTTP.
    BadResponse,
    /// It answered with this 5xx. Gateway errors (502, 503, 504) are those that speak of somebody behind it.
    Status(u16),
    /// It answered with this gRPC status, in headers or trailers.
    Grpc(u8),
}

impl Outcome {
    /// A success after `took`.
    pub const fn success(took: Duration) -> Self {
        Self { failure: None, took }
    }

    /// A failure after `took`.
    pub const fn failure(failure: Failure, took: Duration) -> Self {
        Self { failure: Some(failure), took }
    }
}

impl Failure {
    /// What an HTTP status means: every 5xx is a failure.
    pub const fn of_status(status: u16) -> Option<Self> {
        if status >= 500 { Some(Self::Status(status)) } else { None }
    }

    /// What a gRPC status means: UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE and DATA_LOSS are the server's
    /// failures; the others are answers (<https://grpc.io/docs/guides/status-codes/>).
    pub const fn of_grpc(status: u8) -> Option<Self> {
        match status {
            2 | 4 | 13 | 14 | 15 => Some(Self::Grpc(status)),
            _ => None,
        }
    }

    /// What the reason of a failed attempt says about the endpoint; `None` when it is not the endpoint's doing.
    pub const fn of_reason(reason: Reason) -> Option<Self> {
        match reason {
            Reason::ConnectFailed => Some(Self::ConnectFailed),
            Reason::UpstreamReset => Some(Self::Reset),
            Reason::UpstreamTimeout => Some(Self::Timeout),
            Reason::BadUpstreamResponse => Some(Self::BadResponse),
            _ => None,
        }
    }

    /// As it appears in evidence: `connect_failed`, `503`, `grpc:UNAVAILABLE`.
    pub fn name(self) -> Cow<'static, str> {
        match self {
            Self::ConnectFailed => Reason::ConnectFailed.row().name.into(),
            Self::Reset => Reason::UpstreamReset.row().name.into(),
            Self::Timeout => Reason::UpstreamTimeout.row().name.into(),
            Self::BadResponse => Reason::BadUpstreamResponse.row().name.into(),
            Self::Status(status) => status.to_string().into(),
            Self::Grpc(status) => match names::grpc_status(status) {
                Some(name) => format!("grpc:{name}").into(),
                None => format!("grpc:{status}").into(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_endpoint_did_counts_against_it() {
        for reason in Reason::ALL {
            let blamed = matches!(
                reason,
                Reason::ConnectFailed | Reason::UpstreamReset | Reason::UpstreamTimeout | Reason::BadUpstreamResponse
            );
            assert_eq!(Failure::of_reason(reason).is_some(), blamed, "{reason}");
        }
        let table = [(200, false), (404, false), (429, false), (499, false), (500, true), (503, true), (599, true)];
        for (status, failed) in table {
            assert_eq!(Failure::of_status(status).is_some(), failed, "{status}");
        }
        for status in 0..=16 {
            let failed = ["UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"];
            let name = names::grpc_status(status).unwrap_or_default();
            assert_eq!(Failure::of_grpc(status).is_some(), failed.contains(&name), "{name}");
        }
    }

    #[test]
    fn evidence_speaks_in_the_names_of_reasons() {
        assert_eq!(Failure::ConnectFailed.name(), "connect_failed");
        assert_eq!(Failure::Status(503).name(), "503");
        assert_eq!(Failure::Grpc(14).name(), "grpc:UNAVAILABLE");
    }
}
