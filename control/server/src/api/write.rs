//! How a request becomes a command that is applied once, however often it is asked for.

use weft_store::types::{ClientId, Command, Op, Outcome, RequestId};

use super::{Asked, Context, reply::Refusal};

/// How often something is tried that others may change meanwhile. Each try has a sequence number of its own, so that a
/// request that is repeated goes through the same tries and finds the one that was done.
pub(super) const TRIES: u64 = 8;

/// Who asks, and by what a retry is recognised.
#[derive(Debug)]
pub(super) struct Asking {
    actor: String,
    request: Option<RequestId>,
}

impl Asking {
    pub(super) fn of(asked: &Asked) -> Result<Self, Refusal> {
        let text = |name: &str| asked.headers.get(name).and_then(|value| value.to_str().ok());
        let actor = text("weft-actor").unwrap_or("api").to_owned();
        let Some(client) = text("weft-client") else { return Ok(Self { actor, request: None }) };
        let client =
            u128::from_str_radix(client, 16).map_err(|_| Refusal::bad("weft-client is a hexadecimal number"))?;
        let number = |name: &str| {
            let number: Option<u64> = text(name).and_then(|text| text.parse().ok());
            let number = number.filter(|number| *number < u64::MAX / TRIES);
            number.ok_or_else(|| Refusal::bad(format!("{name} is a number")))
        };
        let (sequence, issued) = (number("weft-sequence")?, number("weft-issued")?);
        let settled = if text("weft-settled").is_some() { number("weft-settled")? } else { sequence };
        let client = ClientId(client);
        Ok(Self { actor, request: Some(RequestId { client, sequence, settled, issued }) })
    }

    /// A request without an id leaves no trace when there is nothing to do.
    pub(super) fn is_identified(&self) -> bool {
        self.request.is_some()
    }

    /// Writes, as the `attempt`-th try.
    pub(super) async fn write(&self, context: &Context, attempt: u64, op: Op) -> Result<Outcome, Refusal> {
        let mut command = Command::new(&self.actor, (context.clock)(), op);
        if let Some(request) = self.request {
            let sequence = request.sequence * TRIES + attempt;
            command = command.identified(RequestId { sequence, settled: request.settled * TRIES, ..request });
        }
        Ok(context.store.write(command).await?)
    }
}

impl Refusal {
    /// Others were faster, each time.
    pub(super) fn contended() -> Self {
        let message = "others changed it each time it was checked; nothing was done";
        Self::new(http::StatusCode::CONFLICT, "contended", message).hint("try again")
    }
}
