//! What clients of a store saw, and whether one register for each key could have shown it to them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

pub use porcupine_rs::CheckResult as Verdict;
use porcupine_rs::{Model, Operation, check_operations_timeout};

/// For the checker. A history that it cannot decide within this fails the test: it says nothing.
const DECIDE: Duration = Duration::from_secs(60);

/// What was done to a key, and what was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    Write(u64),
    Read(Option<u64>),
}

/// Registers, each of which holds what was written to it last.
#[derive(Debug, Clone)]
struct Registers;

impl Model for Registers {
    type State = Option<u64>;
    type Op = (String, Done);
    type Metadata = ();

    fn partition_operations(history: &[Operation<Self>]) -> Vec<Vec<Operation<Self>>> {
        let mut keys = BTreeMap::<&str, Vec<Operation<Self>>>::new();
        for operation in history {
            keys.entry(&operation.op.0).or_default().push(operation.clone());
        }
        keys.into_values().collect()
    }

    fn init() -> Option<u64> {
        None
    }

    fn step(state: &Option<u64>, (_, done): &(String, Done)) -> (bool, Option<u64>) {
        match done {
            Done::Write(value) => (true, Some(*value)),
            Done::Read(seen) => (seen == state, *state),
        }
    }
}

/// What several clients did, each at its time. Clones share it.
#[derive(Debug, Clone)]
pub struct History {
    start: Instant,
    operations: Arc<Mutex<Vec<Operation<Registers>>>>,
}

impl Default for History {
    fn default() -> Self {
        Self { start: Instant::now(), operations: Arc::default() }
    }
}

impl History {
    /// A moment of this history.
    pub fn now(&self) -> i64 {
        self.start.elapsed().as_nanos().try_into().unwrap()
    }

    /// `client` did this to `key`, some time between `call` and `end`.
    pub fn add(&self, client: u32, key: &str, done: Done, (call, end): (i64, i64)) {
        self.operations.lock().unwrap().push(Operation {
            client_id: Some(client),
            call_time: call,
            return_time: end,
            op: (key.to_owned(), done),
            metadata: None,
        });
    }

    /// How many writes and reads.
    pub fn counts(&self) -> (usize, usize) {
        let operations = self.operations.lock().unwrap();
        let writes = operations.iter().filter(|operation| matches!(operation.op.1, Done::Write(_))).count();
        (writes, operations.len() - writes)
    }

    /// The checker's verdict.
    pub fn verdict(&self) -> Verdict {
        check_operations_timeout(&self.operations.lock().unwrap().clone(), DECIDE)
    }

    /// Fails the test unless the history is linearizable.
    pub fn assert_linearizable(&self) {
        let (writes, reads) = self.counts();
        assert_eq!(self.verdict(), Verdict::Ok, "of {writes} writes and {reads} reads");
        eprintln!("linearizable: {writes} writes, {reads} reads");
    }
}
