//! Asks members of a control plane, one after the other until one answers.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use crate::pool::{CallError, Pool};

/// Between rounds through the members.
const PAUSE: Duration = Duration::from_millis(100);
/// For the answer of one member, before another is asked.
const ONE: Duration = Duration::from_secs(8);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// Nobody is there.
    #[error("no control plane answers: {0}")]
    Unreachable(String),
    /// It took too long. What was asked for may have been done.
    #[error("no answer in time: {0}")]
    TimedOut(String),
}

/// What a member answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Whether it did what was asked.
    pub status: StatusCode,
    /// What it said.
    pub body: Value,
}

/// A client of a control plane.
#[derive(Debug)]
pub struct Client {
    addresses: Vec<String>,
    pool: Pool,
    within: Duration,
    one: Duration,
    id: u128,
    sequence: u64,
}

impl Client {
    /// A client of the members at these addresses, which tries for `within`.
    pub fn new(addresses: Vec<String>, within: Duration) -> Self {
        Self { addresses, pool: Pool::default(), within, one: ONE, id: fastrand::u128(..), sequence: 0 }
    }

    /// Asks the next member when one has not answered within `one`, for what cannot wait for a member that hangs.
    #[must_use]
    pub fn patience(self, one: Duration) -> Self {
        Self { one, ..self }
    }

    /// Reads.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn get(&self, target: &str) -> Result<Answer, Unanswered> {
        self.ask(|| Request::get(target).body(Full::default())).await
    }

    /// Changes something, once, however often it has to be asked for.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn change(
        &mut self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, Unanswered> {
        self.sequence += 1;
        let issued = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let (client, sequence, issued) = (format!("{:x}", self.id), self.sequence.to_string(), issued.to_string());
        let body = body.into();
        let request = || {
            let mut request = Request::builder().method(method.clone()).uri(target);
            let ours = [("weft-client", &*client), ("weft-sequence", &*sequence), ("weft-issued", &*issued)];
            for (name, value) in ours.iter().chain(headers) {
                request = request.header(*name, *value);
            }
            request.body(Full::new(body.clone()))
        };
        self.ask(request).await
    }

    /// An answer that does not end, from the first member that gives it.
    ///
    /// # Errors
    /// When nobody does.
    pub async fn stream(&self, target: &str) -> Result<(StatusCode, Incoming), Unanswered> {
        let mut why = String::new();
        for address in &self.addresses {
            let request = Request::get(target).header(header::ACCEPT, "application/x-ndjson").body(Full::default());
            let request = request.map_err(|error| Unanswered::Unreachable(error.to_string()))?;
            match self.pool.send(address, request, self.one).await {
                Ok(answer) if answer.status() != StatusCode::SERVICE_UNAVAILABLE => {
                    return Ok((answer.status(), answer.into_body()));
                }
                Ok(answer) => why = format!("{address} answered {}", answer.status()),
                Err(error) => why = error.to_string(),
            }
        }
        Err(Unanswered::Unreachable(why))
    }

    async fn ask(&self, request: impl Fn() -> Result<Request<Full<Bytes>>, http::Error>) -> Result<Answer, Unanswered> {
        let deadline = Instant::now() + self.within;
        loop {
            let (mut why, mut nobody) = (String::new(), true);
            for address in &self.addresses {
                let left = deadline.saturating_duration_since(Instant::now());
                let request = request().map_err(|error| Unanswered::Unreachable(error.to_string()))?;
                match self.one(address, request, left.min(self.one)).await {
                    Ok(answer) if !is_passing(&answer) => return Ok(answer),
                    Ok(answer) => {
                        nobody = false;
                        why = format!("{address}: {}", answer.body["message"].as_str().unwrap_or_default());
                    }
                    Err(CallError::Connect(error)) => why = error,
                    Err(CallError::Lost(error)) => {
                        nobody = false;
                        why = error;
                    }
                }
            }
            if nobody {
                return Err(Unanswered::Unreachable(why));
            }
            if Instant::now() + PAUSE >= deadline {
                return Err(Unanswered::TimedOut(why));
            }
            sleep(PAUSE).await;
        }
    }

    async fn one(&self, address: &str, request: Request<Full<Bytes>>, within: Duration) -> Result<Answer, CallError> {
        let call = async {
            let answer = self.pool.send(address, request, within).await?;
            let status = answer.status();
            let lost = |error: &dyn std::fmt::Display| CallError::Lost(format!("{address}: {error}"));
            let body = answer.into_body().collect().await.map_err(|error| lost(&error))?.to_bytes();
            let body = serde_json::from_slice(&body).map_err(|error| lost(&error))?;
            Ok(Answer { status, body })
        };
        let late = || CallError::Lost(format!("{address} did not answer within {within:?}"));
        timeout(within, call).await.unwrap_or_else(|_| Err(late()))
    }
}

/// Would another member, or the same one a little later, answer otherwise?
fn is_passing(answer: &Answer) -> bool {
    answer.status == StatusCode::SERVICE_UNAVAILABLE || answer.status == StatusCode::GATEWAY_TIMEOUT
}
