//! What was accepted last, on disk: a node that starts while no control plane answers serves from it.
//!
//! One file, written anew as a whole: beside the old one, to the disk, then in its place. It begins with a magic number,
//! the version of the format, the length and a checksum of the rest; whatever is wrong with it is found before any of it
//! is used.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use twox_hash::XxHash64;
use weft_wire::{
    discovery::{Any, DeltaResponse, Resource},
    prost::{self, Message},
};

use super::state::{Accepted, Kind};

/// Name of the file in the directory.
const FILE: &str = "accepted";
const MAGIC: [u8; 8] = *b"WEFTNODE";
const VERSION: u32 = 1;
/// Magic, version, length, checksum.
const HEAD: usize = 8 + 4 + 8 + 8;
/// A larger file is none of ours.
const LARGEST: u64 = 4 << 30;
/// Between two writes.
const PAUSE: Duration = Duration::from_secs(1);
/// Writing takes at most one part in this many of the time.
const SHARE: u32 = 10;

/// The rest of the file.
#[derive(Clone, PartialEq, Message)]
#[prost(prost_path = "::weft_wire::prost")]
struct Saved {
    /// As if a member had sent it: one for each type.
    #[prost(message, repeated, tag = "1")]
    types: Vec<DeltaResponse>,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It begins with something else.
    #[error("it is not a cache of Weft's")]
    Foreign,
    /// Another version of Weft wrote it.
    #[error("it has version {0} of the format, and this is {VERSION}")]
    Version(u32),
    /// It ends too early.
    #[error("it is not complete")]
    Truncated,
    /// Its content has changed.
    #[error("its checksum is wrong")]
    Checksum,
    /// It does not say what it should.
    #[error("its content makes no sense: {0}")]
    Content(prost::DecodeError),
}

/// Keeps the file in line with what is accepted, on a thread of its own: disks are slow.
#[derive(Debug)]
pub struct Cache {
    changes: Option<mpsc::Sender<Vec<Accepted>>>,
    thread: Option<JoinHandle<()>>,
}

type Content = BTreeMap<(Kind, Arc<str>), (Arc<str>, Bytes)>;

impl Cache {
    /// Reads what is in the directory, which is made if it is not there. A file that cannot be used is put aside.
    ///
    /// # Errors
    /// When there is no such directory, and none can be made.
    pub fn open(dir: &Path) -> io::Result<(Self, Vec<Accepted>)> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let path = dir.join(FILE);
        let content = match read(&path) {
            Ok(content) => content,
            Err(damage) => {
                let aside = path.with_extension("damaged");
                let kept = fs::rename(&path, &aside);
                tracing::warn!(
                    file = %path.display(), reason = %damage, kept = kept.is_ok().then(|| aside.display().to_string()),
                    "the cached configuration cannot be used; waiting for a control plane"
                );
                Content::new()
            }
        };
        let saved = content.iter().map(|((kind, name), (version, value))| Accepted {
            kind: *kind,
            name: name.clone(),
            resource: Some((version.clone(), value.clone())),
        });
        let saved = saved.collect();
        let (sender, changes) = mpsc::channel();
        let mut writer = Writer { path, content, failing: false };
        let thread = std::thread::Builder::new().name("cache".into()).spawn(move || writer.run(&changes))?;
        Ok((Self { changes: Some(sender), thread: Some(thread) }, saved))
    }

    /// Writes this down, soon.
    pub fn note(&self, accepted: Vec<Accepted>) {
        if let Some(changes) = self.changes.as_ref().filter(|_| !accepted.is_empty()) {
            // The thread ends after the sender.
            let _ = changes.send(accepted);
        }
    }

    /// Returns once everything noted is on disk, or cannot be written.
    pub fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.changes.take());
        if let Some(thread) = self.thread.take() {
            // Had it panicked, that would have been said.
            let _ = thread.join();
        }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.end();
    }
}

struct Writer {
    path: PathBuf,
    content: Content,
    /// The last attempt failed, and it has been said.
    failing: bool,
}

