//! Places in ENDPOINTS: who has which, and since when.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::SocketAddr,
};

use weft_ebpf_abi::{Addr, Endpoint};

use super::{Removed, Store, StoreError};
use crate::maps;

/// An endpoint of a service's port.
type Who = (u64, Addr, u32);

struct Place {
    /// As ENDPOINTS has it. A place that is free keeps the address, for programs and events that are late.
    endpoint: Endpoint,
    /// One of the proxy's endpoints.
    live: Option<u64>,
    /// The last apply that wanted it.
    seen: u64,
    /// The apply that made it.
    born: u64,
}

impl Place {
    fn who(&self) -> Option<Who> {
        let Endpoint { service, addr, port, .. } = self.endpoint;
        (service != 0).then_some((service, addr, port))
    }
}

pub(super) struct Places {
    size: u32,
    places: Vec<Place>,
    by_who: HashMap<Who, u32>,
    /// Can have a new owner; the one that has been free for longest first.
    vacant: VecDeque<u32>,
    /// Can have one from the next apply on.
    resting: Vec<u32>,
    /// Place and generation.
    by_live: HashMap<u64, (u32, u32)>,
    next_by_live: HashMap<u64, (u32, u32)>,
}

impl Places {
    pub(super) fn adopt(size: u32, found: Vec<(u32, Endpoint)>) -> Self {
        let mut places = Vec::new();
        for (at, endpoint) in found {
            if at < size {
                while places.len() <= at as usize {
                    places.push(Place { endpoint: Endpoint::default(), live: None, seen: 0, born: 0 });
                }
                places[at as usize].endpoint = endpoint;
            }
        }
        let mut by_who = HashMap::new();
        let mut vacant = VecDeque::new();
        for (at, place) in (0..).zip(&places) {
            match place.who() {
                Some(who) => _ = by_who.entry(who).or_insert(at),
                None => vacant.push_back(at),
            }
        }
        Self {
            size,
            places,
            by_who,
            vacant,
            resting: Vec::new(),
            by_live: HashMap::new(),
            next_by_live: HashMap::new(),
        }
    }

    /// Programs that read these places when they had an owner have ended.
    pub(super) fn reclaim(&mut self) {
        self.vacant.extend(self.resting.drain(..));
    }

    pub(super) fn waiting(&self) -> bool {
        !self.resting.is_empty()
    }

    pub(super) fn at(&self, service: u64, endpoint: &maps::Endpoint) -> Option<u32> {
        self.by_who.get(&(service, endpoint.addr, endpoint.port)).copied()
    }

    /// How many endpoints more there is room for.
    pub(super) fn room(&self) -> usize {
        self.vacant.len() + self.size as usize - self.places.len().min(self.size as usize)
    }

    /// Starts to note whom the proxy's endpoints are now.
    pub(super) fn begin(&mut self) {
        self.next_by_live = HashMap::with_capacity(self.by_live.len());
    }

    /// All endpoints were noted.
    pub(super) fn end(&mut self) {
        self.by_live = std::mem::take(&mut self.next_by_live);
    }

    /// Brings an endpoint's place up to date, and finds one if it has none; there must be room then.
    pub(super) fn ensure(
        &mut self,
        service: u64,
        wanted: &maps::Endpoint,
        at: Option<u32>,
        epoch: u64,
        store: &mut dyn Store,
    ) -> Result<u32, StoreError> {
        let masked = u32::from(!wanted.usable);
        let at = match at {
            Some(at) => {
                let endpoint = Endpoint { masked, source: wanted.source, ..self.places[at as usize].endpoint };
                self.set(at, endpoint, store)?;
                at
            }
            None => self.occupy(service, wanted, masked, epoch, store)?,
        };
        let place = &mut self.places[at as usize];
        place.seen = epoch;
        place.live = wanted.live.first().copied();
        for &live in &wanted.live {
            self.next_by_live.insert(live, (at, place.endpoint.generation));
        }
        Ok(at)
    }

