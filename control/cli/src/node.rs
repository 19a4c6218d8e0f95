//! Runs a node until it is told to stop: configuration in, signals, admin port, drain.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};
use weft_ebpf::programs::EbpfSetupError;
use weft_proxy::{
    admin::{self, Hosts},
    app::{App, ApplyError, admin::NodeAdmin},
    options::Options,
    source::dirs::DirWatch,
};

use crate::{
    exit::{Done, Exit, Failure},
    kernel::Wanted,
    mesh::Mesh,
    source::{Opened, Origin, Source, Taken},
    validate,
};

/// Runs a node until SIGTERM, SIGINT or a drain. `started` is called once it serves, with whether connections are captured.
pub fn run(options: Options, kernel: Option<Wanted>, origin: Origin, started: impl FnOnce(bool)) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("control")
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}")))?;
    let done = runtime.block_on(serve(options, kernel, origin, started));
    // A resolver or a file read that hangs must not keep the process.
    runtime.shutdown_background();
    done
}

async fn serve(options: Options, kernel: Option<Wanted>, origin: Origin, started: impl FnOnce(bool)) -> Done {
    raise_descriptor_limit();
    let failed = |error: std::io::Error| Failure::new(Exit::Failed, error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;

    let opened = Opened::new(origin, &options).await?;
    let drain_timeout = options.drain_timeout;
    let (node, workers) = (options.node.clone(), options.workers);
    let admin = match options.admin {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    // Before any socket is made that the kernel programs should see.
    let required = kernel.as_ref().is_some_and(|wanted| wanted.required);
    let mut mesh = mesh(kernel)?;
    let app = App::start(options, mesh.as_ref().map(Mesh::kernel));
    let mut app = app.map_err(|error| Failure::new(Exit::Failed, error))?;
    let mut tasks = tokio::task::JoinSet::new();
    let mut summary = String::new();
    let mut source = match opened {
        Opened::Files(follow, checked) => {
            summary = validate::summary(&checked.config, &checked.warnings);
            app.apply(Arc::new(checked.config)).await.map_err(|error| {
                // A port is a matter of this host; everything else is written in the files.
                let exit = if matches!(error, ApplyError::Bind { .. }) { Exit::Failed } else { Exit::Invalid };
                Failure::new(exit, error)
            })?;
            follow(&mut tasks)
        }
        Opened::Control(source) => {
            app.follows(source.status());
            Source::control(*source)
        }
        Opened::Embedded(source, member, files) => {
            app.follows(source.status());
            Source::embedded(*source, member, files, &mut tasks)
        }
    };
    let mut admin_text = "off".to_owned();
    if let Some(listener) = admin {
        let address = listener.local_addr().map_err(failed)?;
        admin_text = format!("http://{address}");
        let shown = Arc::new(NodeAdmin::new(app.shared().clone(), app.state().clone()));
        tasks.spawn(admin::serve(listener, Hosts::new(address), shown));
    }
    let metrics = app.shared().telemetry.metrics.clone();
    tasks.spawn(weft_proxy::identity::watch::watch(app.identities().clone(), DirWatch::new(), move |_| {
        metrics.config_reload_failures.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }));
    let mut drain = app.state().drain.subscribe();

    let mut started = Some(started);
    loop {
        if app.revision() > 0
            && let Some(started) = started.take()
        {
            // Not before: what an earlier process left in the kernel is better than nothing.
            if let Some(attaching) = &mut mesh
                && let Err(error) = attaching.attach(&app)
            {
                not_captured(required, &error)?;
                mesh = None;
            }
            let ports = app.ports().map(|port| port.to_string()).collect::<Vec<_>>().join(", ");
            let captured = app.captured().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let captured = if mesh.is_some() { &captured } else { "off" };
            tracing::info!(node, workers, ports, captured, admin = admin_text, "serving; {summary}");
            started(mesh.is_some());
        }
        tokio::select! {
            Some(news) = source.next() => {
                match source.take(news, &mut app).await {
                    Taken::Documents(valid) => summary = valid,
                    Taken::Same => {}
                    Taken::Refused(exit, why) if app.revision() == 0 && source.is_here() => {
                        return Err(Failure::new(exit, why));
                    }
                    Taken::Refused(..) => {}
                }
                // Before that, nothing has been attached.
                if started.is_none() {
                    mesh.iter().for_each(|mesh| mesh.follow(&app));
                }
            }
            () = app.resolved() => mesh.iter().for_each(|mesh| mesh.follow(&app)),
            _ = hangup.recv() => source.reload(),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = drain.changed() => break,
        }
    }
    end(app, mesh, source, drain_timeout, [&mut terminate, &mut interrupt]).await;
    Ok(())
}

/// Lets what is in flight finish, unless there is a second signal.
async fn end(app: App, mesh: Option<Mesh>, source: Source, timeout: Duration, signals: [&mut Signal; 2]) {
    let (requests, connections) = app.load();
    tracing::info!(requests, connections, ?timeout, "draining; a second signal ends it at once");
    if let Some(mesh) = &mesh {
        mesh.suspend().await;
    }
    let [terminate, interrupt] = signals;
    let drained = tokio::select! {
        (drained, ()) = async { tokio::join!(app.drain(), source.close()) } => drained,
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
    };
    if let Some(mesh) = mesh {
        mesh.stop().await;
    }
    if drained {
        tracing::info!("drained");
    } else {
        tracing::warn!("ended with connections still open");
    }
}

/// The kernel side, if it is wanted and can be had.
fn mesh(wanted: Option<Wanted>) -> Result<Option<Mesh>, Failure> {
    let Some(Wanted { required, agent }) = wanted else { return Ok(None) };
    match Mesh::start(&agent) {
        Ok(mesh) => Ok(Some(mesh)),
        Err(error) => not_captured(required, &error).map(|()| None),
    }
}

/// There is no kernel side: the end, or a warning.
fn not_captured(required: bool, error: &EbpfSetupError) -> Result<(), Failure> {
    if required {
        let text = format!("connections cannot be captured: {error} (`weft check` says more)");
        return Err(Failure::new(Exit::Failed, text));
    }
    tracing::warn!(%error, "connections are not captured; Gateways work (`weft check` says more)");
    Ok(())
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
