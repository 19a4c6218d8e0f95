//! Access log: one line per request that the condition lets through.
//!
//! A worker appends the line to its own buffer; a thread swaps the buffers and writes them out. A slow reader of standard
//! output therefore never holds up a request: when a buffer is full, lines are left out and counted.

use std::{
    cell::RefCell,
    fmt::Write as _,
    io::Write,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use weft_model::{
    condition::Facts,
    config::{AccessLog, LogFormat},
};

use super::{
    Finished,
    metrics::{Metrics, Slot},
};

mod line;
#[cfg(test)]
mod tests;

use line::Line;

/// Lines of one worker that may wait, in bytes.
const BUFFER: usize = 1024 * 1024;

/// How long the writer lets lines gather: bounds its system calls, and the delay of a line.
const GATHER: Duration = Duration::from_millis(20);

type Sink = Box<dyn Write + Send>;

/// The writer thread and the buffers that it empties. The thread starts with the first line.
#[derive(Debug)]
pub(super) struct LogWriter {
    shared: Arc<Shared>,
}

struct Shared {
    buffers: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
    state: Mutex<State>,
    /// Tells the writer that there is something, and those who flush that there is nothing.
    changed: Condvar,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    /// Until the thread takes it.
    sink: Option<Sink>,
    /// Some buffer is not empty, or is being written.
    pending: bool,
    /// Somebody waits: write without gathering.
    hurry: bool,
}

impl LogWriter {
    pub(super) fn new(sink: Sink, metrics: Arc<Metrics>) -> Self {
        let state = Mutex::new(State { sink: Some(sink), ..State::default() });
        Self { shared: Arc::new(Shared { buffers: Mutex::default(), state, changed: Condvar::new(), metrics }) }
    }

    pub(super) fn sender(&self) -> LogSender {
        let buffer = Arc::<Mutex<Vec<u8>>>::default();
        lock(&self.shared.buffers).push(Arc::clone(&buffer));
        LogSender { shared: Arc::clone(&self.shared), buffer, scratch: RefCell::default() }
    }

    /// Waits until everything is written, at most `limit`.
    pub(super) fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = lock(&self.shared.state);
        while state.pending {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state.hurry = true;
            self.shared.changed.notify_all();
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A worker's end.
#[derive(Debug)]
pub(super) struct LogSender {
    shared: Arc<Shared>,
    buffer: Arc<Mutex<Vec<u8>>>,
    scratch: RefCell<Vec<u8>>,
}

impl LogSender {
    /// Writes the line of an exchange, if the condition lets it through.
    pub(super) fn write(&self, log: &AccessLog, facts: &Finished<'_>, slot: &Slot, start: impl FnOnce() -> SystemTime) {
        let mut line = Line::new(facts, slot);
        let condition = Facts {
            status: facts.status,
            duration: facts.duration(),
            method: line.method,
            path: line.path,
            route: &slot.route,
            service: &slot.service,
            reason: line.reason.unwrap_or_default(),
        };
        if log.when.as_ref().is_some_and(|when| !when.matches(&condition)) {
            return;
        }
        let time = rfc3339(start());
        line.time = &time;
        let mut scratch = self.scratch.borrow_mut();
        scratch.clear();
        let written = match log.format {
            LogFormat::Json => line.write_json(&mut scratch),
            LogFormat::Text => line.write_text(&mut scratch),
        };
        if written.is_ok() {
            scratch.push(b'\n');
            self.send(&scratch);
        }
    }

    fn send(&self, line: &[u8]) {
        // The writer holds this lock only to swap two pointers.
        let mut buffer = lock(&self.buffer);
        if buffer.len() + line.len() > BUFFER {
            self.shared.metrics.access_log_dropped.fetch_add(1, Relaxed);
            return;
        }
        let was_empty = buffer.is_empty();
        buffer.extend_from_slice(line);
        drop(buffer);
        if was_empty {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        let mut state = lock(&self.shared.state);
        if let Some(sink) = state.sink.take() {
            let shared = Arc::clone(&self.shared);
            let started = thread::Builder::new().name("weft-access-log".into()).spawn(move || shared.run(sink));
            if let Err(error) = started {
                tracing::error!(%error, "no thread for the access log: it stays empty until a restart");
            }
        }
        state.pending = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn run(&self, mut sink: Sink) {
        let mut spare = Vec::with_capacity(64 * 1024);
        let mut failing = false;
        loop {
            self.wait();
            let buffers = lock(&self.buffers).clone();
            let mut wrote = false;
            for buffer in &buffers {
                std::mem::swap(&mut *lock(buffer), &mut spare);
                if spare.is_empty() {
                    continue;
                }
                wrote = true;
                if let Err(error) = sink.write_all(&spare).and_then(|()| sink.flush()) {
                    let lines = memchr::memchr_iter(b'\n', &spare).count();
                    self.metrics.access_log_dropped.fetch_add(lines as u64, Relaxed);
                    if !failing {
                        tracing::warn!(%error, "the access log cannot be written: is standard output closed?");
                    }
                    failing = true;
                } else {
                    failing = false;
                }
                spare.clear();
            }
            if !wrote {
                self.rest(&buffers);
            }
        }
    }

    /// Sleeps until there is something, then a little longer so that more of it comes.
    fn wait(&self) {
        let state = lock(&self.state);
        let mut state = self.changed.wait_while(state, |state| !state.pending).unwrap_or_else(PoisonError::into_inner);
        if !state.hurry {
            let waited = self.changed.wait_timeout_while(state, GATHER, |state| !state.hurry);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.hurry = false;
    }

    /// Nothing was left to write: says so, unless a line came in the meantime.
    fn rest(&self, buffers: &[Arc<Mutex<Vec<u8>>>]) {
        let mut state = lock(&self.state);
        if buffers.iter().all(|buffer| lock(buffer).is_empty()) {
            state.pending = false;
            self.changed.notify_all();
        }
    }
}

/// RFC 3339 in UTC with milliseconds.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let mut text = String::with_capacity(24);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    // Writing into a String cannot fail.
    let _ = write!(
        text,
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{:03}Z",
        second % 60,
        since.subsec_millis()
    );
    text
}

/// Year, month and day of a day counted from 1970-01-01, by whole 400-, 100-, 4- and 1-year cycles that start in March.
fn civil(days: u64) -> (u64, u64, u64) {
    // 1970-01-01 is day 719,468 after 0000-03-01.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let century = (day_of_era / 36_524).min(3);
    let day_of_century = day_of_era - century * 36_524;
    let (cycle, day_of_cycle) = (day_of_century / 1_461, day_of_century % 1_461);
    let year_of_cycle = (day_of_cycle / 365).min(3);
    let day_of_year = day_of_cycle - year_of_cycle * 365;
    // Months from March have 31 30 31 30 31 | 31 30 31 30 31 | 31 … days: 153 in five.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let year = era * 400 + century * 100 + cycle * 4 + year_of_cycle;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
