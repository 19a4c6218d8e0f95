//! demo (being written)
use crate::exit::Done;
/// Arguments of `weft demo`.
#[derive(Debug, clap::Args)]
pub struct Args {}
/// Runs.
pub fn run(_args: Args) -> Done {
    Ok(())
}
