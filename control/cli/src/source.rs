//! Where a running node's configuration comes from, and what becomes of each change.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};
use weft_control::member::Setup;
use weft_model::{Checked, Options as ModelOptions, Problems, load_paths};
use weft_proxy::{
    app::{App, ApplyError},
    options::Options,
    source::{
        Reloader,
        control::{self, Change, ControlSource, refusal, state::Proposal},
        file::{FileSource, Update},
    },
};

use crate::{
    embedded::{Embedded, Files},
    exit::{Exit, Failure},
    validate,
};

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
    /// A control plane of one member in this process, to which files are applied.
    Embedded {
        /// How the member is started.
        setup: Setup,
        /// Files and directories.
        files: Vec<PathBuf>,
    },
}

/// Follows files with a task of the set.
type Follow = Box<dyn FnOnce(&mut JoinSet<()>) -> Source>;

/// A source that is ready to be followed, and the configuration to begin with, if it has to have one.
pub enum Opened {
    /// Valid files.
    Files(Follow, Checked),
    /// A control plane, which may answer later.
    Control(Box<ControlSource>),
    /// A control plane that has what the files say.
    Embedded(Box<ControlSource>, Box<Embedded>, Files),
}

impl Opened {
    /// Opens it.
    ///
    /// # Errors
    /// When files are not valid, or the member in this process does not start.
    pub async fn new(origin: Origin, options: &Options) -> Result<Self, Failure> {
        let follow = async |members: Vec<String>, cache: Option<PathBuf>| {
            let (node, zone) = (options.node.clone(), options.zone.clone());
            Box::new(ControlSource::new(control::Options { addresses: members, node, zone, cache }).await)
        };
        match origin {
            Origin::Files(paths) => {
                let mut files = FileSource::new(paths, |paths: &[PathBuf]| load_paths(paths, ModelOptions::default()));
                let checked = files.load().await.map_err(|problems| validate::invalid(&problems))?;
                validate::warn(&checked.warnings);
                let follow = move |tasks: &mut JoinSet<()>| {
                    let reloader = files.reloader();
                    let (sender, updates) = mpsc::channel(1);
                    tasks.spawn(files.run(sender));
                    Source { reloader, news: Updates::Files(updates), embedded: None }
                };
                Ok(Self::Files(Box::new(follow), checked))
            }
            Origin::Control { members, cache } => Ok(Self::Control(follow(members, Some(cache)).await)),
            Origin::Embedded { setup, files } => {
                let mut files = Files::load(files).await?;
                let embedded = Embedded::start(setup).await?;
                files.apply_first(embedded.address()).await?;
                // No cache: the member is there whenever the node is.
                let source = follow(vec![embedded.address().to_string()], None).await;
                Ok(Self::Embedded(source, Box::new(embedded), files))
            }
        }
    }
}

/// A source that is followed.
pub struct Source {
    reloader: Reloader,
    news: Updates,
    embedded: Option<Applied>,
}

enum Updates {
    Files(mpsc::Receiver<Update<Checked, Problems>>),
    Control(mpsc::Receiver<Change>, JoinHandle<()>),
}

/// The member in this process, and what becomes of the files that are applied to it.
struct Applied {
    member: Box<Embedded>,
    reloader: Reloader,
    outcomes: mpsc::Receiver<Result<(), String>>,
    /// The last files were refused.
    refused: bool,
}

/// A change.
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum News {
    /// Of files.
    Files(Update<Checked, Problems>),
    /// Of a control plane.
    Control(Change),
    /// Changed files were applied to the member in this process, or not, and why.
    Applied(Result<(), String>),
    /// The member in this process has ended, and why.
    Alone(String),
}

/// What became of a change.
pub enum Taken {
    /// In short what is in force now.
    Documents(String),
    /// The same documents as before are in force.
    Same,
    /// It is not in force, and how a process ends that had nothing before.
    Refused(Exit, String),
}

impl Source {
    /// Follows a control plane from now on.
    pub fn control(source: ControlSource) -> Self {
        let reloader = source.reloader();
        let (sender, changes) = mpsc::channel(1);
        Self { reloader, news: Updates::Control(changes, tokio::spawn(source.run(sender))), embedded: None }
    }

