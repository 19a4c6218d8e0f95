//! Configuration from files, reloaded when they change.
//!
//! The source knows nothing of YAML: a [`Load`] turns paths into a checked configuration or into a list of problems. It
//! decides *when* to load: after a change has settled, only if the content differs, and always when told to (SIGHUP). A
//! bad configuration is reported and never replaces a good one; that is the receiver's doing, which is why the two are
//! different [`Update`]s. A file that vanished is bad, not empty.

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    task::JoinError,
    time::Instant,
};

use super::dirs::DirWatch;

/// An empty or missing file is most likely about to be written: so long is waited before it is believed.
const GRACE: Duration = Duration::from_millis(250);

/// Turns files into a configuration.
pub trait Load: Send + Sync + 'static {
    /// A checked configuration.
    type Good: Send + 'static;
    /// Why there is none.
    type Bad: Send + 'static;

    /// Reads and checks all of `paths`, files or directories. Runs on a thread where blocking is allowed.
    fn load(&self, paths: &[PathBuf]) -> Result<Self::Good, Self::Bad>;
}

/// A function is enough.
impl<F, T, E> Load for F
where
    F: Fn(&[PathBuf]) -> Result<T, E> + Send + Sync + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    type Good = T;
    type Bad = E;

    fn load(&self, paths: &[PathBuf]) -> Result<T, E> {
        self(paths)
    }
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update<Good, Bad> {
    /// Use this from now on.
    New(Good),
    /// Keep what you have; tell the user, count `weft_config_reload_failures_total`.
    Bad(Bad),
}

/// Files and directories that hold the configuration.
pub struct FileSource<L: Load> {
    paths: Arc<[PathBuf]>,
    load: Arc<L>,
    dirs: DirWatch,
    force: Arc<Notify>,
    /// Of what was loaded last, good or bad.
    seen: Option<Fingerprint>,
}

/// Makes a source look again although nothing changed: for SIGHUP.
#[derive(Debug, Clone)]
pub struct Reloader(Arc<Notify>);

impl Reloader {
    /// For another source.
    pub(super) const fn new(notify: Arc<Notify>) -> Self {
        Self(notify)
    }

    /// Loads again soon. Several calls before that are one.
    pub fn reload(&self) {
        self.0.notify_one();
    }
}

impl<L: Load> FileSource<L> {
    /// A source of these files and directories.
    pub fn new(paths: Vec<PathBuf>, load: L) -> Self {
        Self::with_watch(paths, load, DirWatch::new())
    }

    /// With another way of noticing changes.
    pub fn with_watch(paths: Vec<PathBuf>, load: L, dirs: DirWatch) -> Self {
        Self { paths: paths.into(), load: Arc::new(load), dirs, force: Arc::default(), seen: None }
    }

    /// For the signal handler; stays usable while [`FileSource::run`] has the source.
    pub fn reloader(&self) -> Reloader {
        Reloader(self.force.clone())
    }

    /// Loads now. From here on no change is missed.
    pub async fn load(&mut self) -> Result<L::Good, L::Bad> {
        match self.load_on_thread().await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going away and nobody will look at a result.
                Err(_) => std::future::pending().await,
            },
        }
    }

    async fn load_on_thread(&mut self) -> Result<Result<L::Good, L::Bad>, JoinError> {
        // In this order: a change during or after the fingerprint is an event, or a difference at the next look.
        self.dirs.watch(self.paths.iter());
        self.seen = Some(self.fingerprint().await);
        let (load, paths) = (self.load.clone(), self.paths.clone());
        tokio::task::spawn_blocking(move || load.load(&paths)).await
    }

    /// Sends an update for every change, until the receiver is gone.
    pub async fn run(mut self, updates: mpsc::Sender<Update<L::Good, L::Bad>>) {
        if self.seen.is_none() {
            self.force.notify_one();
        }
        loop {
            let forced = tokio::select! {
                () = updates.closed() => return,
                () = self.force.notified() => true,
                () = self.dirs.changed() => false,
            };
            if !forced && !self.differs().await {
                // Links and directories may be new although the content is not.
                self.dirs.watch(self.paths.iter());
                continue;
            }
            let update = match self.load_on_thread().await {
                Ok(Ok(good)) => Update::New(good),
                Ok(Err(bad)) => Update::Bad(bad),
                Err(error) => {
                    tracing::error!(%error, "a defect in Weft: loading the configuration failed; the old one stays");
                    continue;
                }
            };
            if updates.send(update).await.is_err() {
                return;
            }
        }
    }

    /// Whether the content is another one than that loaded last.
    async fn differs(&mut self) -> bool {
        let deadline = Instant::now() + GRACE;
        loop {
            let now = self.fingerprint().await;
            if self.seen == Some(now) {
                return false;
            }
            let believable = now.gaps <= self.seen.map_or(0, |seen| seen.gaps);
            if believable || tokio::time::timeout_at(deadline, self.dirs.changed()).await.is_err() {
                return true;
            }
        }
    }

    async fn fingerprint(&self) -> Fingerprint {
        let paths = self.paths.clone();
        tokio::task::spawn_blocking(move || Fingerprint::of(&paths)).await.unwrap_or_default()
    }
}

/// Content of all files, in short.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Fingerprint {
    hash: u64,
    /// Paths that are missing, unreadable or empty.
    gaps: usize,
}

impl Fingerprint {
    fn of(paths: &[PathBuf]) -> Self {
        let mut files = BTreeMap::new();
        for path in paths {
            collect(path, &mut files);
        }
        let mut hasher = DefaultHasher::new();
        let gaps = files.values().filter(|content| content.is_none()).count();
        files.hash(&mut hasher);
        Self { hash: hasher.finish(), gaps }
    }
}

/// Hash of each file's content; `None` for a gap. What is no configuration in a directory (hidden, other extensions,
/// directories) is left out, so that an editor's swap file is no change.
fn collect(path: &Path, files: &mut BTreeMap<PathBuf, Option<u64>>) {
    let meta = fs::metadata(path).ok();
    if !meta.as_ref().is_some_and(fs::Metadata::is_dir) {
        files.insert(path.to_owned(), meta.and_then(|meta| content(path, &meta)));
        return;
    }
    let before = files.len();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let file = entry.path();
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let wanted = file.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if wanted && !hidden && !file.is_dir() {
            let content = fs::metadata(&file).ok().and_then(|meta| content(&file, &meta));
            files.insert(file, content);
        }
    }
    if files.len() == before {
        files.insert(path.to_owned(), None);
    }
}

fn content(path: &Path, meta: &fs::Metadata) -> Option<u64> {
    if !meta.is_file() {
        // Reading a FIFO or a device could wait for ever; the loader has its own opinion of them.
        return None;
    }
    let mut file = fs::File::open(path).ok()?;
    let mut hasher = DefaultHasher::new();
    let mut buffer = [0; 16 << 10];
    let mut empty = true;
    loop {
        match file.read(&mut buffer).ok()? {
            0 => return (!empty).then(|| hasher.finish()),
            count => hasher.write(buffer.get(..count)?),
        }
        empty = false;
    }
}

#[cfg(test)]
mod tests;
