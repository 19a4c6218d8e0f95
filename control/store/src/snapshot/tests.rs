use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::*;
use crate::raft::{LogId, StoredMembership};

/// A file system that can lose power. Names are safe once the directory is synced, content once the file is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Power(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
struct Platter {
    budget: u64,
    names: BTreeMap<PathBuf, usize>,
    safe_names: BTreeMap<PathBuf, usize>,
    content: Vec<Vec<u8>>,
    safe_content: BTreeMap<usize, Vec<u8>>,
}

impl Power {
    /// The power goes after this many operations.
    pub(crate) fn fail_after(&self, operations: u64) {
        self.0.lock().unwrap().budget = operations;
    }

    fn spend(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let mut platter = self.0.lock().unwrap();
        platter.budget = platter.budget.checked_sub(1).ok_or_else(|| io::Error::other("the power is off"))?;
        Ok(platter)
    }

    /// What is found after a power cut: with `lucky`, what was not synced happened to reach the disk, but for the last
    /// half of what was written.
    pub(crate) fn after(&self, lucky: bool) -> Power {
        let platter = self.0.lock().unwrap();
        let names = if lucky { &platter.names } else { &platter.safe_names };
        let after = Power::default();
        let mut next = after.0.lock().unwrap();
        for (path, file) in names {
            let written = &platter.content[*file];
            let lost = if lucky { written[..written.len() / 2].to_vec() } else { Vec::new() };
            let content = platter.safe_content.get(file).cloned().unwrap_or(lost);
            let file = next.content.len();
            next.content.push(content.clone());
            next.safe_content.insert(file, content);
            next.names.insert(path.clone(), file);
            next.safe_names.insert(path.clone(), file);
        }
        next.budget = u64::MAX;
        drop(next);
        after
    }
}

impl Files for Power {
    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        let platter = self.0.lock().unwrap();
        Ok(platter.names.keys().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let platter = self.0.lock().unwrap();
        let file = platter.names.get(path).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(platter.content[*file].clone())
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut platter = self.spend()?;
        platter.content.push(content.to_vec());
        let file = platter.content.len() - 1;
        platter.names.insert(path.into(), file);
        Ok(())
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        let mut platter = self.spend()?;
        match platter.names.get(path).copied() {
            Some(file) => {
                let content = platter.content[file].clone();
                platter.safe_content.insert(file, content);
            }
            None => platter.safe_names = platter.names.clone(),
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut platter = self.spend()?;
        let file = platter.names.remove(from).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        platter.names.insert(to.into(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.spend()?.names.remove(path);
        Ok(())
    }

    fn size(&self, path: &Path) -> u64 {
        self.read(path).map_or(0, |content| content.len() as u64)
    }
}

fn meta(index: u64) -> SnapshotMeta {
    SnapshotMeta { last_log_id: Some(LogId::new_term_index(1, index)), last_membership: StoredMembership::default() }
}

fn body(index: u64) -> Vec<u8> {
    format!("state {index}").repeat(9).into_bytes()
}

fn directory() -> &'static Path {
    Path::new("/data")
}

#[test]
fn a_power_cut_at_any_step_leaves_the_last_snapshot_or_the_new_one() {
    for budget in 0.. {
        let power = Power::default();
        power.fail_after(budget);
        let snapshots = Snapshots::open(directory(), power.clone()).unwrap();
        let mut safe = None;
        let mut attempted = None;
        for index in [10, 20, 30, 40] {
            attempted = Some(index);
            if snapshots.save(&meta(index), &body(index)).is_err() {
                break;
            }
            safe = attempted;
        }
        for lucky in [false, true] {
            let found = Snapshots::open(directory(), power.after(lucky)).unwrap().read().unwrap();
            let index = found.as_ref().map(|(meta, _)| meta.last_log_id.unwrap().index);
            assert!(index == safe || index == attempted, "cut after {budget} steps: {index:?}");
            if let (Some((_, found)), Some(index)) = (found, index) {
                assert_eq!(found, body(index));
            }
        }
        if safe == Some(40) {
            assert!(budget > 15, "{budget} cuts were tried");
            assert_eq!(snapshots.names().unwrap().len(), KEPT);
            break;
        }
    }
}

#[test]
fn a_damaged_snapshot_is_passed_over_for_the_one_before_it_and_named_when_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(dir.path(), Disk).unwrap();
    assert_eq!(snapshots.read().unwrap(), None);
    for index in [1, 2, 3] {
        snapshots.save(&meta(index), &body(index)).unwrap();
    }
    let names = snapshots.names().unwrap();
    assert_eq!(names.len(), 2);
    let damage = |name: &str| {
        let path = dir.path().join(name);
        let mut content = std::fs::read(&path).unwrap();
        let at = content.len() - 3;
        content[at] ^= 1;
        std::fs::write(&path, content).unwrap();
    };
    damage(&names[1]);
    let snapshots = Snapshots::open(dir.path(), Disk).unwrap();
    assert_eq!(snapshots.read().unwrap(), Some((meta(2), body(2).into())));
    damage(&names[0]);
    let fatal = Snapshots::open(dir.path(), Disk).unwrap_err();
    assert!(fatal.to_string().contains("0000003-"), "{fatal}");
}

#[test]
fn an_older_state_does_not_replace_a_newer_one() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(dir.path(), Disk).unwrap();
    snapshots.save(&meta(5), &body(5)).unwrap();
    snapshots.save(&meta(4), &body(4)).unwrap();
    assert_eq!(snapshots.meta(), Some(meta(5)));
    assert_eq!(snapshots.read().unwrap(), Some((meta(5), body(5).into())));
}
