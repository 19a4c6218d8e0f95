//! `/v1/backup`: everything that is kept, at one revision.

use http::{HeaderName, HeaderValue};
use weft_store::{backup, machine::Machine};

use super::{Answered, Context, query::Query, reply::Refusal, reply::bytes};

/// The revision that a backup is of.
const REVISION: HeaderName = HeaderName::from_static("weft-revision");

pub(super) async fn backup(context: &Context, query: &Query) -> Answered {
    // Versions are shared with what is kept, so that this is quick however much there is.
    let machine = context.store.read(query.consistency()?, Machine::clone).await?;
    let revision = machine.revision();
    let file = tokio::task::spawn_blocking(move || backup::write(&machine)).await;
    let mut response = bytes(file.map_err(|error| Refusal::defect(error.to_string()))?);
    let content_type = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(http::header::CONTENT_TYPE, content_type);
    response.headers_mut().insert(REVISION, HeaderValue::from(revision.0));
    Ok(response)
}
