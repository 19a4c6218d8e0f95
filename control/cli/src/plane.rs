//! What the verbs that ask a control plane share: which one, answers, and what refusals mean.

use std::{collections::HashSet, future::Future, time::Duration};

use serde_json::Value;
use weft_control::{
    Client,
    client::{Answer, Unanswered},
    config,
};
use weft_model::Problems;
use weft_store::types::ObjectKey;

use crate::{
    exit::{Exit, Failure, eprint_line},
    query::each,
    validate,
};

/// Which control plane.
#[derive(Debug, Clone, clap::Args)]
pub struct PlaneArgs {
    /// A member of the control plane; may be repeated: when one does not answer, the next is asked.
    #[arg(long = "control", value_name = "HOST:PORT", default_value = "127.0.0.1:15010")]
    control: Vec<String>,
}

impl PlaneArgs {
    /// A client that gives up after `within`.
    pub fn client(&self, within: Duration) -> Client {
        Client::new(self.control.clone(), within)
    }
}

/// How long most verbs try.
pub const WITHIN: Duration = Duration::from_secs(15);

/// Who asks, for the history.
pub fn actor() -> String {
    let user = std::env::var("USER").unwrap_or_default();
    let plain = !user.is_empty() && user.bytes().all(|byte| byte.is_ascii_graphic());
    if plain { user } else { "cli".into() }
}

/// Runs a verb to its end.
pub fn block_on<T>(verb: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
    runtime.block_on(verb)
}

/// The body of an answer that did what was asked.
pub fn done(answer: Result<Answer, Unanswered>) -> Result<Value, Failure> {
    let answer = answer.map_err(unanswered)?;
    if answer.status.is_success() { Ok(answer.body) } else { Err(refused(&answer)) }
}

/// Nobody answered.
pub fn unanswered(error: Unanswered) -> Failure {
    match error {
        Unanswered::Unreachable(_) => {
            Failure::new(Exit::Unreachable, format!("{error} (is weft control running? see --control)"))
        }
        Unanswered::TimedOut(_) => Failure::new(Exit::TimedOut, error),
    }
}

/// It was not done.
pub fn refused(answer: &Answer) -> Failure {
    let text = |name: &str| answer.body[name].as_str();
    let exit = match text("code") {
        Some("invalid") => Exit::Invalid,
        Some("bad_request") => Exit::Usage,
        _ => Exit::Failed,
    };
    let mut message = text("message").map_or_else(|| format!("it was answered {}", answer.status), str::to_owned);
    for problem in each(&answer.body["problems"]) {
        let part = |name: &str| problem[name].as_str().unwrap_or_default();
        let (line, column) = (&problem["line"], &problem["column"]);
        message.push_str(&format!("\n{}:{line}:{column}: {}", part("file"), part("message")));
        if let Some(hint) = problem["hint"].as_str() {
            message.push_str(&format!("\n  hint: {hint}"));
        }
    }
    if let Some(hint) = text("hint") {
        message.push_str(&format!("\n  hint: {hint}"));
    }
    Failure::new(exit, message)
}

/// As [`done`], for a change of the configuration: what is wrong with it is shown in its lines, as `weft validate` does.
pub async fn changed(
    client: &Client,
    answer: Result<Answer, Unanswered>,
    files: &[(String, String)],
    deleted: &[ObjectKey],
) -> Result<Value, Failure> {
    let answer = answer.map_err(unanswered)?;
    if answer.body["code"] == "invalid"
        && let Some(problems) = problems(client, files, deleted).await
    {
        return Err(validate::invalid(&problems));
    }
    if !answer.status.is_success() {
        return Err(refused(&answer));
    }
    // The same field may be without effect in many documents.
    let mut said = HashSet::new();
    for warning in each(&answer.body["warnings"]) {
        let part = |name: &str| warning[name].as_str().unwrap_or_default();
        let line = format!("warning: {}:{}:{}: {}", part("file"), warning["line"], warning["column"], part("message"));
        if said.insert(line.clone()) {
            eprint_line(&line);
        }
    }
    Ok(answer.body)
}

/// The problems once more, found here with the texts at hand. None when what is stored has changed for the better.
async fn problems(client: &Client, files: &[(String, String)], deleted: &[ObjectKey]) -> Option<Problems> {
    let stored = client.get("/v1/objects").await.ok()?.body;
    let known = each(&stored["items"]).filter_map(|object| {
        let metadata = &object["metadata"];
        let (namespace, name) = (metadata["namespace"].as_str()?, metadata["name"].as_str()?);
        Some((ObjectKey::new(object["kind"].as_str()?, namespace, name), object.clone()))
    });
    config::check(known, files, deleted).err()
}

/// A part of a path.
pub fn segment(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// What narrows a list, as the rest of a query.
pub fn filter(by: &[(&str, &Option<String>)]) -> String {
    let given = by.iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
    given.map(|(name, value)| format!("&{name}={}", segment(value))).collect()
}
