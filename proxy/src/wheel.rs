//! Deadlines without a timer per request: one hashed wheel per worker (Varghese & Lauck 1987), moved by one task.
//!
//! Arming, disarming and re-arming are a few list operations. The resolution is [`TICK`]; a deadline fires at its tick
//! or the one after, never early. The task sleeps for good while nothing is armed, so an idle worker costs nothing.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// Resolution of the wheel.
pub const TICK: Duration = Duration::from_millis(8);
const SLOTS: usize = 512;
const NONE: u32 = u32::MAX;

/// The deadlines of one worker.
#[derive(Debug)]
pub struct Wheel {
    inner: RefCell<Inner>,
    epoch: Instant,
    /// Set while the driver is turning; an arming call wakes it otherwise.
    turning: Cell<bool>,
    wake: Notify,
}

#[derive(Debug)]
struct Inner {
    heads: Box<[u32]>,
    entries: Vec<Entry>,
    free: u32,
    armed: usize,
    /// Every tick up to and including this one has been handled.
    tick: u64,
}

#[derive(Debug)]
struct Entry {
    previous: u32,
    next: u32,
    tick: u64,
    state: State,
    waker: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Armed,
    Fired,
}

impl Wheel {
    /// An empty wheel whose first tick begins at `now`.
    pub fn new(now: Instant) -> Rc<Self> {
        Rc::new(Self {
            inner: RefCell::new(Inner {
                heads: vec![NONE; SLOTS].into_boxed_slice(),
                entries: Vec::new(),
                free: NONE,
                armed: 0,
                tick: 0,
            }),
            epoch: now,
            turning: Cell::new(false),
            wake: Notify::new(),
        })
    }

    /// Arms a deadline.
    pub fn arm(self: &Rc<Self>, deadline: Instant) -> Timer {
        let index = self.inner.borrow_mut().insert(self.tick_after(deadline));
        if !self.turning.replace(true) {
            self.wake.notify_one();
        }
        Timer { wheel: self.clone(), index }
    }

    /// Fires everything that is due at `now`. Called by [`Wheel::turn`], and directly by tests.
    pub fn advance(&self, now: Instant) {
        let now = ticks(now.saturating_duration_since(self.epoch));
        let mut due: Vec<Waker> = Vec::new();
        self.inner.borrow_mut().advance(now, &mut due);
        due.into_iter().for_each(Waker::wake);
    }

    /// Moves the wheel for as long as the worker lives.
    pub async fn turn(self: Rc<Self>) {
        loop {
            if self.inner.borrow().armed == 0 {
                self.turning.set(false);
                self.wake.notified().await;
            }
            tokio::time::sleep(TICK).await;
            self.advance(Instant::now());
        }
    }

    fn tick_after(&self, deadline: Instant) -> u64 {
        ticks(deadline.saturating_duration_since(self.epoch)) + 1
    }
}

fn ticks(since: Duration) -> u64 {
    // TICK divides a second, so this needs no 128-bit division.
    let per_second = 1_000 / TICK.as_millis() as u64;
    since.as_secs() * per_second + u64::from(since.subsec_millis()) / TICK.as_millis() as u64
}

impl Inner {
    fn insert(&mut self, tick: u64) -> u32 {
        let index = if self.free == NONE {
            self.entries.push(Entry { previous: NONE, next: NONE, tick, state: State::Free, waker: None });
            u32::try_from(self.entries.len() - 1).unwrap_or(NONE)
        } else {
            let index = self.free;
            self.free = self.entries[index as usize].next;
            index
        };
        self.link(index, tick);
        index
    }

    fn link(&mut self, index: u32, tick: u64) {
        // A deadline in the past fires at the next turn.
        let tick = tick.max(self.tick + 1);
        let head = &mut self.heads[tick as usize % SLOTS];
        let next = std::mem::replace(head, index);
        if next != NONE {
            self.entries[next as usize].previous = index;
        }
        let entry = &mut self.entries[index as usize];
        entry.previous = NONE;
        entry.next = next;
        entry.tick = tick;
        entry.state = State::Armed;
        self.armed += 1;
    }

    fn unlink(&mut self, index: u32) {
        let (previous, next, tick) = {
            let entry = &self.entries[index as usize];
            (entry.previous, entry.next, entry.tick)
        };
        if previous == NONE {
            self.heads[tick as usize % SLOTS] = next;
        } else {
            self.entries[previous as usize].next = next;
        }
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        self.armed -= 1;
    }

