//! `weft schema`: the JSON Schema of every document.

use crate::exit::{Done, print_line};

/// Prints it.
pub fn run() -> Done {
    print_line(&serde_json::to_string_pretty(&weft_model::json_schema()).map_err(anyhow::Error::from)?);
    Ok(())
}
