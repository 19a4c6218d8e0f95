//! `weft up`: a whole node from files.

use std::path::PathBuf;

use crate::{
    exit::Done,
    proxy::{self, NodeArgs},
};

/// Arguments of `weft up`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files or directories: applied at the start, watched, and taken over as a whole when they change and are valid.
    /// May be repeated.
    #[arg(short, long = "file", value_name = "FILE|DIR", required = true, num_args = 1..)]
    file: Vec<PathBuf>,
    #[command(flatten)]
    node: NodeArgs,
}

/// Runs the node.
pub fn run(args: Args) -> Done {
    proxy::start(args.node, args.file)
}
