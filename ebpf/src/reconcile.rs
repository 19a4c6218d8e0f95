//! Brings the kernel's maps in line with what is desired, while programs read them.
//!
//! ```text
//!  endpoints ─▶ blocks, then policies ─▶ workloads ─▶ tables in free slots ─▶ VIPS: the switch, one write each
//!                                                                                        │
//!  next apply: slots, places, blocks are free again ◀─ what nothing refers to any more ◀─┘
//! ```
//!
//! Nothing that is in force is overwritten: a connection meets the old table or the new one, never half of either. What
//! was replaced rests until the next apply, because a program may have read the way to it just before. What is in force
//! already is not written.

mod access;
mod places;
mod ranges;
mod report;
mod store;
mod tables;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use weft_ebpf_abi::{Action, Addr, Vip, VipKey};

use self::{
    access::{Policies, Undo},
    places::Places,
    report::Unfits,
    tables::{Extent, Tables},
};
pub use self::{
    report::{Removed, Report, Unfit},
    store::{Map, Store, StoreError},
};
use crate::maps::{Captured, Desired, Port, shares};

/// A value and the last apply that wanted it.
#[derive(Clone, Copy)]
struct Seen<T> {
    value: T,
    epoch: u64,
}

/// Knows what the maps hold.
pub struct Reconciler {
    epoch: u64,
    places: Places,
    tables: Tables,
    vips: HashMap<VipKey, Seen<Vip>>,
    policies: Policies,
    workloads: HashMap<u64, u64>,
    /// Not yet reported.
    removed: Vec<Removed>,
}

impl Reconciler {
    /// Takes over what a process before this one left. Places and generations of endpoints stay, and tables in force.
    pub fn adopt(store: &dyn Store) -> Result<Self, StoreError> {
        Self::adopt_sized(store, Map::Endpoints.size(), Map::Slots.size())
    }

    fn adopt_sized(store: &dyn Store, endpoints: u32, slots: u32) -> Result<Self, StoreError> {
        let mut tables = Tables::new(slots);
        let mut vips = HashMap::new();
        for (key, value) in store.vips()? {
            tables.adopt(Extent::of(&value), store)?;
            vips.insert(key, Seen { value, epoch: 0 });
        }
        Ok(Self {
            epoch: 0,
            places: Places::adopt(endpoints, store.endpoints()?),
            tables,
            vips,
            policies: Policies::adopt(store)?,
            workloads: store.workloads()?.into_iter().collect(),
            removed: Vec::new(),
        })
    }

    /// Puts `desired` in force. A service that does not fit into a map keeps what it had, see [`Report::unfit`]. After an
    /// error the maps are usable, and the next apply goes on from there.
    pub fn apply(&mut self, desired: &Desired, store: &mut dyn Store) -> Result<Report, StoreError> {
        self.reclaim(store)?;
        self.epoch += 1;
        let mut unfit = Unfits::default();
        let mut undo = Undo::new();

        self.places.begin();
        for (i, service) in desired.services.iter().enumerate() {
            unfit.note(i, self.set_endpoints(service, store))?;
        }
        self.places.end();
        for (i, service) in desired.services.iter().enumerate().filter(|(_, service)| service.access.is_some()) {
            if !unfit.services.contains_key(&i) {
                let done = self.set_policies(service, desired, &mut undo, store);
                self.undo_policies(service, &done, &mut undo, store)?;
                unfit.note(i, done)?;
            }
        }
        let unfit_workloads = self.set_workloads(desired, store)?;
        self.policies.trim(self.epoch, &self.kept(&unfit, desired), &mut undo, store)?;
        for (i, service) in desired.services.iter().enumerate() {
            if !unfit.services.contains_key(&i) {
                let done = self.set_vips(service, store);
                self.undo_policies(service, &done, &mut undo, store)?;
                unfit.note(i, done)?;
            }
        }

        let kept = self.kept(&unfit, desired);
        self.remove_vips(&kept, store)?;
        self.policies.retire(self.epoch, &kept);
        self.places.sweep(self.epoch, &kept, store, &mut self.removed)?;
        let unfit = unfit.named(desired, unfit_workloads);
        Ok(Report { removed: std::mem::take(&mut self.removed), again: !unfit.is_empty() && self.waiting(), unfit })
    }

    /// Gives back what was replaced by the last apply; the next one begins with it. Programs that began before the last
    /// apply ended must have ended: they take microseconds.
    pub fn reclaim(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        self.places.reclaim();
        self.tables.reclaim();
        self.policies.reclaim(store)
    }

    /// Whether [`Self::reclaim`] has something to do.
    pub fn waiting(&self) -> bool {
        self.places.waiting() || self.tables.waiting() || self.policies.waiting()
    }

