//! What is remembered of a request for metrics, spans and the access log. Texts are kept only if somebody records them.

use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header};
use smallvec::SmallVec;

use crate::{
    conn::Conn,
    endpoint::Endpoint,
    error::{Reason, Refusal},
    resilience::{circuit::Event, outcome::Failure},
    snapshot::Rule,
    telemetry::{Attempt, Finished, Worker, context::Trace, metrics::Slot},
};

/// The record of one request.
#[derive(Debug)]
pub struct Record {
    /// Route and service, once known.
    pub slot: Option<Arc<Slot>>,
    /// Status sent to the client; 0 until then.
    pub status: u16,
    /// Why Weft answered itself, or why the response broke off.
    pub reason: Option<Reason>,
    /// The explanation of a refusal.
    pub detail: Option<Cow<'static, str>>,
    /// Of the request's body.
    pub bytes_in: u64,
    /// Of the response's body.
    pub bytes_out: u64,
    method: Method,
    version: Version,
    trace: Trace,
    grpc: Option<Option<u8>>,
    attempts: SmallVec<[Attempt; 1]>,
    texts: Option<Box<Texts>>,
}

/// Reference-counted parts of the request.
#[derive(Debug)]
struct Texts {
    uri: Uri,
    host: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
}

impl Record {
    /// Begins with the arriving request.
    pub fn begin<B>(worker: &Worker, request: &Request<B>, grpc: bool) -> Self {
        let headers = request.headers();
        let trace = worker.begin(headers);
        let texts = worker.keeps_details(&trace).then(|| {
            Box::new(Texts {
                uri: request.uri().clone(),
                host: headers.get(header::HOST).cloned(),
                user_agent: headers.get(header::USER_AGENT).cloned(),
                request_id: None,
            })
        });
        Self {
            slot: None,
            status: 0,
            reason: None,
            detail: None,
            bytes_in: 0,
            bytes_out: 0,
            method: request.method().clone(),
            version: request.version(),
            trace,
            grpc: grpc.then_some(None),
            attempts: SmallVec::new(),
            texts,
        }
    }

    /// The client's method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The fields that the upstream gets, for the texts that Weft made.
    pub fn forwarded(&mut self, headers: &HeaderMap) {
        if let Some(texts) = &mut self.texts {
            texts.request_id = headers.get("x-request-id").cloned();
        }
    }

    /// An attempt begins; its trace context goes into `headers`.
    pub fn attempt(
        &mut self,
        worker: &Worker,
        endpoint: &Arc<Endpoint>,
        tls: bool,
        headers: Option<&mut HeaderMap>,
        now: Instant,
    ) {
        let span_id = worker.attempt_span(&self.trace);
        if let Some(headers) = headers {
            self.trace.inject(headers, span_id);
        }
        self.attempts.push(Attempt {
            span_id,
            start: now,
            head: None,
            end: None,
            endpoint: Some(endpoint.clone()),
            tls,
            status: 0,
            grpc_status: None,
            reason: None,
            breaker: None,
        });
    }

    /// When the attempt under way began.
    pub fn attempt_start(&self) -> Option<Instant> {
        self.attempts.last().map(|attempt| attempt.start)
    }

    /// The response's head has come.
    pub fn head(&mut self, status: u16, headers: &HeaderMap, now: Instant) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.head = Some(now);
            attempt.status = status;
        }
        // Trailers-only replies carry their status here.
        self.grpc_status(headers);
    }

    /// The attempt came to nothing.
    pub fn attempt_failed(&mut self, reason: Reason, now: Instant) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.end = Some(now);
            attempt.reason = Some(reason);
        }
    }

    /// The outcome of the attempt under way changed its endpoint's breaker.
    pub fn breaker(&mut self, event: Arc<Event>) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.breaker = Some(event);
        }
    }

    /// From the start of the attempt under way to its response's head, or to `now` without one.
    pub fn took(&self, now: Instant) -> Duration {
        let took = |attempt: &Attempt| attempt.head.unwrap_or(now).saturating_duration_since(attempt.start);
        self.attempts.last().map_or(Duration::ZERO, took)
    }

    /// Whether it is a gRPC exchange.
    pub fn is_grpc(&self) -> bool {
        self.grpc.is_some()
    }

    /// The upstream's `grpc-status`, as far as the attempt under way has one.
    pub fn attempt_grpc_status(&self) -> Option<u8> {
        self.attempts.last()?.grpc_status
    }

    /// Reads `grpc-status` of a gRPC exchange from headers or trailers.
    pub fn grpc_status(&mut self, fields: &HeaderMap) {
        let Some(grpc) = &mut self.grpc else { return };
        let status = fields.get("grpc-status").and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
        if status.is_some() {
            *grpc = status;
            if let Some(attempt) = self.attempts.last_mut() {
                attempt.grpc_status = status;
            }
        }
    }

    /// A refusal of a gRPC request has its own status.
    pub fn refused(&mut self, refusal: Refusal) {
        self.status = refusal.http_status().as_u16();
        if let Some(grpc) = &mut self.grpc {
            *grpc = Some(refusal.grpc_status());
        }
        self.reason = Some(refusal.reason);
        self.detail = Some(refusal.detail);
    }

    /// Hands everything to metrics, spans and log.
    pub fn finish(&self, worker: &Worker, rule: Option<&Rule>, conn: &Conn, start: Instant, end: Instant) {
        let texts = self.texts.as_deref();
        let text = |value: Option<&'_ HeaderValue>| value.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let host = texts.and_then(|texts| {
            texts.uri.authority().map(|authority| authority.as_str().to_owned()).or_else(|| text(texts.host.as_ref()))
        });
        worker.finish(&Finished {
            slot: self.slot.as_ref(),
            rule: rule.map(|rule| &*rule.name),
            method: &self.method,
            path: texts.map_or("", |texts| texts.uri.path()),
            query: texts.and_then(|texts| texts.uri.query()),
            host: host.as_deref(),
            scheme: conn.scheme(),
            version: self.version,
            status: self.status,
            reason: self.reason,
            grpc: self.grpc,
            start,
            end,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            client: Some(SocketAddr::new(conn.peer.ip(), conn.peer.port())),
            user_agent: texts.and_then(|texts| texts.user_agent.as_ref()),
            request_id: texts.and_then(|texts| texts.request_id.as_ref()),
            trace: &self.trace,
            attempts: &self.attempts,
        });
    }

    /// Adds to the endpoint's count of failures if this exchange is one.
    pub fn judge(&self, endpoint: &Endpoint) {
        if self.reason.map_or(self.status >= 500, |reason| Failure::of_reason(reason).is_some()) {
            endpoint.failures.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
}
