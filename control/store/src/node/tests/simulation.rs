//! Members in a simulated world: a network that partitions, power that fails at any operation of a disk and takes with
//! it what was not synced. Seconds of it pass in moments.
//!
//! A seed fixes the faults, the network's delays and what the disks lose. It does not fix openraft's election
//! time-outs, which are drawn from the thread's generator, so a run is not repeated to the letter.

use std::cell::RefCell;
use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use turmoil::net::{TcpListener, TcpStream};

use super::*;
use crate::codec::Wire;
use crate::log::tests::{Loss, Power};
use crate::network::Unreached;
use crate::snapshot::tests::Power as Files;

const MEMBERS: [u64; 3] = [1, 2, 3];
const WRITERS: u64 = 3;
const RAFT: u16 = 15010;
const API: u16 = 15011;

fn host(id: u64) -> String {
    format!("m{id}")
}

#[derive(Debug)]
struct Tcp;

impl Transport for Tcp {
    fn call(&self, to: &Member, message: Bytes, within: Duration) -> BoxFuture<'static, Result<Bytes, Unreached>> {
        let to = to.address.to_string();
        let call = async move { exchange(&to, RAFT, &message).await.map_err(|error| Unreached(error.to_string())) };
        let timed = async move { tokio::time::timeout(within, call).await.map_err(|_| Unreached("late".into()))? };
        timed.boxed()
    }
}

async fn exchange(to: &str, port: u16, message: &[u8]) -> std::io::Result<Bytes> {
    let mut stream = TcpStream::connect((turmoil::lookup(to), port)).await?;
    send(&mut stream, message).await?;
    receive(&mut stream).await
}

async fn send(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    stream.write_u32(message.len() as u32).await?;
    stream.write_all(message).await
}

async fn receive(stream: &mut TcpStream) -> std::io::Result<Bytes> {
    let mut message = vec![0; stream.read_u32().await? as usize];
    stream.read_exact(&mut message).await?;
    Ok(message.into())
}

/// What outlives a power cut.
#[derive(Clone)]
struct Disks {
    log: Power,
    files: Files,
}

async fn member(id: u64, disks: Disks) -> turmoil::Result {
    let mut options = Options::new(&host(id), &host(id), "/data");
    options.snapshot_every = 60;
    options.timeout = Duration::from_millis(1500);
    options.clock = || 1000;
    let open = async {
        let failure = Failure::default();
        let log = Log::open_simulated(disks.log, failure.clone())?;
        let snapshots = Snapshots::open(&options.data_dir, disks.files)?;
        let identity = Identity { id, incarnation: id };
        Store::start(options, Arc::new(Tcp), log, snapshots, identity, failure).await
    };
    let store = match open.await {
        Ok(store) => store,
        // The power fails again while it starts.
        Err(Fatal::Disk { .. }) => return Ok(()),
        Err(fatal) => return Err(fatal.into()),
    };
    if id == 1 {
        let known = |id| (id, Member { name: host(id).into(), address: host(id).into(), incarnation: id });
        // Refused when it has been done.
        let _ = store.0.raft.initialize(MEMBERS.map(known).into_iter().collect::<BTreeMap<_, _>>()).await;
    }
    let serve = |port: u16, answer: fn(Store, Bytes) -> BoxFuture<'static, Bytes>| {
        let store = store.clone();
        async move {
            let listener = TcpListener::bind(("0.0.0.0", port)).await?;
            loop {
                let (mut stream, _) = listener.accept().await?;
                let store = store.clone();
                tokio::spawn(async move {
                    let message = receive(&mut stream).await?;
                    send(&mut stream, &answer(store, message).await).await
                });
            }
        }
    };
    let raft = serve(RAFT, |store, message| async move { store.handle(message).await }.boxed());
    let api = serve(API, |store, message| api(store, message).boxed());
    // The disk has failed: the process ends.
    let ended: std::io::Result<()> = tokio::select! {
        ended = raft => ended,
        ended = api => ended,
        _ = store.failed() => Ok(()),
        () = watch_all(&store) => Ok(()),
    };
    Ok(ended?)
}

