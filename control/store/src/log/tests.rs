use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use openraft::EntryPayload;
use openraft::type_config::TypeConfigExt;
use redb::StorageBackend;

use super::*;
use crate::types::{Command, ObjectKey, Op, Put};

/// A disk that can lose power: what was not synced may be lost, in part or in whole, in any order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Power {
    disk: Arc<Mutex<Platter>>,
    /// How many operations succeed before it fails.
    budget: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Platter {
    synced: Vec<u8>,
    cached: Vec<u8>,
    unsynced: Vec<Change>,
    syncs: u64,
}

#[derive(Debug, Clone)]
enum Change {
    Length(u64),
    Write(u64, Vec<u8>),
}

/// What a power cut does to what was not synced.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Loss {
    All,
    Nothing,
    Torn,
    Random(u64),
}

impl Power {
    /// A disk with an empty log on it. (A new file gets its name only once it is complete: see `Disk::open`.)
    pub(crate) fn formatted(budget: u64) -> Self {
        let new = Self::new(Vec::new(), u64::MAX);
        drop(Disk::open_with(path(), new.clone()).unwrap());
        Self::new(new.after(Loss::All), budget)
    }

    /// The power goes after this many operations.
    pub(crate) fn fail_after(&self, operations: u64) {
        self.budget.store(operations, Ordering::SeqCst);
    }

    /// The power is back.
    pub(crate) fn restored(&self, loss: Loss) -> Self {
        Self::new(self.after(loss), u64::MAX)
    }

    fn new(image: Vec<u8>, budget: u64) -> Self {
        let disk = Platter { synced: image.clone(), cached: image, ..Platter::default() };
        Self { disk: Arc::new(Mutex::new(disk)), budget: Arc::new(AtomicU64::new(budget)) }
    }

    fn spend(&self) -> io::Result<()> {
        let spend = |left: u64| left.checked_sub(1);
        match self.budget.fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other("the power is off")),
        }
    }

    /// What is found after the power is back.
    pub(crate) fn after(&self, loss: Loss) -> Vec<u8> {
        let disk = self.disk.lock().unwrap();
        let mut image = disk.synced.clone();
        let mut random = fastrand::Rng::with_seed(if let Loss::Random(seed) = loss { seed } else { 0 });
        for (n, change) in disk.unsynced.iter().enumerate() {
            let last = n + 1 == disk.unsynced.len();
            let part = match loss {
                Loss::All => continue,
                Loss::Random(_) if random.bool() => continue,
                Loss::Torn if last => 2,
                _ => 1,
            };
            let change = match change {
                Change::Write(at, data) => Change::Write(*at, data[..data.len() / part].to_vec()),
                length => length.clone(),
            };
            change.apply(&mut image);
        }
        image
    }
}

impl Change {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Change::Length(len) => image.resize(*len as usize, 0),
            Change::Write(at, data) => {
                let (at, end) = (*at as usize, *at as usize + data.len());
                if image.len() < end {
                    image.resize(end, 0);
                }
                image[at..end].copy_from_slice(data);
            }
        }
    }
}

impl StorageBackend for Power {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.disk.lock().unwrap().cached.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let disk = self.disk.lock().unwrap();
        let at = offset as usize;
        let found = disk.cached.get(at..at + out.len()).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.spend()?;
        self.change(Change::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.spend()?;
        let mut disk = self.disk.lock().unwrap();
        disk.synced = disk.cached.clone();
        disk.unsynced.clear();
        disk.syncs += 1;
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.spend()?;
        self.change(Change::Write(offset, data.to_vec()));
        Ok(())
    }
}

impl Power {
    fn change(&self, change: Change) {
        let mut disk = self.disk.lock().unwrap();
        change.apply(&mut disk.cached);
        disk.unsynced.push(change);
    }
}

fn path() -> &'static Path {
    Path::new("log.redb")
}

