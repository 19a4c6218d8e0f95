//! Where a running node's configuration comes from, and what becomes of each change.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};
use weft_model::{Checked, Options as ModelOptions, Problems, load_paths};
use weft_proxy::{
    app::App,
    options::Options,
    source::{
        Reloader,
        control::{self, Change, ControlSource, refusal, state::Proposal},
        file::{FileSource, Update},
    },
};

use crate::{exit::Failure, validate};

/// Longest wait until what was accepted last is on disk.
const SAVE: Duration = Duration::from_secs(5);

/// What a node is started with.
#[derive(Debug)]
pub enum Origin {
    /// Files and directories.
    Files(Vec<PathBuf>),
    /// A control plane.
    Control {
        /// Its members, `HOST:PORT`.
        members: Vec<String>,
        /// Where what was accepted last is kept.
        cache: PathBuf,
    },
}

/// A source that is ready to be followed, and the configuration to begin with, if it has to have one.
pub enum Opened {
    /// Valid files.
    Files(Box<dyn FnOnce(&mut JoinSet<()>) -> Source>, Checked),
    /// A control plane, which may answer later.
    Control(Box<ControlSource>),
}

impl Opened {
    /// Opens it.
    ///
    /// # Errors
    /// When files are not valid.
    pub async fn new(origin: Origin, options: &Options) -> Result<Self, Failure> {
        match origin {
            Origin::Files(paths) => {
                let mut files = FileSource::new(paths, |paths: &[PathBuf]| load_paths(paths, ModelOptions::default()));
                let checked = files.load().await.map_err(|problems| validate::invalid(&problems))?;
                validate::warn(&checked.warnings);
                let follow = move |tasks: &mut JoinSet<()>| {
                    let reloader = files.reloader();
                    let (sender, updates) = mpsc::channel(1);
                    tasks.spawn(files.run(sender));
                    Source { reloader, news: Updates::Files(updates) }
                };
                Ok(Self::Files(Box::new(follow), checked))
            }
            Origin::Control { members, cache } => {
                let (node, zone) = (options.node.clone(), options.zone.clone());
                let options = control::Options { addresses: members, node, zone, cache };
                Ok(Self::Control(Box::new(ControlSource::new(options).await)))
            }
        }
    }
}

/// A source that is followed.
pub struct Source {
    reloader: Reloader,
    news: Updates,
}

enum Updates {
    Files(mpsc::Receiver<Update<Checked, Problems>>),
    Control(mpsc::Receiver<Change>, JoinHandle<()>),
}

/// A change.
pub enum News {
    /// Of files.
    Files(Update<Checked, Problems>),
    /// Of a control plane.
    Control(Change),
}

impl Source {
    /// Follows a control plane from now on.
    pub fn control(source: ControlSource) -> Self {
        let reloader = source.reloader();
        let (sender, changes) = mpsc::channel(1);
        Self { reloader, news: Updates::Control(changes, tokio::spawn(source.run(sender))) }
    }

    /// The next change; `None` when there will be no more.
    pub async fn next(&mut self) -> Option<News> {
        match &mut self.news {
            Updates::Files(updates) => updates.recv().await.map(News::Files),
            Updates::Control(changes, _) => changes.recv().await.map(News::Control),
        }
    }

    /// Looks again, whether there is news or not.
    pub fn reload(&self) {
        match &self.news {
            Updates::Files(_) => tracing::info!("SIGHUP: reading the configuration again"),
            Updates::Control(..) => tracing::info!("SIGHUP: connecting to the control plane anew"),
        }
        self.reloader.reload();
    }

    /// Wants no more news, and returns when everything accepted is kept.
    pub async fn close(self) {
        if let Updates::Control(changes, task) = self.news {
            drop(changes);
            if tokio::time::timeout(SAVE, task).await.is_err() {
                tracing::warn!("what was accepted last may not be on disk: it takes too long");
            }
        }
    }
}

impl News {
    /// Puts the change in force, or says why not. In short what is in force, if there are other documents now.
    pub async fn take(self, app: &mut App) -> Option<String> {
        match self {
            Self::Files(Update::New(checked)) => {
                validate::warn(&checked.warnings);
                let summary = validate::summary(&checked.config, &checked.warnings);
                match app.apply(Arc::new(checked.config)).await {
                    Ok(()) => {
                        tracing::info!(revision = app.revision(), "configuration in force; {summary}");
                        Some(summary)
                    }
                    Err(error) => {
                        refused(app, &error.to_string());
                        None
                    }
                }
            }
            Self::Files(Update::Bad(problems)) => {
                refused(app, &format!("\n{problems}"));
                None
            }
            Self::Control(Change { proposal: Proposal { config, warnings, objects }, outcome }) => {
                validate::warn(&warnings);
                let applied = app.apply(config.clone()).await;
                let mut shown = None;
                match &applied {
                    Ok(()) if objects => {
                        let summary = validate::summary(&config, &warnings);
                        tracing::info!(revision = app.revision(), "configuration in force; {summary}");
                        shown = Some(summary);
                    }
                    // They come and go all the time.
                    Ok(()) => tracing::debug!(revision = app.revision(), "endpoints in force"),
                    Err(error) => refused(app, &error.to_string()),
                }
                // Nobody waits for it when the process ends.
                let _ = outcome.send(applied.map_err(|error| refusal(&error, &config)));
                shown
            }
        }
    }
}

fn refused(app: &App, why: &str) {
    tracing::error!("configuration refused; the one in force stays: {why}");
    app.refused(why.trim_start().to_owned());
}