    /// Has an endpoint passed over, or no longer: at once, before its service gets another table. `false`: there is no
    /// such endpoint.
    pub fn mask(&mut self, live: u64, masked: bool, store: &mut dyn Store) -> Result<bool, StoreError> {
        self.places.mask(live, masked, store)
    }

    /// Place and generation of one of the proxy's endpoints.
    pub fn place_of(&self, live: u64) -> Option<(u32, u32)> {
        self.places.place_of(live)
    }

    /// The proxy's endpoint that has this place with this generation.
    pub fn live_of(&self, place: u32, generation: u32) -> Option<u64> {
        self.places.live_of(place, generation)
    }

    /// Address of the endpoint that has, or had last, this place with this generation.
    pub fn address_of(&self, place: u32, generation: u32) -> Option<SocketAddr> {
        self.places.address_of(place, generation)
    }

    /// Endpoints that are there keep up even if new ones have no room.
    fn set_endpoints(&mut self, service: &Captured, store: &mut dyn Store) -> Result<(), StoreError> {
        let mut new = 0;
        for port in &service.ports {
            for endpoint in &port.endpoints {
                match self.places.at(port.id, endpoint) {
                    Some(at) => _ = self.places.ensure(port.id, endpoint, Some(at), self.epoch, store)?,
                    None => new += 1,
                }
            }
        }
        if new > self.places.room() {
            return Err(StoreError::Full(Map::Endpoints));
        }
        if new > 0 {
            for port in &service.ports {
                for endpoint in &port.endpoints {
                    if self.places.at(port.id, endpoint).is_none() {
                        self.places.ensure(port.id, endpoint, None, self.epoch, store)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn set_policies(
        &mut self,
        service: &Captured,
        desired: &Desired,
        undo: &mut Undo,
        store: &mut dyn Store,
    ) -> Result<(), StoreError> {
        if let Some(access) = service.access.as_ref().filter(|_| !service.vips.is_empty()) {
            for port in &service.ports {
                self.policies.set(port.id, access, &desired.groups, self.epoch, undo, store)?;
            }
        }
        Ok(())
    }

    /// If the service does not fit.
    fn undo_policies(
        &mut self,
        service: &Captured,
        done: &Result<(), StoreError>,
        undo: &mut Undo,
        store: &mut dyn Store,
    ) -> Result<(), StoreError> {
        if matches!(done, Err(StoreError::Full(_))) {
            for port in &service.ports {
                self.policies.undo(port.id, undo, self.epoch, store)?;
            }
        }
        Ok(())
    }

    /// Those that did not fit are returned.
    fn set_workloads(&mut self, desired: &Desired, store: &mut dyn Store) -> Result<Vec<u64>, StoreError> {
        let gone = self.workloads.keys().filter(|cgroup| !desired.workloads.contains_key(cgroup));
        for cgroup in gone.copied().collect::<Vec<_>>() {
            store.remove_workload(cgroup)?;
            self.workloads.remove(&cgroup);
        }
        let mut unfit = Vec::new();
        for (&cgroup, &workload) in &desired.workloads {
            if self.workloads.get(&cgroup) == Some(&workload) {
                continue;
            }
            match store.set_workload(cgroup, workload) {
                Ok(()) => _ = self.workloads.insert(cgroup, workload),
                Err(StoreError::Full(_)) => unfit.push(workload),
                Err(error) => return Err(error),
            }
        }
        Ok(unfit)
    }

    /// Switches a service's addresses. All of them, or none.
    fn set_vips(&mut self, service: &Captured, store: &mut dyn Store) -> Result<(), StoreError> {
        let mut undo = Vec::new();
        let done = self.try_vips(service, &mut undo, store);
        if matches!(done, Err(StoreError::Full(_))) {
            for (key, before) in undo.into_iter().rev() {
                match before {
                    Some(vip) => self.set_vip(key, vip, &mut Vec::new(), store)?,
                    None => self.remove_vip(key, store)?,
                }
            }
        }
        done
    }

    fn try_vips(
        &mut self,
        service: &Captured,
        undo: &mut Vec<(VipKey, Option<Vip>)>,
        store: &mut dyn Store,
    ) -> Result<(), StoreError> {
        for port in &service.ports {
            // A socket of IPv4 cannot reach IPv6; one of IPv6 reaches IPv4 by v4-mapped addresses.
            for v4 in [true, false] {
                let vips = service.vips.iter().filter(|vip| vip.is_v4() == v4);
                let keys = vips.map(|&addr| VipKey { addr, port: port.port });
                if keys.clone().next().is_none() {
                    continue;
                }
                let extent = self.table(service, port, v4, store)?;
                let Port { id: service, action, flags, .. } = *port;
                let Extent { base, slots, list, listed } = extent;
                let vip = Vip { service, action: action as u8, flags, base, slots, list, listed, ..Vip::default() };
                for key in keys {
                    self.set_vip(key, vip, undo, store)?;
                }
            }
        }
        // Last: a new service would refuse its own ports.
        for &addr in &service.vips {
            let vip = Vip { service: service.id, action: Action::Refuse as u8, ..Vip::default() };
            self.set_vip(VipKey { addr, port: 0 }, vip, undo, store)?;
        }
        Ok(())
    }

    /// The table for a port's addresses of one family: that in force, if nothing changed.
    fn table(
        &mut self,
        service: &Captured,
        port: &Port,
        v4: bool,
        store: &mut dyn Store,
    ) -> Result<Extent, StoreError> {
        let (table, list) = if port.table { self.content(port, v4) } else { Default::default() };
        // Of the other family too: without endpoints of IPv6 both have one.
        for &addr in &service.vips {
            if let Some(seen) = self.vips.get(&VipKey { addr, port: port.port }) {
                let extent = Extent::of(&seen.value);
                if self.tables.holds(&extent, &table, &list) {
                    return Ok(extent);
                }
            }
        }
        self.tables.write(&table, &list, store)
    }

    /// Each endpoint as often as its weight says, and each once.
    fn content(&self, port: &Port, v4: bool) -> (Vec<u32>, Vec<u32>) {
        let reachable = port.endpoints.iter().filter(|endpoint| endpoint.weight > 0 && (!v4 || endpoint.addr.is_v4()));
        // If none is usable all are in: a service is not made unreachable by a suspicion.
        let panic = !reachable.clone().any(|endpoint| endpoint.usable);
        let picked = reachable.filter(|endpoint| panic || endpoint.usable);
        let found = picked.filter_map(|endpoint| Some((self.places.at(port.id, endpoint)?, endpoint.weight)));
        let (list, weights): (Vec<u32>, Vec<u32>) = found.unzip();
        let shares = shares(&weights);
        let table = list.iter().zip(shares).flat_map(|(&place, share)| std::iter::repeat_n(place, share as usize));
        (table.collect(), list)
    }

    fn set_vip(
        &mut self,
        key: VipKey,
        vip: Vip,
        undo: &mut Vec<(VipKey, Option<Vip>)>,
        store: &mut dyn Store,
    ) -> Result<(), StoreError> {
        let before = match self.vips.get_mut(&key) {
            Some(seen) if seen.value == vip => {
                seen.epoch = self.epoch;
                return Ok(());
            }
            before => before.map(|seen| seen.value),
        };
        store.set_vip(&key, &vip)?;
        undo.push((key, before));
        self.vips.insert(key, Seen { value: vip, epoch: self.epoch });
        self.tables.hold(&Extent::of(&vip));
        if let Some(before) = before {
            self.tables.release(&Extent::of(&before));
        }
        Ok(())
    }

    /// Ids of what did not fit, and of what is in force for it.
    fn kept(&self, unfit: &Unfits, desired: &Desired) -> HashSet<u64> {
        let services = unfit.services.keys().map(|&i| &desired.services[i]);
        let mut kept: HashSet<u64> =
            services.flat_map(|service| service.ports.iter().map(|port| port.id).chain([service.id])).collect();
        if !kept.is_empty() {
            let whole = self.vips.iter().filter(|(key, seen)| key.port == 0 && kept.contains(&seen.value.service));
            let addrs: HashSet<Addr> = whole.map(|(key, _)| key.addr).collect();
            kept.extend(
                self.vips.iter().filter(|(key, _)| addrs.contains(&key.addr)).map(|(_, seen)| seen.value.service),
            );
        }
        kept
    }

    fn remove_vip(&mut self, key: VipKey, store: &mut dyn Store) -> Result<(), StoreError> {
        store.remove_vip(&key)?;
        if let Some(seen) = self.vips.remove(&key) {
            self.tables.release(&Extent::of(&seen.value));
        }
        Ok(())
    }

    fn remove_vips(&mut self, kept: &HashSet<u64>, store: &mut dyn Store) -> Result<(), StoreError> {
        let gone = self.vips.iter().filter(|(_, seen)| seen.epoch != self.epoch && !kept.contains(&seen.value.service));
        let mut gone: Vec<VipKey> = gone.map(|(key, _)| *key).collect();
        // That for all other ports first: it would refuse the ports of a service that is going.
        gone.sort_unstable_by_key(|key| key.port);
        gone.into_iter().try_for_each(|key| self.remove_vip(key, store))
    }
}
