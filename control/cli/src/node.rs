//! Runs a node until it is told to stop: configuration in, signals, admin port, drain.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use weft_model::{Checked, Options as ModelOptions, Problems, load_paths};
use weft_proxy::{
    admin::{self, Hosts},
    app::{App, ApplyError, admin::NodeAdmin},
    options::Options,
    source::{
        dirs::DirWatch,
        file::{FileSource, Update},
    },
};

use crate::{
    exit::{Done, Exit, Failure},
    validate,
};

/// Runs a node from files until SIGTERM, SIGINT or a drain. `started` is called once it serves.
pub fn run(options: Options, paths: Vec<PathBuf>, started: impl FnOnce()) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("control")
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}")))?;
    let done = runtime.block_on(serve(options, paths, started));
    // A resolver or a file read that hangs must not keep the process.
    runtime.shutdown_background();
    done
}

async fn serve(options: Options, paths: Vec<PathBuf>, started: impl FnOnce()) -> Done {
    raise_descriptor_limit();
    let failed = |error: std::io::Error| Failure::new(Exit::Failed, error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;

    let mut source = FileSource::new(paths, |paths: &[PathBuf]| load_paths(paths, ModelOptions::default()));
    let checked = source.load().await.map_err(|problems| validate::invalid(&problems))?;
    validate::warn(&checked);
    let summary = validate::summary(&checked);

    let refused = |error| Failure::new(Exit::Failed, error);
    let drain_timeout = options.drain_timeout;
    let admin_address = options.admin;
    let (node, workers) = (options.node.clone(), options.workers);
    let admin = match admin_address {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let mut app = App::start(options, None).map_err(|error| refused(error.to_string()))?;
    app.apply(Arc::new(checked.config)).await.map_err(|error| {
        // A port is a matter of this host; everything else is written in the files.
        let exit = if matches!(error, ApplyError::Bind { .. }) { Exit::Failed } else { Exit::Invalid };
        Failure::new(exit, error)
    })?;
    let mut tasks = tokio::task::JoinSet::new();
    let mut admin_bound = None;
    if let Some(listener) = admin {
        let address = listener.local_addr().map_err(failed)?;
        admin_bound = Some(address);
        let shown = Arc::new(NodeAdmin::new(app.shared().clone(), app.state().clone()));
        tasks.spawn(admin::serve(listener, Hosts::new(address), shown));
    }
    let metrics = app.shared().telemetry.metrics.clone();
    tasks.spawn(weft_proxy::identity::watch::watch(app.identities().clone(), DirWatch::new(), move |_| {
        metrics.config_reload_failures.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }));
    let reloader = source.reloader();
    let (sender, mut updates) = mpsc::channel(1);
    tasks.spawn(source.run(sender));
    let mut drain = app.state().drain.subscribe();

    let ports = app.ports().map(|port| port.to_string()).collect::<Vec<_>>().join(", ");
    let admin_text = admin_bound.map_or_else(|| "off".into(), |address| format!("http://{address}"));
    tracing::info!(node, workers, ports, admin = admin_text, "serving; {summary}");
    started();

    loop {
        tokio::select! {
            Some(update) = updates.recv() => take(&mut app, update).await,
            () = app.resolved() => {}
            _ = hangup.recv() => {
                tracing::info!("SIGHUP: reading the configuration again");
                reloader.reload();
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = drain.changed() => break,
        }
    }
    let (requests, connections) = app.load();
    tracing::info!(requests, connections, timeout = ?drain_timeout, "draining; a second signal ends it at once");
    let drained = tokio::select! {
        drained = app.drain() => drained,
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
    };
    if drained {
        tracing::info!("drained");
    } else {
        tracing::warn!("ended with connections still open");
    }
    Ok(())
}

/// Puts a changed configuration in force, or says why not.
async fn take(app: &mut App, update: Update<Checked, Problems>) {
    match update {
        Update::New(checked) => {
            validate::warn(&checked);
            let summary = validate::summary(&checked);
            match app.apply(Arc::new(checked.config)).await {
                Ok(()) => tracing::info!(revision = app.revision(), "configuration in force; {summary}"),
                Err(error) => {
                    tracing::error!(%error, "configuration refused; the one in force stays");
                    app.refused(error.to_string());
                }
            }
        }
        Update::Bad(problems) => {
            tracing::error!("configuration refused; the one in force stays\n{problems}");
            app.refused(problems.to_string());
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = weft_proxy::app::bind_hint(&error);
        Failure::new(Exit::Failed, format!("cannot listen on {address} for the admin server: {error}{hint}"))
    })
}

/// A proxy needs two descriptors for each connection; the soft limit of most shells is 1024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "descriptor limit not raised");
    }
}
