//! POLICY and BLOCKS.

use std::collections::{HashMap, HashSet};

use weft_ebpf_abi::{Policy, PolicyKey, access};

use super::{Seen, Store, StoreError};
use crate::maps::{Access, Block, content};

/// What was in POLICY before a service's port was changed; undone if the rest of the service does not fit.
pub(super) type Undo = HashMap<u64, Vec<(PolicyKey, Option<Policy>)>>;

pub(super) struct Policies {
    policies: HashMap<PolicyKey, Seen<Policy>>,
    groups: HashMap<u64, Seen<Group>>,
    /// Groups that did not fit, so that nobody tries again within one apply.
    unfit: HashSet<u64>,
    /// Removed with the next apply: a program may be about to look them up.
    retired: (Vec<PolicyKey>, Vec<u64>),
}

struct Group {
    blocks: Vec<Block>,
    /// Named after its content, it is all there once it was written.
    complete: bool,
}

impl Policies {
    pub(super) fn adopt(store: &dyn Store) -> Result<Self, StoreError> {
        let mut groups: HashMap<u64, Vec<Block>> = HashMap::new();
        for (prefix, key, access) in store.blocks()? {
            let group = u64::from(key.group[0]) | u64::from(key.group[1]) << 32;
            groups.entry(group).or_default().push(Block::from_key(prefix, &key, access));
        }
        let groups = groups.into_iter().map(|(group, mut blocks)| {
            blocks.sort_unstable();
            let complete = content(&blocks) == group;
            (group, Seen { value: Group { blocks, complete }, epoch: 0 })
        });
        let policies = store.policies()?.into_iter().map(|(key, value)| (key, Seen { value, epoch: 0 }));
        Ok(Self {
            policies: policies.collect(),
            groups: groups.collect(),
            unfit: HashSet::new(),
            retired: Default::default(),
        })
    }

    /// Removes what nobody can look up any more.
    pub(super) fn reclaim(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        self.unfit.clear();
        while let Some(key) = self.retired.0.last() {
            store.remove_policy(key)?;
            self.policies.remove(key);
            self.retired.0.pop();
        }
        while let Some(&group) = self.retired.1.last() {
            self.drop_group(group, store)?;
            self.retired.1.pop();
        }
        Ok(())
    }

    pub(super) fn waiting(&self) -> bool {
        !self.retired.0.is_empty() || !self.retired.1.is_empty()
    }

    /// Writes who may connect to a service's port: blocks first, then the workloads, last everybody else, so that nobody is
    /// taken for everybody else in between.
    pub(super) fn set(
        &mut self,
        service: u64,
        wanted: &Access,
        groups: &HashMap<u64, Vec<Block>>,
        epoch: u64,
        undo: &mut Undo,
        store: &mut dyn Store,
    ) -> Result<(), StoreError> {
        for (_, policy) in &wanted.policies {
            if policy.access == access::BY_ADDRESS
                && let Some(blocks) = groups.get(&policy.group)
            {
                self.set_group(policy.group, blocks, epoch, store)?;
            }
        }
        for &(workload, policy) in &wanted.policies {
            let key = PolicyKey { service, workload };
            match self.policies.get_mut(&key) {
                Some(seen) if seen.value == policy => seen.epoch = epoch,
                before => {
                    let before = before.map(|seen| seen.value);
                    store.set_policy(&key, &policy)?;
                    undo.entry(service).or_default().push((key, before));
                    self.policies.insert(key, Seen { value: policy, epoch });
                }
            }
        }
        Ok(())
    }

    /// Removes entries of workloads that are like everybody now: before anything new relies on policies.
    pub(super) fn trim(
        &mut self,
        epoch: u64,
        kept: &HashSet<u64>,
        undo: &mut Undo,
        store: &mut dyn Store,
    ) -> Result<(), StoreError> {
        let everybody = |key: &PolicyKey| self.policies.get(&PolicyKey { workload: 0, ..*key });
        let protected = |key: &PolicyKey| everybody(key).is_some_and(|seen| seen.epoch == epoch);
        let left = self.policies.iter().filter(|(_, seen)| seen.epoch != epoch);
        let left = left.filter(|(key, _)| protected(key) && !kept.contains(&key.service));
        for (key, value) in left.map(|(key, seen)| (*key, seen.value)).collect::<Vec<_>>() {
            store.remove_policy(&key)?;
            undo.entry(key.service).or_default().push((key, Some(value)));
            self.policies.remove(&key);
        }
        Ok(())
    }

    /// Takes back what was done to a service's port.
    pub(super) fn undo(
        &mut self,
        service: u64,
        undo: &mut Undo,
        epoch: u64,
        store: &mut dyn Store,
    ) -> Result<(), StoreError> {
        for (key, before) in undo.remove(&service).unwrap_or_default().into_iter().rev() {
            match before {
                Some(value) => {
                    store.set_policy(&key, &value)?;
                    self.policies.insert(key, Seen { value, epoch });
                }
                None => {
                    store.remove_policy(&key)?;
                    self.policies.remove(&key);
                }
            }
        }
        Ok(())
    }

    /// Has what this apply did not want removed by the next one. Services in `kept` keep what they have.
    pub(super) fn retire(&mut self, epoch: u64, kept: &HashSet<u64>) {
        let left = self.policies.iter().filter(|(key, seen)| seen.epoch != epoch && !kept.contains(&key.service));
        self.retired.0.extend(left.map(|(key, _)| *key));
        let left = self.groups.iter().filter(|(_, seen)| seen.epoch != epoch);
        let mut left: HashSet<u64> = left.map(|(group, _)| *group).collect();
        if !left.is_empty() {
            for (_, seen) in self.policies.iter().filter(|(key, _)| kept.contains(&key.service)) {
                left.remove(&seen.value.group);
            }
            self.retired.1.extend(left);
        }
    }

    fn set_group(&mut self, group: u64, blocks: &[Block], epoch: u64, store: &mut dyn Store) -> Result<(), StoreError> {
        if self.unfit.contains(&group) {
            return Err(StoreError::Full(super::Map::Blocks));
        }
        let empty = || Seen { value: Group { blocks: Vec::new(), complete: false }, epoch };
        let seen = self.groups.entry(group).or_insert_with(empty);
        seen.epoch = epoch;
        if seen.value.complete {
            return Ok(());
        }
        // Begun by somebody who did not get to the end of it, and in use by nobody.
        let there: HashSet<Block> = seen.value.blocks.iter().copied().collect();
        for block in blocks.iter().filter(|block| !there.contains(*block)) {
            match store.set_block(block.prefix, &block.key(group), block.access) {
                Ok(()) => seen.value.blocks.push(*block),
                Err(StoreError::Full(map)) => {
                    self.drop_group(group, store)?;
                    self.unfit.insert(group);
                    return Err(StoreError::Full(map));
                }
                Err(error) => return Err(error),
            }
        }
        seen.value.complete = true;
        Ok(())
    }

    fn drop_group(&mut self, group: u64, store: &mut dyn Store) -> Result<(), StoreError> {
        let Some(seen) = self.groups.get_mut(&group) else { return Ok(()) };
        seen.value.complete = false;
        while let Some(block) = seen.value.blocks.last() {
            store.remove_block(block.prefix, &block.key(group))?;
            seen.value.blocks.pop();
        }
        self.groups.remove(&group);
        Ok(())
    }
}