fn entry(term: u64, index: u64) -> Entry {
    let spec = format!("{term} {index} {}", "x".repeat(index as usize % 700));
    let command = Command::new("test", 1, Op::put(Put::spec(ObjectKey::new("Service", "default", "a"), spec)));
    Entry { log_id: LogId::new_term_index(term, index), payload: EntryPayload::Normal(command) }
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new_term_index(term, index)
}

fn vote(term: u64) -> Vote {
    Vote { leader_id: openraft::impls::leader_id_std::LeaderId { term, voted_for: 1 }, committed: true }
}

impl Log {
    pub(crate) fn open_power(power: Power, failure: Failure) -> Result<Self, Fatal> {
        let (disk, found) = Disk::open_with(path(), power)?;
        Self::start(disk, found, failure)
    }
}

impl Log {
    /// As [`Log::open_power`], with a task for a thread, so that a simulation's clock waits for it.
    pub(crate) fn open_simulated(power: Power, failure: Failure) -> Result<Self, Fatal> {
        let (disk, found) = Disk::open_with(path(), power)?;
        let (log, mut queue) = Self::new(disk, found, failure);
        let shared = log.shared.clone();
        tokio::spawn(async move {
            let (mut batch, mut committed) = (Vec::new(), None);
            while queue.recv_many(&mut batch, JOBS).await > 0 {
                // As long as an fsync takes.
                tokio::time::sleep(Duration::from_millis(1)).await;
                writer::serve(&shared, &mut batch, &mut committed);
            }
        });
        Ok(log)
    }
}

fn start(power: &Power) -> Result<Log, Fatal> {
    Log::open_power(power.clone(), Failure::default())
}

async fn append(log: &mut Log, entries: Vec<Entry>) -> io::Result<()> {
    let (done, flushed) = Types::oneshot();
    log.append(entries, IOFlushed::signal(done)).await?;
    flushed.await.map_err(io::Error::other)?
}

#[derive(Debug, Clone)]
enum Step {
    Append(u64, std::ops::Range<u64>),
    Vote(u64),
    Committed(LogId),
    Truncate(u64),
    Purge(u64),
}

/// What the log holds, as far as it is acknowledged.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: Vec<Entry>,
}

impl Model {
    fn apply(&mut self, step: &Step) {
        match step {
            Step::Append(term, range) => self.entries.extend(range.clone().map(|index| entry(*term, index))),
            Step::Vote(term) => self.vote = Some(vote(*term)),
            Step::Committed(_) => {}
            Step::Truncate(last) => self.entries.retain(|entry| entry.log_id.index <= *last),
            Step::Purge(through) => {
                self.purged = self.entries.iter().map(|e| e.log_id).find(|id| id.index == *through);
                self.entries.retain(|entry| entry.log_id.index > *through);
            }
        }
    }

    fn found(disk: &Disk, found: &Found) -> Self {
        Self { vote: found.vote, purged: found.purged, entries: disk.read(0, u64::MAX).unwrap() }
    }
}

async fn perform(log: &mut Log, step: &Step, model: &Model) -> io::Result<()> {
    let find = |index: u64| model.entries.iter().map(|e| e.log_id).find(|id| id.index == index);
    match step {
        Step::Append(term, range) => append(log, range.clone().map(|index| entry(*term, index)).collect()).await,
        Step::Vote(term) => log.save_vote(&vote(*term)).await,
        Step::Committed(committed) => log.save_committed(Some(*committed)).await,
        Step::Truncate(last) => log.truncate_after(find(*last)).await,
        Step::Purge(through) => log.purge(find(*through).unwrap()).await,
    }
}

fn steps() -> Vec<Step> {
    vec![
        Step::Vote(1),
        Step::Append(1, 0..3),
        Step::Committed(id(1, 1)),
        Step::Append(1, 3..40),
        Step::Truncate(20),
        Step::Vote(2),
        Step::Append(2, 21..30),
        Step::Committed(id(2, 25)),
        Step::Purge(10),
        Step::Append(2, 30..31),
        Step::Vote(3),
    ]
}

