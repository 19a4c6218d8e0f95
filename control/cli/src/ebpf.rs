//! `weft ebpf`: the kernel programs of a transparent mesh.

mod flows;
pub mod observe;
mod status;
mod unload;

use clap::Subcommand;

use crate::exit::Done;

/// What about them.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Where programs are attached, whether they are called, what they have decided, how full their maps are. Asks the
    /// node, and the kernel when no node answers. Ends with 1 when something is wrong, and with 3 when there is nothing.
    Status(status::Args),
    /// Connections as they are decided: who went where, and why. All of them while somebody follows, otherwise refusals.
    Flows(flows::Args),
    /// Detach the programs and remove their maps. Until then DIRECT services work without Weft, and PROXY services fail
    /// open or closed.
    Unload(unload::Args),
}

/// Does it.
pub fn run(verb: &Verb) -> Done {
    match verb {
        Verb::Status(args) => status::run(args),
        Verb::Flows(args) => flows::run(args),
        Verb::Unload(args) => unload::run(args),
    }
}
