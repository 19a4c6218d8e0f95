//! `weft_rate_limited_total`: refusals by route and limit. Both are names from the configuration.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{Arc, Mutex},
};

use super::{Samples, Slot, histogram::Count, lock};

/// The part that the scraper reads.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<Vec<Arc<Cell>>>);

#[derive(Debug)]
struct Cell {
    slot: Arc<Slot>,
    limit: Arc<str>,
    count: Count,
}

/// The part of one worker: cells by slot and limit.
#[derive(Debug, Default)]
pub(super) struct Limited(RefCell<HashMap<u32, Vec<Arc<Cell>>, foldhash::fast::RandomState>>);

impl Limited {
    /// Counts one refusal.
    pub(super) fn count(&self, slot: &Arc<Slot>, limit: &Arc<str>, shared: &Shared) {
        let mut cells = self.0.borrow_mut();
        // As many as the route has limits, or had.
        let cells = cells.entry(slot.index).or_default();
        if let Some(cell) = cells.iter().find(|cell| cell.limit == *limit) {
            return cell.count.add(1);
        }
        let cell = Arc::new(Cell { slot: slot.clone(), limit: limit.clone(), count: Count::default() });
        cell.count.add(1);
        lock(&shared.0).push(cell.clone());
        cells.push(cell);
    }
}

impl Shared {
    pub(super) fn collect(&self, samples: &mut Samples) {
        let cells = lock(&self.0).clone();
        for Cell { slot, limit, count } in cells.iter().map(|cell| &**cell) {
            let labels = [("route", &*slot.route), ("policy", &**limit)];
            samples.add("weft_rate_limited_total", &labels, count.get() as f64);
        }
    }
}
