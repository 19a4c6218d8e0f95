//! Who a data directory belongs to.

use std::path::Path;

use crate::codec::{Wire, checksum, wire};
use crate::fatal::Fatal;
use crate::snapshot::{Disk, Files};

const MAGIC: &[u8; 16] = b"weft member v1 \n";

/// A member's id and the incarnation that was drawn when its data directory was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: u64,
    pub(crate) incarnation: u64,
}

wire!(struct Identity { id, incarnation });

impl Identity {
    /// The identity in `path`, or none when there is no such file.
    pub(super) fn load(path: &Path) -> Result<Option<Self>, Fatal> {
        if !path.exists() {
            return Ok(None);
        }
        let file = std::fs::read(path).map_err(|error| Fatal::disk("read", path, error))?;
        let wrong = || Fatal::corrupt(path, "it is not what was written");
        let rest = file.strip_prefix(MAGIC).ok_or_else(wrong)?;
        let (sum, body) = rest.split_first_chunk::<8>().ok_or_else(wrong)?;
        if u64::from_le_bytes(*sum) != checksum(&[body]) {
            return Err(wrong());
        }
        Self::decode(body).map(Some).map_err(|_| wrong())
    }

    /// Draws an incarnation, and an id if none is given.
    pub(crate) fn drawn(id: Option<u64>) -> Self {
        let mut random = fastrand::Rng::new();
        // As large as JSON's readers can tell apart.
        let id = id.unwrap_or_else(|| random.u64(1..1 << 53));
        Self { id, incarnation: random.u64(1..) }
    }

    /// Keeps it in `path`.
    pub(crate) fn save(&self, path: &Path) -> Result<(), Fatal> {
        let body = self.encode();
        let file = [&MAGIC[..], &checksum(&[&body]).to_le_bytes(), &body].concat();
        let new = path.with_added_extension("new");
        let directory = path.parent().unwrap_or(Path::new("."));
        Disk.write(&new, &file)
            .and_then(|()| Disk.sync(&new))
            .and_then(|()| Disk.rename(&new, path))
            .and_then(|()| Disk.sync(directory))
            .map_err(|error| Fatal::disk("write", path, error))
    }
}