/// A command is written, nothing at all is a linearizable read. What is not done is answered with nothing.
async fn api(store: Store, message: Bytes) -> Bytes {
    if message.is_empty() {
        let look = |machine: &crate::machine::Machine| (machine.revision().0, body(machine, "register").unwrap_or(0));
        let found = store.read(Consistency::Linearizable, look).await;
        return found.map_or(Bytes::new(), |found| found.encode().into());
    }
    let written = store.write(Command::decode(&message).unwrap()).await;
    written.map_or(Bytes::new(), |outcome| outcome.encode().into())
}

/// From the beginning at every start, each member shows every revision.
async fn watch_all(store: &Store) {
    let mut watcher = store.watch(Revision(0), Filter::default());
    let mut last = Revision(0);
    while let Ok(batch) = watcher.next().await {
        for seen in batch {
            assert_eq!(seen.event().revision, last.next());
            last = seen.event().revision;
            let change = seen.changes().next().unwrap();
            assert_eq!(change.after.as_ref().unwrap().modified, last);
        }
    }
}

/// One object, many writers. A write is answered with its revision, and a read with the revision of what it found, so
/// the order of all of them is known, and linearizability is what is checked: nothing may come before in that order
/// what was over before it began, and a read finds what the write of its revision wrote.
#[derive(Default)]
struct Register {
    /// The highest revision that a write or a read was answered with.
    least: u64,
    /// What was written, by revision.
    written: BTreeMap<u64, u64>,
    /// What was found, by revision.
    found: BTreeMap<u64, u64>,
    reads: u64,
    /// How many writers still write.
    writing: usize,
    stop: bool,
}

async fn ask(id: u64, message: &[u8]) -> Option<Bytes> {
    let asked = tokio::time::timeout(Duration::from_secs(2), exchange(&host(id), API, message)).await;
    asked.ok()?.ok().filter(|answer| !answer.is_empty())
}