    fn advance(&mut self, now: u64, due: &mut Vec<Waker>) {
        // After a long pause one turn over all slots is enough.
        let first = (self.tick + 1).max((now + 1).saturating_sub(SLOTS as u64));
        for tick in first..=now {
            let mut index = self.heads[tick as usize % SLOTS];
            while index != NONE {
                let next = self.entries[index as usize].next;
                if self.entries[index as usize].tick <= now {
                    self.unlink(index);
                    let entry = &mut self.entries[index as usize];
                    entry.state = State::Fired;
                    due.extend(entry.waker.take());
                }
                index = next;
            }
        }
        self.tick = self.tick.max(now);
    }
}

/// One armed deadline; dropping it disarms it.
#[derive(Debug)]
pub struct Timer {
    wheel: Rc<Wheel>,
    index: u32,
}

impl Timer {
    /// Ready once the deadline has passed; otherwise the task is woken then.
    pub fn poll_elapsed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.wheel.inner.borrow_mut();
        let entry = &mut inner.entries[self.index as usize];
        if entry.state == State::Fired {
            return Poll::Ready(());
        }
        if !entry.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            entry.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Moves the deadline, whether it has fired or not.
    pub fn rearm(&self, deadline: Instant) {
        let tick = self.wheel.tick_after(deadline);
        let mut inner = self.wheel.inner.borrow_mut();
        if inner.entries[self.index as usize].state == State::Armed {
            inner.unlink(self.index);
        }
        inner.link(self.index, tick);
        drop(inner);
        if !self.wheel.turning.replace(true) {
            self.wheel.wake.notify_one();
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut inner = self.wheel.inner.borrow_mut();
        if inner.entries[self.index as usize].state == State::Armed {
            inner.unlink(self.index);
        }
        let free = inner.free;
        let entry = &mut inner.entries[self.index as usize];
        entry.state = State::Free;
        entry.waker = None;
        entry.next = free;
        inner.free = self.index;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn elapsed(timer: &Timer) -> bool {
        timer.poll_elapsed(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn fires_after_its_deadline_and_not_before() {
        let start = Instant::now();
        let wheel = Wheel::new(start);
        let timer = wheel.arm(start + Duration::from_millis(100));
        wheel.advance(start + Duration::from_millis(99));
        assert!(!elapsed(&timer));
        wheel.advance(start + Duration::from_millis(100) + TICK);
        assert!(elapsed(&timer));
        timer.rearm(start + Duration::from_secs(60));
        assert!(!elapsed(&timer));
        wheel.advance(start + Duration::from_secs(59));
        assert!(!elapsed(&timer), "a deadline of a later revolution stays armed");
        wheel.advance(start + Duration::from_secs(61));
        assert!(elapsed(&timer));
    }

    #[tokio::test(start_paused = true)]
    async fn the_driver_wakes_a_waiting_task_and_sleeps_when_empty() {
        tokio::task::LocalSet::new()
            .run_until(async {
                let wheel = Wheel::new(Instant::now());
                let driver = tokio::task::spawn_local(wheel.clone().turn());
                let timer = wheel.arm(Instant::now());
                std::future::poll_fn(|cx| timer.poll_elapsed(cx)).await;
                drop(timer);
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert!(!wheel.turning.get(), "an empty wheel does not turn");
                driver.abort();
            })
            .await;
    }

    proptest! {
        #[test]
        fn agrees_with_a_list_of_deadlines(
            steps in proptest::collection::vec((0u64..20_000, 0usize..4), 1..200),
        ) {
            let start = Instant::now();
            let wheel = Wheel::new(start);
            let mut now = start;
            let mut timers: Vec<(Instant, Timer)> = Vec::new();
            for (millis, what) in steps {
                match what {
                    0 | 1 => {
                        let deadline = now + Duration::from_millis(millis);
                        timers.push((deadline, wheel.arm(deadline)));
                    }
                    2 if !timers.is_empty() => { timers.swap_remove(millis as usize % timers.len()); }
                    _ => {
                        now += Duration::from_millis(millis);
                        wheel.advance(now);
                        for (deadline, timer) in &timers {
                            prop_assert!(!elapsed(timer) || *deadline <= now, "fired early");
                            prop_assert!(elapsed(timer) || now < *deadline + 2 * TICK, "fired late");
                        }
                    }
                }
            }
            let armed = timers.iter().filter(|(_, timer)| !elapsed(timer)).count();
            prop_assert_eq!(wheel.inner.borrow().armed, armed);
        }
    }
}
