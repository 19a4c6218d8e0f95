//! Tells when files may have changed.
//!
//! It is directories that are watched, never files: a ConfigMap swaps a symbolic link beside the file, editors and
//! `kubectl cp` rename a new file over the old one, and a watch on the old inode would wait for ever. Each path is walked
//! as the kernel would walk it, and every directory in which a step of that walk could change is watched for that name.
//!
//! What comes out is a hint, not a fact: readers compare content. That makes the fall-back simple where inotify cannot
//! be had (no more instances, some network file systems): look every two seconds.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ffi::OsString,
    fs, io,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::{sync::Notify, time::Instant};

/// A change has settled when this long nothing else happened.
const QUIET: Duration = Duration::from_millis(10);
/// Under constant change, or while a writer keeps a file open, a change is reported after this.
const SETTLE_AT_MOST: Duration = Duration::from_millis(50);
/// How often to look where no events can be had.
const POLL: Duration = Duration::from_secs(2);
/// How often to look although events can be had: changes made by other hosts of a network file system raise none.
const RECHECK: Duration = Duration::from_secs(15);
/// Symbolic links followed in one path, as in the kernel.
const MAX_LINKS: usize = 40;
/// Entries of one directory that are looked at.
const MAX_ENTRIES: usize = 10_000;

/// A watch on the directories of a set of paths.
pub struct DirWatch {
    /// `None`: polling.
    watcher: Option<RecommendedWatcher>,
    shared: Arc<Shared>,
    watched: BTreeSet<PathBuf>,
    /// Until `changed` returns without an event.
    idle: Duration,
    poll: Duration,
}

#[derive(Default)]
struct Shared {
    changed: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    interests: Interests,
    /// Written to and not closed yet.
    open: HashSet<PathBuf>,
}

/// Directory → the names in it that matter; `None` is every name.
type Interests = HashMap<PathBuf, Option<HashSet<OsString>>>;

impl Default for DirWatch {
    fn default() -> Self {
        Self::new()
    }
}

impl DirWatch {
    /// Watches nothing yet. Falls back to polling when the kernel has no inotify instance left.
    pub fn new() -> Self {
        let shared = Arc::new(Shared::default());
        let sink = shared.clone();
        let watcher = notify::recommended_watcher(move |event| sink.handle(event));
        if let Err(error) = &watcher {
            tracing::warn!(%error, "files are polled every {POLL:?}: no inotify instance (fs.inotify.max_user_instances)");
        }
        Self { watcher: watcher.ok(), shared, watched: BTreeSet::new(), idle: RECHECK, poll: POLL }
    }

    /// Only looks every `interval`, for file systems without events and for tests.
    pub fn polling(interval: Duration) -> Self {
        Self { watcher: None, shared: Arc::default(), watched: BTreeSet::new(), idle: interval, poll: interval }
    }

    /// Watches exactly these files and directories (with the files in them). Called again after every change, because a
    /// changed symbolic link leads to other directories. What happens from now on makes [`DirWatch::changed`] return.
    pub fn watch<P: AsRef<Path>>(&mut self, paths: impl IntoIterator<Item = P>) {
        let mut interests = Interests::new();
        for path in paths {
            if let Ok(path) = std::path::absolute(path) {
                walk(&path, &mut interests, true, MAX_LINKS);
            }
        }
        let wanted: BTreeSet<PathBuf> = interests.keys().cloned().collect();
        // Before the watches are set: the first event already needs it.
        self.shared.state().interests = interests;
        self.idle = self.poll;
        let Some(watcher) = &mut self.watcher else { return };
        for gone in self.watched.difference(&wanted) {
            // It may have vanished together with its watch.
            let _ = watcher.unwatch(gone);
        }
        self.idle = RECHECK;
        for path in &wanted {
            // Also for those that are watched: the directory of this name may be another one by now.
            if let Err(error) = watcher.watch(path, RecursiveMode::NonRecursive) {
                tracing::debug!(path = %path.display(), %error, "watched by polling");
                self.idle = self.poll;
            }
        }
        self.watched = wanted;
    }

    /// Returns when something has changed and the change has settled, at the latest after some seconds. Nothing is lost
    /// between two calls.
    pub async fn changed(&mut self) {
        if tokio::time::timeout(self.idle, self.shared.changed.notified()).await.is_err() {
            return;
        }
        let begun = Instant::now();
        loop {
            let quiet = if self.shared.state().open.is_empty() { QUIET } else { SETTLE_AT_MOST };
            let until = (Instant::now() + quiet).min(begun + SETTLE_AT_MOST);
            if Instant::now() >= until || tokio::time::timeout_at(until, self.shared.changed.notified()).await.is_err()
            {
                break;
            }
        }
        self.shared.state().open.clear();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs on the watcher's thread.
    fn handle(&self, event: notify::Result<Event>) {
        let event = match event {
            Ok(event) => event,
            Err(_) => return self.changed.notify_one(),
        };
        if event.need_rescan() {
            return self.changed.notify_one();
        }
        let mut state = self.state();
        let State { interests, open } = &mut *state;
        let mut relevant = event.paths.iter().filter(|path| is_relevant(interests, path)).peekable();
        if relevant.peek().is_none() {
            return;
        }
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                for path in relevant {
                    open.remove(path);
                }
            }
            // Our own reading.
            EventKind::Access(_) => return,
            EventKind::Modify(ModifyKind::Data(_)) => open.extend(relevant.cloned()),
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => {
                for path in relevant {
                    open.remove(path);
                }
            }
            _ => {}
        }
        drop(state);
        self.changed.notify_one();
    }
}

