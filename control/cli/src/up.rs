//! `weft up`: a whole node in one process: a control plane of one member, the files that are applied to it, and the
//! data plane that follows it.

use std::{net::SocketAddr, path::PathBuf};

use weft_control::member::Setup;

use crate::{
    exit::{Done, Exit, Failure},
    node,
    proxy::{NodeArgs, state_dir},
    source::Origin,
};

/// Arguments of `weft up`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files or directories: applied at the start, watched, and taken over as a whole when they change and are valid.
    /// May be repeated.
    #[arg(short, long = "file", value_name = "FILE|DIR", required = true, num_args = 1..)]
    file: Vec<PathBuf>,
    /// Where the control plane keeps what it was told, also by others than these files; two processes cannot share it
    /// [default: $XDG_STATE_HOME/weft/control or ~/.local/state/weft/control; for root /var/lib/weft/control].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the control plane listens, for `weft get`, `weft register` and nodes.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15010")]
    control_listen: SocketAddr,
    #[command(flatten)]
    node: NodeArgs,
}

/// Runs the node.
pub fn run(args: Args) -> Done {
    let Args { file, data_dir, control_listen, node } = args;
    let kernel = node.kernel().wanted()?;
    let options = node.options();
    let data_dir = data_dir.or_else(|| state_dir("control")).ok_or_else(|| {
        Failure::new(Exit::Usage, "there is no home directory to keep the control plane's data in: add --data-dir DIR")
    })?;
    // There are no other members that have to reach it; its own node does.
    let advertise = control_listen.ip().is_unspecified().then(|| format!("localhost:{}", control_listen.port()));
    let setup = Setup { name: options.node.clone(), data_dir, listen: control_listen, advertise, join: Vec::new() };
    node::run(options, kernel, Origin::Embedded { setup, files: file }, |_| {})
}
