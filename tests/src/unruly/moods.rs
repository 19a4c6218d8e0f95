//! What an unruly upstream does next: told at run time, by a share of the requests or one by one.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

/// Shared by an upstream and its test. `M` is a way to answer.
#[derive(Clone)]
pub struct Moods<M>(Arc<Mutex<State<M>>>);

struct State<M> {
    /// For requests that the mood does not hit.
    well: M,
    mood: M,
    /// How many of a hundred requests the mood hits.
    percent: f64,
    script: VecDeque<M>,
    rng: fastrand::Rng,
}

impl<M: Clone> Moods<M> {
    /// Well, until told otherwise. Shares are drawn with a fixed seed.
    pub fn new(well: M) -> Self {
        let state = State {
            mood: well.clone(),
            well,
            percent: 100.0,
            script: VecDeque::new(),
            rng: fastrand::Rng::with_seed(42),
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// From now on every request meets this mood.
    pub fn set(&self, mood: M) {
        self.set_share(mood, 100.0);
    }

    /// From now on so many of a hundred requests meet this mood, and the others are answered well.
    pub fn set_share(&self, mood: M, percent: f64) {
        let mut state = self.0.lock().unwrap();
        (state.mood, state.percent) = (mood, percent);
        state.script.clear();
    }

    /// Moods of the next requests, one each, before that which was set last.
    pub fn script(&self, moods: impl IntoIterator<Item = M>) {
        self.0.lock().unwrap().script.extend(moods);
    }

    /// The mood of the next request.
    pub fn draw(&self) -> M {
        let mut state = self.0.lock().unwrap();
        if let Some(next) = state.script.pop_front() {
            return next;
        }
        let hit = state.percent >= 100.0 || state.rng.f64() * 100.0 < state.percent;
        if hit { state.mood.clone() } else { state.well.clone() }
    }

    /// A number below `end`, from the same seed.
    pub fn below(&self, end: usize) -> usize {
        self.0.lock().unwrap().rng.usize(..end)
    }

    /// The mood that was set last, without drawing.
    pub fn current(&self) -> M {
        self.0.lock().unwrap().mood.clone()
    }
}
