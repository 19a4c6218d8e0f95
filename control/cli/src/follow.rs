//! `weft watch`: changes as they are made, from whichever member is there.

use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use weft_control::client::Unanswered;

use crate::{
    exit::{Done, Exit, Failure, try_print},
    plane::{PlaneArgs, WITHIN, block_on, done, filter, unanswered},
    query::each,
};

/// A member says something at least every five seconds.
const SILENCE: Duration = Duration::from_secs(12);
/// Between tries to find a member.
const PAUSE: Duration = Duration::from_millis(200);

/// Arguments of `weft watch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The kind; every kind without it.
    kind: Option<String>,
    /// Only in this namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Of endpoints: only those of this Service.
    #[arg(long)]
    service: Option<String>,
    /// Changes after this revision [default: from now on].
    #[arg(long, value_name = "REVISION")]
    from: Option<u64>,
    /// JSON, one line for each revision.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    plane: PlaneArgs,
}

/// Follows changes until Ctrl-C, or until nobody reads any more.
pub fn run(args: &Args) -> Done {
    block_on(async {
        let client = args.plane.client(WITHIN);
        let mut from = match args.from {
            Some(from) => from,
            None => done(client.get("/v1/revision").await)?["revision"].as_u64().unwrap_or(0),
        };
        let filter = filter(&[("kind", &args.kind), ("namespace", &args.namespace), ("service", &args.service)]);
        // A member that is gone is replaced by another; if there is none for a while, that is the end.
        let mut since = Instant::now();
        loop {
            match client.stream(&format!("/v1/watch?from={from}{filter}")).await {
                Ok((StatusCode::OK, body)) => {
                    if follow(body, &mut from, args.json).await? {
                        return Ok(());
                    }
                    since = Instant::now();
                }
                Ok((_, body)) => {
                    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                    let message = body["message"].as_str().unwrap_or("the watch is refused").to_owned();
                    return Err(Failure::new(Exit::Failed, message));
                }
                Err(error @ Unanswered::Unreachable(_)) if since.elapsed() > WITHIN => return Err(unanswered(error)),
                Err(error) => tracing::debug!(%error, "the watch goes on with another member"),
            }
            sleep(PAUSE).await;
        }
    })
}

/// Prints what one member says, until it stops. True when nobody reads any more.
async fn follow(mut body: hyper::body::Incoming, from: &mut u64, json: bool) -> Result<bool, Failure> {
    let mut buffer = Vec::new();
    while let Ok(Some(Ok(frame))) = timeout(SILENCE, body.frame()).await {
        buffer.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let line: Value = serde_json::from_slice(&line).map_err(anyhow::Error::from)?;
            if let Some(message) = line["error"]["message"].as_str() {
                return Err(Failure::new(Exit::Failed, message));
            }
            let text = if json { format!("{line}\n") } else { describe(&line) };
            let quiet = each(&line["changes"]).next().is_none();
            if !quiet && try_print(&text).is_err() {
                return Ok(true);
            }
            *from = line["revision"].as_u64().unwrap_or(*from);
        }
    }
    Ok(false)
}

/// `12  MODIFIED  Service/default/cart  by alice`
fn describe(line: &Value) -> String {
    let mut text = String::new();
    for change in each(&line["changes"]) {
        let (object, metadata) = (&change["object"], &change["object"]["metadata"]);
        let part = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, namespace, name) = (part(&object["kind"]), part(&metadata["namespace"]), part(&metadata["name"]));
        let (revision, what, actor) = (&line["revision"], part(&change["type"]), part(&line["actor"]));
        text.push_str(&format!("{revision}  {what:8}  {kind}/{namespace}/{name}  by {actor}\n"));
    }
    text
}