async fn writer(n: u64, register: Rc<RefCell<Register>>) -> turmoil::Result {
    let mut at = n;
    let mut sequence = 0;
    while !register.borrow().stop {
        sequence += 1;
        let value = sequence * 10 + n;
        let id = RequestId { client: ClientId(u128::from(n)), ..request(sequence) };
        let command = put("register", value).identified(id).encode();
        let least = register.borrow().least;
        let outcome = loop {
            match ask(at, &command).await {
                Some(outcome) => break Outcome::decode(&outcome)?,
                None => at = 1 + at % 3,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let mut register = register.borrow_mut();
        let Some(Revision(revision)) = outcome.revision() else { panic!("{outcome:?}") };
        assert!(revision > least, "written at {revision} after {least} was known");
        assert_eq!(register.written.insert(revision, value), None, "one write per revision");
        register.least = register.least.max(revision);
    }
    register.borrow_mut().writing -= 1;
    Ok(())
}

async fn reader(register: Rc<RefCell<Register>>) -> turmoil::Result {
    let mut last = false;
    while !last {
        // Once more when all is over.
        last = register.borrow().stop && register.borrow().writing == 0;
        let mut answered = false;
        for id in MEMBERS {
            let least = register.borrow().least;
            let Some(found) = ask(id, &[]).await else { continue };
            let (revision, value) = Wire::decode(&found)?;
            assert!(revision >= least, "a stale read: {revision} after {least}");
            let mut register = register.borrow_mut();
            let before = *register.found.entry(revision).or_insert(value);
            assert_eq!(value, before, "one value per revision");
            register.least = register.least.max(revision);
            register.reads += 1;
            answered = true;
        }
        last &= answered;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    Ok(())
}

fn simulate(seed: u64, duration: Duration) -> (u64, u64, u32) {
    let mut random = fastrand::Rng::with_seed(seed);
    let fresh = || {
        let files = Files::default();
        files.fail_after(u64::MAX);
        Disks { log: Power::formatted(u64::MAX), files }
    };
    let disks: Rc<RefCell<BTreeMap<u64, Disks>>> =
        Rc::new(RefCell::new(MEMBERS.into_iter().map(|id| (id, fresh())).collect()));
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(duration + Duration::from_secs(120))
        .tick_duration(Duration::from_millis(2))
        .max_message_latency(Duration::from_millis(20))
        .build();
    for id in MEMBERS {
        let disks = disks.clone();
        sim.host(host(id), move || member(id, disks.borrow()[&id].clone()));
    }
    let register = Rc::<RefCell<Register>>::default();
    for n in 1..=WRITERS {
        register.borrow_mut().writing += 1;
        sim.client(format!("writer{n}"), writer(n, register.clone()));
    }
    for n in 1..=2 {
        sim.client(format!("reader{n}"), reader(register.clone()));
    }

    let cut_power = |sim: &mut turmoil::Sim<'_>, id: u64, seed: u64| {
        let mut disks = disks.borrow_mut();
        let old = &disks[&id];
        old.log.fail_after(0);
        old.files.fail_after(0);
        sim.crash(host(id));
        let log = old.log.restored(Loss::Random(seed));
        let files = old.files.after(seed.is_multiple_of(2));
        disks.insert(id, Disks { log, files });
    };
    let repair = |sim: &turmoil::Sim<'_>| {
        for (one, other) in [(1, 2), (2, 3), (3, 1)] {
            sim.repair(host(one), host(other));
        }
    };
    let mut next = Duration::from_secs(3);
    let mut cuts = 0;
    let mut off: BTreeMap<u64, Duration> = BTreeMap::new();
    while !sim.step().unwrap() {
        let now = sim.elapsed();
        // Who is without power gets it back after a while, and so does who stopped because of its disk.
        for id in MEMBERS {
            if off.get(&id).is_some_and(|back| *back <= now) {
                off.remove(&id);
                sim.bounce(host(id));
            } else if !off.contains_key(&id) && !sim.is_host_running(host(id)) {
                cut_power(&mut sim, id, random.u64(..));
                cuts += 1;
                off.insert(id, now + Duration::from_millis(random.u64(50..1500)));
            }
        }
        if now < next {
            continue;
        }
        next = now + Duration::from_millis(random.u64(100..2500));
        let (id, other) = (random.u64(1..=3), random.u64(1..=2));
        let other = 1 + (id + other - 1) % 3;
        if now > duration {
            repair(&sim);
            register.borrow_mut().stop = true;
            continue;
        }
        match random.u32(..10) {
            0..3 => sim.partition(host(id), host(other)),
            3 => MEMBERS.into_iter().filter(|one| *one != id).for_each(|one| sim.partition(host(id), host(one))),
            4..6 => repair(&sim),
            6..8 => disks.borrow()[&id].log.fail_after(random.u64(..30)),
            8 => disks.borrow()[&id].files.fail_after(random.u64(..6)),
            // All of them at once.
            _ => disks.borrow().values().for_each(|disks| disks.log.fail_after(0)),
        }
    }
    let register = register.borrow();
    let writes = register.written.len() as u64;
    assert_eq!(register.written.keys().next_back(), Some(&writes), "every revision is some write's: none was doubled");
    for (revision, value) in register.found.iter().filter(|(revision, _)| **revision > 0) {
        assert_eq!(register.written.get(revision), Some(value));
    }
    (writes, register.reads, cuts)
}

/// Catches "acknowledge before fsync" in a cluster, "read without quorum", lost and doubled writes, watches with gaps.
#[test]
fn power_cuts_and_partitions() {
    let number = |name: &str, usual: u64| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(usual);
    let duration = Duration::from_secs(number("WEFT_SIMULATED_SECONDS", 60));
    let first = number("WEFT_SIMULATED_SEED", 1);
    for seed in first..first + number("WEFT_SIMULATED_SEEDS", 2) {
        let (writes, reads, cuts) = simulate(seed, duration);
        eprintln!("seed {seed}: {writes} writes, {reads} linearizable reads, {cuts} power cuts");
        assert!(writes > 50 && reads > 50 && cuts > 3);
    }
}
