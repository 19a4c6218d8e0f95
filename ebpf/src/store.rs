//! The kernel's maps, typed.

mod reconciled;

use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, RingBuf, SkStorage},
};
use weft_ebpf_abi::{BlockKey, Connection, Endpoint, Meta, Namespace, Policy, PolicyKey, Settings, Stats, Vip, VipKey};

use crate::{pins::Pins, programs::EbpfSetupError};

/// Every map that the agent reads or writes.
pub struct Maps {
    pub(crate) settings: Array<MapData, Settings>,
    pub(crate) heartbeat: Array<MapData, u64>,
    pub(crate) vips: HashMap<MapData, VipKey, Vip>,
    pub(crate) slots: Array<MapData, u32>,
    pub(crate) endpoints: Array<MapData, Endpoint>,
    pub(crate) hold: Array<MapData, u64>,
    pub(crate) stats: PerCpuArray<MapData, Stats>,
    pub(crate) workloads: HashMap<MapData, u64, u64>,
    pub(crate) policy: HashMap<MapData, PolicyKey, Policy>,
    pub(crate) blocks: LpmTrie<MapData, BlockKey, u32>,
    pub(crate) namespaces: HashMap<MapData, u64, Namespace>,
    pub(crate) connections: HashMap<MapData, u64, Connection>,
    pub(crate) verdicts: PerCpuArray<MapData, u64>,
    pub(crate) event_rate: PerCpuArray<MapData, [u64; 3]>,
}

impl Maps {
    /// Those of an object that was just loaded.
    ///
    /// # Errors
    /// When one is missing, or is not what it should be.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, EbpfSetupError> {
        Self::from(|name| ebpf.take_map(name).ok_or(MapError::InvalidName { name: name.into() }))
    }

    /// Those that are pinned, whoever loaded them.
    ///
    /// # Errors
    /// When there are none, or this process may not open them.
    pub fn pinned(pins: &Pins) -> Result<Self, EbpfSetupError> {
        Self::from(|name| Map::from_map_data(MapData::from_pin(pins.map(name))?))
    }

    fn from(mut map: impl FnMut(&'static str) -> Result<Map, MapError>) -> Result<Self, EbpfSetupError> {
        // The type that a map is converted to is that of the field.
        macro_rules! typed {
            ($name:literal) => {
                map($name)
                    .and_then(|map| map.try_into())
                    .map_err(|source| EbpfSetupError::Map { name: $name, source })?
            };
        }
        Ok(Self {
            settings: typed!("SETTINGS"),
            heartbeat: typed!("HEARTBEAT"),
            vips: typed!("VIPS"),
            slots: typed!("SLOTS"),
            endpoints: typed!("ENDPOINTS"),
            hold: typed!("HOLD"),
            stats: typed!("STATS"),
            workloads: typed!("WORKLOADS"),
            policy: typed!("POLICY"),
            blocks: typed!("BLOCKS"),
            namespaces: typed!("NAMESPACES"),
            connections: typed!("CONNECTIONS"),
            verdicts: typed!("VERDICTS"),
            event_rate: typed!("EVENT_RATE"),
        })
    }

    /// The counters of an endpoint, over all cores.
    pub fn stats(&self, place: u32) -> Result<Stats, MapError> {
        let mut sum = Stats::default();
        let mut measured = (0_u64, 0_u64);
        for one in self.stats.get(&place, 0)?.iter() {
            sum.attempts += one.attempts;
            sum.established += one.established;
            sum.refused += one.refused;
            sum.timed_out += one.timed_out;
            sum.aborted += one.aborted;
            sum.closed += one.closed;
            sum.rto += one.rto;
            sum.retransmits += one.retransmits;
            if one.srtt_us > 0 {
                measured.0 += u64::from(one.srtt_us);
                measured.1 += 1;
            }
        }
        sum.srtt_us = measured.0.checked_div(measured.1).unwrap_or(0) as u32;
        Ok(sum)
    }

    /// A counter of verdicts, over all cores.
    pub fn verdict(&self, counter: u32) -> u64 {
        self.verdicts.get(&counter, 0).map_or(0, |all| all.iter().sum())
    }

    /// Events that were lost because there were too many.
    pub fn lost_events(&self) -> u64 {
        self.event_rate.get(&0, 0).map_or(0, |all| all.iter().map(|rate| rate[2]).sum())
    }
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

/// Opens the storage of sockets a second time: whoever reads it does not wait for whoever writes it.
///
/// # Errors
/// When it is not pinned.
pub(crate) fn socket_storage(pins: &Pins) -> Result<SkStorage<MapData, Meta>, EbpfSetupError> {
    let open = || Map::from_map_data(MapData::from_pin(pins.map("META"))?)?.try_into();
    open().map_err(|source| EbpfSetupError::Map { name: "META", source })
}

/// The heartbeat, opened a second time.
///
/// # Errors
/// When it is not pinned.
pub(crate) fn heartbeat(pins: &Pins) -> Result<Array<MapData, u64>, EbpfSetupError> {
    let open = || Map::from_map_data(MapData::from_pin(pins.map("HEARTBEAT"))?)?.try_into();
    open().map_err(|source| EbpfSetupError::Map { name: "HEARTBEAT", source })
}

/// The ring of events.
///
/// # Errors
/// When it is not pinned.
pub(crate) fn events(pins: &Pins) -> Result<RingBuf<MapData>, EbpfSetupError> {
    let open = || Map::from_map_data(MapData::from_pin(pins.map("EVENTS"))?)?.try_into();
    open().map_err(|source| EbpfSetupError::Map { name: "EVENTS", source })
}