/// Catches the mutation "acknowledge before fsync": with it, an acknowledged step is missing after some power cut.
/// Also catches a torn write that is taken for a whole one: what is found is exactly one of the states passed through.
#[tokio::test]
async fn a_power_cut_at_any_operation_loses_nothing_that_was_acknowledged() {
    let mut cuts = 0;
    for budget in 0.. {
        let power = Power::formatted(budget);
        let mut acknowledged = Model::default();
        let mut attempted = Model::default();
        let mut failed = true;
        if let Ok(mut log) = start(&power) {
            failed = false;
            for step in steps() {
                attempted = acknowledged.clone();
                attempted.apply(&step);
                failed = perform(&mut log, &step, &acknowledged).await.is_err();
                if failed {
                    assert!(append(&mut log, vec![entry(9, 99)]).await.is_err(), "nothing is written after a failure");
                    assert!(matches!(log.shared.failure.get(), Some(Fatal::Disk { .. })));
                    break;
                }
                acknowledged = attempted.clone();
            }
        }
        for loss in [Loss::All, Loss::Nothing, Loss::Torn, Loss::Random(budget), Loss::Random(budget + 9999)] {
            let image = power.after(loss);
            let (disk, found) = Disk::open_with(path(), Power::new(image, u64::MAX))
                .unwrap_or_else(|fatal| panic!("cut after {budget} operations, {loss:?}: {fatal}"));
            let model = Model::found(&disk, &found);
            assert!(model == acknowledged || model == attempted, "cut after {budget} operations, {loss:?}");
            assert!(found.committed <= found.last.max(found.purged));
            cuts += 1;
        }
        if !failed {
            break;
        }
    }
    assert!(cuts > 200, "{cuts} cuts were tried");
}

#[tokio::test]
async fn what_waits_during_an_fsync_shares_the_next_one() {
    let power = Power::new(Vec::new(), u64::MAX);
    let mut log = start(&power).unwrap();
    append(&mut log, vec![entry(1, 0)]).await.unwrap();
    let before = power.disk.lock().unwrap().syncs;
    // Holding the platter holds the writer in the middle of the first of these.
    let waiting: Vec<_> = {
        let _held = power.disk.lock().unwrap();
        let mut waiting = Vec::new();
        for index in 1..=200 {
            let (done, flushed) = Types::oneshot();
            let append = log.append(vec![entry(1, index)], IOFlushed::signal(done));
            tokio::task::unconstrained(append).now_or_never().unwrap().unwrap();
            waiting.push(flushed);
        }
        waiting
    };
    for flushed in waiting {
        flushed.await.unwrap().unwrap();
    }
    let syncs = power.disk.lock().unwrap().syncs - before;
    assert!(syncs <= 4, "{syncs} for 200 appends");
}

#[tokio::test]
async fn committed_costs_no_fsync_and_survives_with_the_next_one() {
    let power = Power::new(Vec::new(), u64::MAX);
    let mut log = start(&power).unwrap();
    append(&mut log, vec![entry(1, 0), entry(1, 1)]).await.unwrap();
    let before = power.disk.lock().unwrap().syncs;
    log.save_committed(Some(id(1, 0))).await.unwrap();
    assert_eq!(log.read_committed().await.unwrap(), Some(id(1, 0)));
    assert_eq!(power.disk.lock().unwrap().syncs, before);
    log.save_vote(&vote(1)).await.unwrap();
    let (_, found) = Disk::open_with(path(), Power::new(power.after(Loss::All), u64::MAX)).unwrap();
    assert_eq!(found.committed, Some(id(1, 0)));
}