fn is_relevant(interests: &Interests, path: &Path) -> bool {
    let in_parent = || {
        let names = interests.get(path.parent()?)?;
        Some(names.as_ref().is_none_or(|names| path.file_name().is_some_and(|name| names.contains(name))))
    };
    interests.contains_key(path) || in_parent().unwrap_or(false)
}

/// Follows `path` step by step and notes each directory and name on which the result depends. `inside`: if it is a
/// directory, its content matters too.
fn walk(path: &Path, interests: &mut Interests, inside: bool, links: usize) {
    let mut here = PathBuf::new();
    let mut steps = path.components();
    while let Some(step) = steps.next() {
        match step {
            Component::Prefix(_) | Component::RootDir => here.push(step),
            Component::CurDir => {}
            Component::ParentDir => drop(here.pop()),
            Component::Normal(name) => {
                let next = here.join(name);
                match fs::symlink_metadata(&next) {
                    Err(error) => {
                        // The rest may appear later. Without permission there is nothing to see.
                        if error.kind() != io::ErrorKind::PermissionDenied {
                            note(interests, &here, name);
                        }
                        return;
                    }
                    Ok(meta) if meta.is_symlink() => {
                        note(interests, &here, name);
                        let Some(left) = links.checked_sub(1) else { return };
                        if let Ok(target) = fs::read_link(&next) {
                            walk(&here.join(target).join(steps.as_path()), interests, inside, left);
                        }
                        return;
                    }
                    Ok(_) => here = next,
                }
            }
        }
    }
    let (Some(parent), Some(name)) = (here.parent(), here.file_name()) else { return };
    note(interests, parent, name);
    if here.is_dir() {
        if inside {
            walk_directory(&here, interests);
        }
    } else if let (Some(above), Some(name)) = (parent.parent(), parent.file_name()) {
        // The directory itself may be replaced.
        note(interests, above, name);
    }
}

/// Every name in a directory matters, and what its links lead to. Directories inside are not searched.
fn walk_directory(path: &Path, interests: &mut Interests) {
    interests.insert(path.to_owned(), None);
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.take(MAX_ENTRIES).flatten() {
        // Hidden ones are editors' and Kubernetes' own; a visible link leads into them if they matter.
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
            walk(&entry.path(), interests, false, MAX_LINKS);
        }
    }
}

fn note(interests: &mut Interests, directory: &Path, name: &std::ffi::OsStr) {
    if let Some(names) = interests.entry(directory.to_owned()).or_insert_with(|| Some(HashSet::new())) {
        names.insert(name.to_owned());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::os::unix::fs::symlink;

    use super::*;

    fn interests(path: &Path) -> Interests {
        let mut interests = Interests::new();
        walk(path, &mut interests, true, MAX_LINKS);
        interests
    }

    fn names(interests: &Interests, directory: &Path) -> BTreeSet<String> {
        let names = interests[directory].as_ref().unwrap();
        names.iter().map(|n| n.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn every_link_on_the_way_is_watched() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let mounted = root.join("mounted");
        fs::create_dir_all(mounted.join("..2024")).unwrap();
        fs::write(mounted.join("..2024/config.yaml"), "").unwrap();
        symlink("..2024", mounted.join("..data")).unwrap();
        symlink("..data/config.yaml", mounted.join("config.yaml")).unwrap();
        let found = interests(&mounted.join("config.yaml"));
        assert_eq!(names(&found, &mounted), ["..2024", "..data", "config.yaml"].map(String::from).into());
        assert_eq!(names(&found, &mounted.join("..2024")), ["config.yaml".to_owned()].into());
        assert!(is_relevant(&found, &mounted.join("..data")));
        assert!(!is_relevant(&found, &mounted.join("unrelated")));
        // As a directory: the same links, and every new name.
        let found = interests(&mounted);
        assert!(found[&mounted].is_none());
        assert!(found.contains_key(&mounted.join("..2024")));
    }

    #[test]
    fn what_is_missing_is_awaited_where_it_would_appear() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let found = interests(&root.join("not/yet/config.yaml"));
        assert_eq!(names(&found, &root), ["not".to_owned()].into());
    }

    #[test]
    fn links_in_a_circle_end() {
        let folder = tempfile::tempdir().unwrap();
        symlink("b", folder.path().join("a")).unwrap();
        symlink("a", folder.path().join("b")).unwrap();
        symlink(".", folder.path().join("self")).unwrap();
        interests(&folder.path().join("a"));
        interests(folder.path());
    }

    async fn happens(dirs: &mut DirWatch) -> bool {
        tokio::time::timeout(Duration::from_millis(300), dirs.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn reading_and_other_names_are_no_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        fs::write(&path, "one").unwrap();
        let mut dirs = DirWatch::new();
        dirs.watch([&path]);
        fs::read(&path).unwrap();
        fs::write(folder.path().join("b.yaml"), "other").unwrap();
        assert!(!happens(&mut dirs).await);
        fs::write(&path, "two").unwrap();
        assert!(happens(&mut dirs).await);
        assert!(!happens(&mut dirs).await, "once");
    }

    #[tokio::test]
    async fn changes_that_go_on_are_reported_now_and_then() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        let mut dirs = DirWatch::new();
        dirs.watch([&path]);
        let writer = std::thread::spawn(move || {
            for number in 0..100 {
                fs::write(&path, number.to_string()).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let mut reports = 0;
        while happens(&mut dirs).await {
            reports += 1;
        }
        writer.join().unwrap();
        // Over 200 ms: a report every 50 ms, a few more when the machine is busy, but not one for each write.
        assert!((2..30).contains(&reports), "{reports}");
    }
}
