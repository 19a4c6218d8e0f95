#![allow(clippy::unwrap_used)]

use super::*;
use crate::snapshot::fixture::{gateway, object, ours, snapshot};

fn ask(text: &str, question: &str) -> Value {
    explain(&snapshot(text), &Question::parse(question).unwrap(), Instant::now())
}
