//! A member of a control plane in this process, on a runtime of its own: what it writes to the disk and says to other
//! members must not wait for a configuration that is being put in force, nor the other way round.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};
use weft_control::{
    Client,
    member::{Ended, Setup, start},
};
use weft_model::{Options, Problems, load_texts, read_texts, with_absolute_paths};
use weft_proxy::source::{
    Reloader,
    file::{FileSource, Update},
};
use weft_store::Fatal;

use crate::{
    apply,
    exit::{Exit, Failure},
    validate,
};

/// How long files are tried to be applied: a member that was asked to stop in the middle of something may lead only after
/// an election.
const WITHIN: Duration = Duration::from_secs(15);
/// What the files are called together: what one of them said and none says any more is deleted.
const SET: &str = "files";

/// Threads of its runtime.
const THREADS: usize = 2;

/// A member that runs.
#[derive(Debug)]
pub struct Embedded {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    ended: oneshot::Receiver<String>,
    thread: Option<JoinHandle<()>>,
}

impl Embedded {
    /// Starts a member; it serves when this returns.
    ///
    /// # Errors
    /// When the port or the data directory cannot be had.
    pub async fn start(setup: Setup) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::new(Exit::Failed, format!("no control plane: {error}"));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("weft-control")
            .enable_all()
            .build()
            .map_err(failed)?;
        let (started, address) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let run = async move {
            let mut member = match start(setup).await {
                Ok(member) => member,
                Err(ended) => {
                    let hint = match ended {
                        Ended::Listen { .. } => " (--control-listen names another port)",
                        Ended::Fatal(Fatal::Mismatch { .. }) => " (--data-dir names another directory)",
                        _ => "",
                    };
                    let _ = started.send(Err(format!("{ended}{hint}")));
                    return;
                }
            };
            let _ = started.send(Ok(member.address()));
            tokio::select! {
                failure = member.failed() => {
                    let _ = end.send(failure.to_string());
                }
                // Whoever drops the sender has stopped as well.
                _ = stopped => member.stop().await,
            }
        };
        let thread = std::thread::Builder::new().name("weft-control".into()).spawn(move || {
            runtime.block_on(run);
            // A disk that hangs must not keep the process.
            runtime.shutdown_background();
        });
        let thread = Some(thread.map_err(failed)?);
        match address.await {
            Ok(Ok(address)) => Ok(Self { address, stop: Some(stop), ended, thread }),
            Ok(Err(error)) => Err(Failure::new(Exit::Failed, format!("no control plane: {error}"))),
            Err(_) => Err(Failure::new(Exit::Failed, "a defect in Weft: the control plane failed while it started")),
        }
    }

    /// Where this process reaches it.
    pub fn address(&self) -> SocketAddr {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(ip, self.address.port())
    }

    /// Waits for what it cannot go on from.
    pub async fn failed(&mut self) -> String {
        match (&mut self.ended).await {
            Ok(why) => why,
            Err(_) => "a defect in Weft: its thread failed".into(),
        }
    }

    /// Finishes what is in flight.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // What made it panic has been said.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

/// Files and directories whose documents are what the control plane should have.
pub struct Files {
    source: FileSource<Load>,
    texts: Texts,
}

/// Texts, each with the name of its file.
type Texts = Vec<(String, String)>;
type Load = fn(&[PathBuf]) -> Result<Texts, Problems>;

/// Valid texts.
fn load(paths: &[PathBuf]) -> Result<Texts, Problems> {
    let texts = read_texts(paths)?;
    load_texts(&texts, Options::default())?;
    // Without a working directory, paths stay as they are written.
    Ok(with_absolute_paths(&texts, &std::env::current_dir().unwrap_or_default()))
}

impl Files {
    /// Reads them.
    ///
    /// # Errors
    /// When they are not valid.
    pub async fn load(paths: Vec<PathBuf>) -> Result<Self, Failure> {
        let mut source = FileSource::new(paths, load as Load);
        let texts = source.load().await.map_err(|problems| validate::invalid(&problems))?;
        Ok(Self { source, texts })
    }

    /// Applies what was read first.
    ///
    /// # Errors
    /// When it contradicts what others have applied.
    pub async fn apply_first(&mut self, member: SocketAddr) -> Result<(), Failure> {
        apply::send(&mut client(member), &std::mem::take(&mut self.texts), Some(SET), false).await.map(drop)
    }

    /// For SIGHUP.
    pub fn reloader(&self) -> Reloader {
        self.source.reloader()
    }

    /// Applies every change, until nobody wants to know what became of it.
    pub async fn run(self, member: SocketAddr, outcomes: mpsc::Sender<Result<(), String>>) {
        let (sender, mut updates) = mpsc::channel::<Update<Texts, Problems>>(1);
        let mut client = client(member);
        let apply = async {
            while let Some(update) = updates.recv().await {
                let outcome = match update {
                    Update::New(texts) => apply::send(&mut client, &texts, Some(SET), false)
                        .await
                        .map(drop)
                        .map_err(|failure| failure.message().to_owned()),
                    Update::Bad(problems) => Err(format!("\n{problems}")),
                };
                if outcomes.send(outcome).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = self.source.run(sender) => {}
            () = apply => {}
        }
    }
}

fn client(member: SocketAddr) -> Client {
    Client::new(vec![member.to_string()], WITHIN)
}