#[tokio::test]
async fn old_entries_leave_memory_and_are_read_from_the_disk() {
    let power = Power::new(Vec::new(), u64::MAX);
    let mut log = start(&power).unwrap();
    let total = tail::ENTRIES as u64 + 500;
    for from in (0..total).step_by(100) {
        append(&mut log, (from..(from + 100).min(total)).map(|index| entry(1, index)).collect()).await.unwrap();
    }
    assert_eq!(log.shared.tail().entries.len(), tail::ENTRIES);
    let read = |log: &Log, range: std::ops::Range<u64>| {
        let mut log = log.clone();
        async move { log.try_get_log_entries(range).await.unwrap() }
    };
    let all = read(&log, 0..u64::MAX).await;
    assert_eq!(all.len() as u64, total);
    assert!(all.iter().enumerate().all(|(n, entry)| entry.log_id.index == n as u64));
    assert_eq!(read(&log, 490..510).await.len(), 20);
    assert_eq!(read(&log, 10..20).await.len(), 10);
    log.purge(id(1, 99)).await.unwrap();
    assert_eq!(read(&log, 0..150).await.len(), 50);
}

#[test]
fn a_flipped_bit_is_named_or_harmless() {
    let power = Power::new(Vec::new(), u64::MAX);
    let (disk, _) = Disk::open_with(path(), power.clone()).unwrap();
    let batch = disk.begin().unwrap();
    let entries: Vec<Entry> = (0..60).map(|index| entry(1, index)).collect();
    batch.append(&entries).unwrap();
    batch.set_vote(&vote(1)).unwrap();
    batch.commit().unwrap();
    drop(disk);
    let image = power.after(Loss::Nothing);
    let expected = Model { vote: Some(vote(1)), purged: None, entries };

    std::panic::set_hook(Box::new(|_| {}));
    let mut random = fastrand::Rng::with_seed(1);
    let mut named = 0;
    for _ in 0..400 {
        let mut damaged = image.clone();
        let at = random.usize(..damaged.len());
        damaged[at] ^= 1 << random.u32(..8);
        match Disk::open_with(path(), Power::new(damaged, u64::MAX)) {
            Err(Fatal::Corrupt { path, .. }) => {
                assert_eq!(path, Path::new("log.redb"));
                named += 1;
            }
            Err(other) => panic!("byte {at}: {other}"),
            Ok((disk, found)) => assert_eq!(Model::found(&disk, &found), expected, "byte {at}"),
        }
    }
    let _ = std::panic::take_hook();
    assert!(named > 0);
}

#[test]
fn an_entry_that_is_not_the_one_appended_is_named() {
    for damage in ["swap", "gap", "vote", "format"] {
        let power = Power::new(Vec::new(), u64::MAX);
        let (disk, _) = Disk::open_with(path(), power.clone()).unwrap();
        let batch = disk.begin().unwrap();
        batch.append(&[entry(1, 0), entry(1, 1), entry(1, 2)]).unwrap();
        batch.set_vote(&vote(1)).unwrap();
        disk::damage(&batch, damage);
        batch.commit().unwrap();
        drop(disk);
        let fatal = Disk::open_with(path(), Power::new(power.after(Loss::All), u64::MAX)).err().unwrap();
        assert!(fatal.to_string().starts_with("log.redb is corrupt: "), "{damage}: {fatal}");
    }
}

#[test]
fn a_start_that_was_cut_off_is_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.redb");
    std::fs::write(dir.path().join("log.redb.new"), vec![0u8; 5000]).unwrap();
    drop(Disk::open(&path).unwrap());
    assert!(path.exists() && !dir.path().join("log.redb.new").exists());
    drop(Disk::open(&path).unwrap());
}

#[test]
fn a_file_that_is_no_log_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.redb");
    std::fs::write(&path, vec![7u8; 100_000]).unwrap();
    assert!(matches!(Disk::open(&path), Err(Fatal::Corrupt { .. })));
    // Cut to nothing it is not a new log.
    std::fs::write(&path, "").unwrap();
    assert!(matches!(Disk::open(&path), Err(Fatal::Corrupt { .. })));
}