    fn occupy(
        &mut self,
        service: u64,
        wanted: &maps::Endpoint,
        masked: u32,
        epoch: u64,
        store: &mut dyn Store,
    ) -> Result<u32, StoreError> {
        // Places that were never used come first: the longer a place rests, the fewer late events meet a new owner.
        let at = if (self.places.len() as u32) < self.size {
            self.places.push(Place { endpoint: Endpoint::default(), live: None, seen: 0, born: 0 });
            let at = self.places.len() as u32 - 1;
            self.vacant.push_front(at);
            at
        } else {
            self.vacant.front().copied().ok_or(StoreError::Full(super::Map::Endpoints))?
        };
        let before = self.places[at as usize].endpoint;
        if before.generation != 0 {
            store.zero_stats(at)?;
            store.clear_hold(at)?;
        }
        let endpoint = Endpoint {
            service,
            addr: wanted.addr,
            source: wanted.source,
            port: wanted.port,
            generation: before.generation.checked_add(1).unwrap_or(1),
            masked,
            pad: 0,
        };
        store.set_endpoint(at, &endpoint)?;
        self.vacant.pop_front();
        let place = &mut self.places[at as usize];
        place.endpoint = endpoint;
        place.born = epoch;
        self.by_who.insert((service, wanted.addr, wanted.port), at);
        Ok(at)
    }

    /// Frees the places that this apply did not want. Services in `kept` keep those that they had before it.
    pub(super) fn sweep(
        &mut self,
        epoch: u64,
        kept: &HashSet<u64>,
        store: &mut dyn Store,
        removed: &mut Vec<Removed>,
    ) -> Result<(), StoreError> {
        for at in 0..self.places.len() as u32 {
            let place = &mut self.places[at as usize];
            let Some(who) = place.who() else { continue };
            let wanted = if kept.contains(&who.0) { place.born != epoch } else { place.seen == epoch };
            if wanted {
                continue;
            }
            // The rest stays: who read the old table and finds nobody better connects to the old endpoint.
            let endpoint = Endpoint { service: 0, ..place.endpoint };
            store.set_endpoint(at, &endpoint)?;
            place.endpoint = endpoint;
            place.live = None;
            if self.by_who.get(&who) == Some(&at) {
                self.by_who.remove(&who);
            }
            self.resting.push(at);
            if place.born != epoch {
                removed.push(Removed {
                    place: at,
                    generation: endpoint.generation,
                    address: socket_addr(&endpoint),
                    service: who.0,
                });
            }
        }
        Ok(())
    }

    /// Masks an endpoint, or ends that. `false`: there is no such endpoint.
    pub(super) fn mask(&mut self, live: u64, masked: bool, store: &mut dyn Store) -> Result<bool, StoreError> {
        let Some((at, _)) = self.place_of(live) else { return Ok(false) };
        let endpoint = Endpoint { masked: u32::from(masked), ..self.places[at as usize].endpoint };
        self.set(at, endpoint, store)?;
        Ok(true)
    }

    fn set(&mut self, at: u32, endpoint: Endpoint, store: &mut dyn Store) -> Result<(), StoreError> {
        if self.places[at as usize].endpoint != endpoint {
            store.set_endpoint(at, &endpoint)?;
            self.places[at as usize].endpoint = endpoint;
        }
        Ok(())
    }

    pub(super) fn place_of(&self, live: u64) -> Option<(u32, u32)> {
        let (at, generation) = *self.by_live.get(&live)?;
        self.of_generation(at, generation).filter(|place| place.endpoint.service != 0)?;
        Some((at, generation))
    }

    pub(super) fn live_of(&self, at: u32, generation: u32) -> Option<u64> {
        self.of_generation(at, generation)?.live
    }

    pub(super) fn address_of(&self, at: u32, generation: u32) -> Option<SocketAddr> {
        Some(socket_addr(&self.of_generation(at, generation)?.endpoint))
    }

    fn of_generation(&self, at: u32, generation: u32) -> Option<&Place> {
        let place = self.places.get(at as usize)?;
        (place.endpoint.generation == generation && generation != 0).then_some(place)
    }
}

fn socket_addr(endpoint: &Endpoint) -> SocketAddr {
    SocketAddr::new(endpoint.addr.into(), endpoint.port as u16)
}