impl Writer {
    /// Until nobody has anything to note any more.
    fn run(&mut self, changes: &mpsc::Receiver<Vec<Accepted>>) {
        let mut next = Instant::now();
        while let Ok(first) = changes.recv() {
            self.take(first);
            // What comes meanwhile is written together; when no more can come, at once.
            while let Ok(more) = changes.recv_timeout(next.saturating_duration_since(Instant::now())) {
                self.take(more);
            }
            let started = Instant::now();
            self.write_and_tell();
            next = started + PAUSE.max(started.elapsed() * SHARE);
        }
    }

    fn take(&mut self, accepted: Vec<Accepted>) {
        for Accepted { kind, name, resource } in accepted {
            match resource {
                Some(resource) => drop(self.content.insert((kind, name), resource)),
                None => drop(self.content.remove(&(kind, name))),
            }
        }
    }

    fn write_and_tell(&mut self) {
        match write(&self.path, &self.content) {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!(file = %self.path.display(), "the configuration is cached again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(
                        file = %self.path.display(), %error,
                        "the configuration cannot be cached: after a restart this node may begin with an older one"
                    );
                }
            }
        }
    }
}

/// No file is an empty one.
fn read(path: &Path) -> Result<Content, Damage> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::new()),
        Err(error) => return Err(error.into()),
    };
    let mut head = [0; HEAD];
    // A short file begins with zeros then, or with our magic number.
    let length = read_up_to(&mut file, &mut head)?;
    let (magic, rest) = head.split_at(8);
    if magic != MAGIC {
        return Err(Damage::Foreign);
    }
    if length < HEAD {
        return Err(Damage::Truncated);
    }
    let (version, rest) = rest.split_at(4);
    let (size, checksum) = rest.split_at(8);
    let version = version.iter().fold(0, |all, byte| all << 8 | u32::from(*byte));
    if version != VERSION {
        return Err(Damage::Version(version));
    }
    let size = number(size);
    if size > LARGEST || file.metadata()?.len() != HEAD as u64 + size {
        return Err(Damage::Truncated);
    }
    let mut body = Vec::new();
    file.read_to_end(&mut body)?;
    if XxHash64::oneshot(0, &body) != number(checksum) {
        return Err(Damage::Checksum);
    }
    let saved = Saved::decode(Bytes::from(body)).map_err(Damage::Content)?;
    let mut content = Content::new();
    for saved in saved.types {
        let Some(kind) = Kind::of(&saved.type_url) else { continue };
        for Resource { version, resource, name } in saved.resources {
            if let Some(Any { value, .. }) = resource {
                // Not as parts of the whole file, which would stay in memory as long as any of them.
                content.insert((kind, name.into()), (version.into(), Bytes::copy_from_slice(&value)));
            }
        }
    }
    Ok(content)
}

fn read_up_to(file: &mut File, mut buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(length),
            Ok(count) => {
                length += count;
                buffer = buffer.split_at_mut(count).1;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

fn write(path: &Path, content: &Content) -> io::Result<()> {
    let types = Kind::ALL.map(|kind| {
        let own = content.iter().filter(|((of, _), _)| *of == kind);
        let resources = own.map(|((_, name), (version, value))| Resource {
            version: version.to_string(),
            resource: Some(Any { type_url: kind.type_url().to_owned(), value: value.clone() }),
            name: name.to_string(),
        });
        DeltaResponse {
            type_url: kind.type_url().to_owned(),
            resources: resources.collect(),
            ..DeltaResponse::default()
        }
    });
    let body = Saved { types: types.into() }.encode_to_vec();
    let mut head = Vec::with_capacity(HEAD);
    head.extend(MAGIC);
    head.extend(VERSION.to_be_bytes());
    head.extend((body.len() as u64).to_be_bytes());
    head.extend(XxHash64::oneshot(0, &body).to_be_bytes());
    // Of this process: another one that has the same directory by mistake writes a whole file, too.
    let beside = path.with_extension(std::process::id().to_string());
    let written = put(&beside, &head, &body).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written?;
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

fn put(path: &Path, head: &[u8], body: &[u8]) -> io::Result<()> {
    // Documents may hold private keys.
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(head)?;
    file.write_all(body)?;
    file.sync_all()
}
