//! Where a rate limit keeps what it knows of its keys: a table that never grows beyond [`CAPACITY`].

use std::fmt;

/// Most keys that one limit tells apart. At 16 bytes each that is 2 MiB.
pub const CAPACITY: usize = SEGMENTS * BUCKETS * WAYS;

/// Each segment grows and shrinks by itself, so that no request waits for more than one of them to be copied.
const SEGMENTS: usize = 256;
/// Buckets of a segment at its largest.
const BUCKETS: usize = 32;
/// Entries of a bucket. A key has its place in one bucket; when that is full, one of these goes.
const WAYS: usize = 16;

/// From hashed keys to theoretical arrival times (TAT), in nanoseconds of the limit's own clock.
///
/// An entry whose TAT has passed means the same as no entry: its budget is full. So there is nothing to expire and no
/// list of what is free, a place is free when its TAT has passed. Hence also the choice of who goes when a bucket is
/// full of live entries: the one with the smallest TAT, which has the least to lose.
pub struct Store {
    segments: Box<[Segment]>,
    /// Entries that have been written and not yet cleared.
    len: usize,
    /// Segment that is tidied next.
    next: usize,
}

/// Empty, or a power of two of buckets.
type Segment = Box<[Bucket]>;
type Bucket = [Entry; WAYS];

#[derive(Clone, Copy, Default)]
struct Entry {
    key: u64,
    tat: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self { segments: vec![Segment::default(); SEGMENTS].into(), len: 0, next: 0 }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Store {
    /// The TAT of a key. What was never written, or was forgotten, has none.
    pub fn get(&self, key: u64) -> Option<u64> {
        let segment = &self.segments[segment_of(key)];
        let bucket = segment.get(bucket_of(key, segment.len()))?;
        bucket.iter().find(|entry| entry.key == key).map(|entry| entry.tat)
    }

    /// Notes the TAT of a key.
    pub fn set(&mut self, key: u64, tat: u64, now: u64) {
        let segment = &mut self.segments[segment_of(key)];
        let place = loop {
            let at = bucket_of(key, segment.len());
            // Found again, or the smallest TAT: free if it has passed, otherwise whoever loses least.
            let best = segment.get(at).map(|bucket| place_of(bucket, key));
            match best {
                Some(way) if !segment[at][way].is_in_the_way(key, now) || segment.len() == BUCKETS => {
                    break &mut segment[at][way];
                }
                _ => self.len -= grow(segment, now),
            }
        };
        self.len += usize::from(place.tat == 0);
        *place = Entry { key, tat };
    }

    /// Forgets what has passed in one segment, and gives memory back that it does not need any more. Called now and
    /// then: it costs about a microsecond.
    pub fn tidy(&mut self, now: u64) {
        let segment = &mut self.segments[self.next];
        self.next = (self.next + 1) % SEGMENTS;
        let mut live = 0;
        for entry in segment.iter_mut().flatten().filter(|entry| entry.tat > 0) {
            if entry.tat > now {
                live += 1;
            } else {
                *entry = Entry::default();
                self.len -= 1;
            }
        }
        if live == 0 {
            *segment = Segment::default();
        } else if segment.len() > 1 && live * 8 <= segment.len() * WAYS {
            let before = std::mem::take(segment);
            self.len -= live;
            for entry in before.iter().flatten().filter(|entry| entry.tat > 0) {
                self.set(entry.key, entry.tat, now);
            }
        }
    }

    /// How many steps of [`Self::tidy`] it takes to look at everything.
    pub const STEPS: usize = SEGMENTS;

    /// How many keys it holds; some of them may have passed.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Memory in use, in bytes.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        let buckets: usize = self.segments.iter().map(|segment| segment.len()).sum();
        buckets * size_of::<Bucket>() + size_of_val(&*self.segments)
    }
}

impl Entry {
    /// Whether it is somebody else's and still means something.
    const fn is_in_the_way(&self, key: u64, now: u64) -> bool {
        self.key != key && self.tat > now
    }
}

/// Keys are hashes: any of their bits will do, as long as the two choices take different ones.
const fn segment_of(key: u64) -> usize {
    (key >> 32) as usize % SEGMENTS
}

const fn bucket_of(key: u64, buckets: usize) -> usize {
    key as usize & buckets.wrapping_sub(1)
}

/// Where a key is, or else the entry with the smallest TAT.
fn place_of(bucket: &Bucket, key: u64) -> usize {
    let mut smallest = 0;
    for (way, entry) in bucket.iter().enumerate() {
        if entry.key == key {
            return way;
        }
        if entry.tat < bucket[smallest].tat {
            smallest = way;
        }
    }
    smallest
}

/// Doubles a segment, and returns how many entries were left behind because they have passed. No bucket overflows: each
/// is split into two.
fn grow(segment: &mut Segment, now: u64) -> usize {
    let larger = vec![Bucket::default(); (segment.len() * 2).max(1)].into_boxed_slice();
    let before = std::mem::replace(segment, larger);
    let mut forgotten = 0;
    for entry in before.iter().flatten().filter(|entry| entry.tat > 0) {
        if entry.tat <= now {
            forgotten += 1;
            continue;
        }
        let bucket = &mut segment[bucket_of(entry.key, before.len() * 2)];
        let place = place_of(bucket, entry.key);
        bucket[place] = *entry;
    }
    forgotten
}

#[cfg(test)]
mod tests;
