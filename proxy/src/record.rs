//! What is remembered of a request for metrics, spans and the access log. Texts are kept only if somebody records them.

use std::{borrow::Cow, net::SocketAddr, sync::Arc, time::Instant};

use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header};
use smallvec::SmallVec;

use crate::{
    conn::Conn,
    endpoint::Endpoint,
    error::{Reason, Refusal},
    resilience::circuit::Event,
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

    /// The gRPC status so far.
    pub fn seen_grpc_status(&self) -> Option<u8> {
        self.grpc.flatten()
    }

    /// Whether the client speaks gRPC.
    pub const fn is_grpc(&self) -> bool {
        self.grpc.is_some()
    }

    /// An attempt begins; its trace context goes into `headers`. Its place among the attempts.
    pub fn attempt(
        &mut self,
        worker: &Worker,
        endpoint: &Arc<Endpoint>,
        tls: bool,
        headers: &mut HeaderMap,
        now: Instant,
    ) -> usize {
        let span_id = worker.attempt_span(&self.trace);
        self.trace.inject(headers, span_id);
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
        self.attempts.len() - 1
    }

    /// The head of an attempt's response has come; the gRPC status in it, if it is a trailers-only reply.
    pub fn head(&mut self, attempt: usize, status: u16, headers: &HeaderMap, now: Instant) -> Option<u8> {
        if let Some(attempt) = self.attempts.get_mut(attempt) {
            attempt.head = Some(now);
            attempt.status = status;
        }
        // What an attempt before it said no longer counts.
        *self.grpc.as_mut()? = None;
        self.grpc_status(attempt, headers)
    }

    /// The attempt came to nothing.
    pub fn attempt_failed(&mut self, attempt: usize, reason: Reason, now: Instant) {
        if let Some(attempt) = self.attempts.get_mut(attempt) {
            attempt.end = Some(now);
            attempt.reason = Some(reason);
        }
    }

    /// The outcome of an attempt changed its endpoint's breaker.
    pub fn breaker(&mut self, attempt: usize, event: Arc<Event>) {
        if let Some(attempt) = self.attempts.get_mut(attempt) {
            attempt.breaker = Some(event);
        }
    }

    /// The client gets the answer of another attempt, or none.
    pub fn attempt_ended(&mut self, attempt: usize, now: Instant) {
        if let Some(attempt) = self.attempts.get_mut(attempt) {
            attempt.end = Some(now);
        }
    }

    /// Reads `grpc-status` of a gRPC exchange from the headers or trailers of an attempt's response.
    pub fn grpc_status(&mut self, attempt: usize, fields: &HeaderMap) -> Option<u8> {
        let grpc = self.grpc.as_mut()?;
        let status = fields.get("grpc-status")?.to_str().ok()?.parse().ok()?;
        *grpc = Some(status);
        if let Some(attempt) = self.attempts.get_mut(attempt) {
            attempt.grpc_status = Some(status);
        }
        Some(status)
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
            workload: conn.captured.as_ref().and_then(|captured| captured.workload.as_ref()),
            trace: &self.trace,
            attempts: &self.attempts,
        });
    }
}