    /// Follows a member in this process, and the files that are applied to it.
    pub fn embedded(source: ControlSource, member: Box<Embedded>, files: Files, tasks: &mut JoinSet<()>) -> Self {
        let reloader = files.reloader();
        let (sender, outcomes) = mpsc::channel(1);
        tasks.spawn(files.run(member.address(), sender));
        Self { embedded: Some(Applied { member, reloader, outcomes, refused: false }), ..Self::control(source) }
    }

    /// A node that has nothing to begin with ends, rather than wait for something better.
    pub const fn is_here(&self) -> bool {
        self.embedded.is_some()
    }

    /// The next change; `None` when there will be no more.
    pub async fn next(&mut self) -> Option<News> {
        let news = async {
            match &mut self.news {
                Updates::Files(updates) => updates.recv().await.map(News::Files),
                Updates::Control(changes, _) => changes.recv().await.map(News::Control),
            }
        };
        let Some(applied) = &mut self.embedded else { return news.await };
        tokio::select! {
            news = news => news,
            Some(outcome) = applied.outcomes.recv() => Some(News::Applied(outcome)),
            why = applied.member.failed() => Some(News::Alone(why)),
        }
    }

    /// Puts a change in force, or says why not.
    pub async fn take(&mut self, news: News, app: &mut App) -> Taken {
        match news {
            News::Files(Update::New(checked)) => {
                validate::warn(&checked.warnings);
                let summary = validate::summary(&checked.config, &checked.warnings);
                match app.apply(Arc::new(checked.config)).await {
                    Ok(()) => in_force(app, summary),
                    Err(error) => refused(app, &error),
                }
            }
            News::Files(Update::Bad(problems)) => not_taken(app, &format!("\n{problems}")),
            News::Control(Change { proposal: Proposal { config, warnings, objects }, outcome }) => {
                validate::warn(&warnings);
                let applied = app.apply(config.clone()).await;
                let taken = match &applied {
                    Ok(()) if objects => in_force(app, validate::summary(&config, &warnings)),
                    Ok(()) => {
                        // They come and go all the time.
                        tracing::debug!(revision = app.revision(), "endpoints in force");
                        Taken::Same
                    }
                    Err(error) => refused(app, error),
                };
                // Nobody waits for it when the process ends.
                let _ = outcome.send(applied.map_err(|error| refusal(&error, &config)));
                taken
            }
            News::Applied(outcome) => {
                let before = self.embedded.as_mut().map(|applied| &mut applied.refused);
                let before = before.map(|before| std::mem::replace(before, outcome.is_err()));
                match outcome {
                    Err(why) => not_taken(app, &why),
                    Ok(()) => {
                        if before == Some(true) {
                            app.nothing_refused();
                        }
                        Taken::Same
                    }
                }
            }
            News::Alone(why) => {
                tracing::error!("the control plane in this process has ended: {why}; what is in force stays");
                self.embedded = None;
                Taken::Same
            }
        }
    }

    /// Looks again, whether there is news or not.
    pub fn reload(&self) {
        match (&self.embedded, &self.news) {
            (Some(applied), _) => {
                tracing::info!("SIGHUP: reading the configuration again");
                applied.reloader.reload();
            }
            (None, Updates::Files(_)) => tracing::info!("SIGHUP: reading the configuration again"),
            (None, Updates::Control(..)) => tracing::info!("SIGHUP: connecting to the control plane anew"),
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
        if let Some(applied) = self.embedded {
            applied.member.stop().await;
        }
    }
}

fn in_force(app: &App, summary: String) -> Taken {
    tracing::info!(revision = app.revision(), "configuration in force; {summary}");
    Taken::Documents(summary)
}

/// A port is a matter of this host; everything else is written in documents.
fn refused(app: &App, error: &ApplyError) -> Taken {
    let why = error.to_string();
    not_taken(app, &why);
    Taken::Refused(if matches!(error, ApplyError::Bind { .. }) { Exit::Failed } else { Exit::Invalid }, why)
}

fn not_taken(app: &App, why: &str) -> Taken {
    tracing::error!("configuration refused; the one in force stays: {why}");
    app.refused(why.trim_start().to_owned());
    Taken::Refused(Exit::Invalid, why.to_owned())
}
