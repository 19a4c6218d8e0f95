//! Tables of endpoints in SLOTS: written into free space, never changed, given back when nobody can read them any more.

use std::collections::HashMap;

use weft_ebpf_abi::Vip;

use super::{Map, Store, StoreError, ranges::Ranges};

/// Where a table and its list are, as a [`Vip`] has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Extent {
    pub base: u32,
    pub slots: u32,
    pub list: u32,
    pub listed: u32,
}

impl Extent {
    pub(super) fn of(vip: &Vip) -> Self {
        Self { base: vip.base, slots: vip.slots, list: vip.list, listed: vip.listed }
    }

    /// What it takes of SLOTS: the list may be the table itself.
    fn ranges(&self) -> [(u32, u32); 2] {
        let list = if (self.list, self.listed) == (self.base, self.slots) { 0 } else { self.listed };
        [(self.base, self.slots), (self.list, list)]
    }
}

pub(super) struct Tables {
    free: Ranges,
    /// SLOTS as written.
    slots: Vec<u32>,
    /// How many entries of VIPS refer to each.
    used: HashMap<Extent, u32>,
    /// Those that nobody refers to, perhaps; freed with the next apply.
    loose: Vec<Extent>,
}

impl Tables {
    pub(super) fn new(size: u32) -> Self {
        Self { free: Ranges::new(size), slots: Vec::new(), used: HashMap::new(), loose: Vec::new() }
    }

    /// Takes over what an entry of VIPS refers to.
    pub(super) fn adopt(&mut self, extent: Extent, store: &dyn Store) -> Result<(), StoreError> {
        if extent.slots == 0 {
            return Ok(());
        }
        if let Some(users) = self.used.get_mut(&extent) {
            *users += 1;
            return Ok(());
        }
        let [table, list] = extent.ranges();
        if !self.free.reserve(table.0, table.1) {
            // Not written by us. It is nobody's, so the entry gets a table of its own.
            return Ok(());
        }
        if !self.free.reserve(list.0, list.1) {
            self.free.give(table.0, table.1);
            return Ok(());
        }
        for (at, count) in [table, list] {
            let read = store.slots(at, count)?;
            self.remember(at, &read);
        }
        self.used.insert(extent, 1);
        Ok(())
    }

    /// Whether it is a table of ours with this content.
    pub(super) fn holds(&self, extent: &Extent, table: &[u32], list: &[u32]) -> bool {
        let content = |at: u32, count: u32| self.slots.get(at as usize..at as usize + count as usize);
        extent.slots as usize == table.len()
            && extent.listed as usize == list.len()
            && content(extent.base, extent.slots) == Some(table)
            && content(extent.list, extent.listed) == Some(list)
            && (table.is_empty() || self.used.contains_key(extent))
    }

    /// Writes a table and its list into free space.
    pub(super) fn write(&mut self, table: &[u32], list: &[u32], store: &mut dyn Store) -> Result<Extent, StoreError> {
        if table.is_empty() {
            return Ok(Extent::default());
        }
        let slots = table.len() as u32;
        let listed = list.len() as u32;
        let apart = if table == list { 0 } else { listed };
        let base = self.free.take(slots + apart).ok_or(StoreError::Full(Map::Slots))?;
        let extent = Extent { base, slots, list: if apart == 0 { base } else { base + slots }, listed };
        self.used.insert(extent, 0);
        self.loose.push(extent);
        for (at, content) in [(base, table), (extent.list, &list[..apart as usize])] {
            if !content.is_empty() {
                store.set_slots(at, content)?;
                self.remember(at, content);
            }
        }
        Ok(extent)
    }

    /// An entry of VIPS refers to it now.
    pub(super) fn hold(&mut self, extent: &Extent) {
        if let Some(users) = self.used.get_mut(extent) {
            *users += 1;
        }
    }

    /// An entry of VIPS refers to it no longer.
    pub(super) fn release(&mut self, extent: &Extent) {
        if let Some(users) = self.used.get_mut(extent) {
            *users = users.saturating_sub(1);
            if *users == 0 {
                self.loose.push(*extent);
            }
        }
    }

    /// Frees what nobody refers to. Programs that read an entry before it was replaced must have ended.
    pub(super) fn reclaim(&mut self) {
        for extent in std::mem::take(&mut self.loose) {
            if self.used.get(&extent) == Some(&0) {
                self.used.remove(&extent);
                for (at, count) in extent.ranges() {
                    self.free.give(at, count);
                }
            }
        }
    }

    /// Whether [`Self::reclaim`] would free something.
    pub(super) fn waiting(&self) -> bool {
        self.loose.iter().any(|extent| self.used.get(extent) == Some(&0))
    }

    fn remember(&mut self, at: u32, content: &[u32]) {
        let end = at as usize + content.len();
        if self.slots.len() < end {
            self.slots.resize(end, 0);
        }
        self.slots[at as usize..end].copy_from_slice(content);
    }
}
