//! `weft control`: a member of the control plane.

use std::{net::SocketAddr, path::PathBuf};

use tokio::signal::unix::{SignalKind, signal};
use weft_control::member::{Setup, start};

use crate::exit::{Done, Exit, Failure};

/// Arguments of `weft control`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What this member is called; unique in the cluster.
    #[arg(long)]
    name: String,
    /// Where it keeps its log and snapshots. Never copy it, and never give it to two members.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Where it listens, for clients and the other members.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15010")]
    listen: SocketAddr,
    /// Where the others reach it [default: where it listens].
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Members of the cluster to join; may be repeated. Without it, and with an empty directory, a new cluster begins.
    #[arg(long, value_name = "HOST:PORT", num_args = 1..)]
    join: Vec<String>,
    /// Begin no cluster: wait until `weft raft add` adds this member to one.
    #[arg(long, conflicts_with = "join")]
    standby: bool,
}

/// Runs a member until SIGTERM or SIGINT.
pub fn run(args: Args) -> Done {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}")))?;
    let done = runtime.block_on(serve(args));
    // A disk that hangs must not keep the process.
    runtime.shutdown_background();
    done
}

async fn serve(args: Args) -> Done {
    let failed = |error: std::io::Error| Failure::new(Exit::Failed, error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let Args { name, data_dir, listen, advertise, mut join, standby } = args;
    if standby {
        // Whoever has only itself to join waits.
        join.push(advertise.clone().unwrap_or_else(|| listen.to_string()));
    }
    let setup = Setup { name: name.clone(), data_dir, listen, advertise, join };
    let mut member = start(setup).await.map_err(|ended| Failure::new(Exit::Failed, ended))?;
    tracing::info!(name, address = %member.address(), "serving");
    tokio::select! {
        ended = member.failed() => return Err(Failure::new(Exit::Failed, ended)),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; a second signal ends it at once");
    tokio::select! {
        () = member.stop() => tracing::info!("stopped"),
        _ = terminate.recv() => tracing::warn!("ended before it had stopped"),
        _ = interrupt.recv() => tracing::warn!("ended before it had stopped"),
    }
    Ok(())
}
