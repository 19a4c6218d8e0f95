//! Values with more than one spelling.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A Gateway API duration, not yet parsed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DurationText(pub String);

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A Gateway API duration: whole numbers with the units h, m, s and ms.",
            "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$",
            "examples": ["250ms", "1m30s"],
        })
    }
}

/// A number of bytes: an integer, or text with a unit (`64KiB`, `1MiB`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ByteSize {
    /// Bytes.
    Bytes(u64),
    /// With a unit.
    Text(String),
}

impl ByteSize {
    /// The number of bytes, if it can be read.
    pub fn bytes(&self) -> Option<u64> {
        let text = match self {
            Self::Bytes(bytes) => return Some(*bytes),
            Self::Text(text) => text,
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor: u64 = match unit {
            "" | "B" => 1,
            "k" | "kB" => 1000,
            "M" | "MB" => 1_000_000,
            "G" | "GB" => 1_000_000_000,
            "Ki" | "KiB" => 1 << 10,
            "Mi" | "MiB" => 1 << 20,
            "Gi" | "GiB" => 1 << 30,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(factor)
    }
}

/// A choice without parameters: `sourceIP: {}` or `sourceIP: true`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Chosen {
    /// `true` chooses it, `false` does not.
    Flag(bool),
    /// `{}`
    Empty(Nothing),
}

impl Chosen {
    /// Whether it is.
    pub fn is_chosen(&self) -> bool {
        *self != Self::Flag(false)
    }
}

/// `{}`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_and_without_units() {
        for (text, bytes) in [
            ("64KiB", Some(65_536)),
            ("64Ki", Some(65_536)),
            ("1MiB", Some(1_048_576)),
            ("2kB", Some(2000)),
            ("7", Some(7)),
            ("", None),
            ("KiB", None),
            ("1.5MiB", None),
            ("1 MiB", None),
            ("99999999999999GiB", None),
        ] {
            assert_eq!(ByteSize::Text(text.into()).bytes(), bytes, "{text:?}");
        }
        assert_eq!(ByteSize::Bytes(5).bytes(), Some(5));
    }
}
