//! How the store writes itself down: in the log, in snapshots, between members.
//!
//! The encoding is ours and explicit, because it outlives this build: a member must read the log that an older one
//! wrote, and a library's derive changes with its version and with the order of a struct's fields. Numbers are LEB128,
//! byte strings carry their length, an enum is a one-byte tag, a struct is its fields in the order written in
//! [`wire!`](crate::codec). What may grow (a file, a message) begins with a version.
//!
//! Decoding takes nothing on trust: a length is compared with what is left before anything is reserved.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::sync::Arc;

use bytes::Bytes;
use twox_hash::XxHash64;

/// The bytes are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(pub &'static str);

/// Something with an encoding.
pub trait Wire: Sized {
    /// Appends the encoding.
    fn write_to(&self, to: &mut Vec<u8>);
    /// Takes one value from the front.
    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed>;

    /// The encoding by itself.
    fn encode(&self) -> Vec<u8> {
        let mut to = Vec::new();
        self.write_to(&mut to);
        to
    }

    /// The value that is exactly these bytes.
    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        let value = Self::read_from(&mut from)?;
        if from.left() == 0 { Ok(value) } else { Err(Malformed("value: bytes are left over")) }
    }
}

/// What is left to decode.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads `bytes` from the front.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.0.len()
    }

    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Malformed("value: it ends early"))?;
        self.0 = rest;
        Ok(head)
    }

    /// The next byte.
    pub fn byte(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.0.split_first().ok_or(Malformed("value: it ends early"))?;
        self.0 = rest;
        Ok(*first)
    }

    /// A count of things that take at least a byte each.
    pub fn count(&mut self) -> Result<usize, Malformed> {
        let n = usize::try_from(u64::read_from(self)?).map_err(|_| Malformed("count"))?;
        if n > self.left() { Err(Malformed("count: more than there are bytes")) } else { Ok(n) }
    }
}

/// The checksum that guards log entries and snapshots.
pub fn checksum(parts: &[&[u8]]) -> u64 {
    let mut hash = XxHash64::with_seed(0);
    for part in parts {
        hash.write(part);
    }
    hash.finish()
}

impl Wire for u64 {
    fn write_to(&self, to: &mut Vec<u8>) {
        let mut n = *self;
        while n >= 0x80 {
            to.push(n as u8 | 0x80);
            n >>= 7;
        }
        to.push(n as u8);
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = from.byte()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                break;
            }
            n |= part << shift;
            if byte < 0x80 {
                return Ok(n);
            }
        }
        Err(Malformed("number"))
    }
}

impl Wire for u32 {
    fn write_to(&self, to: &mut Vec<u8>) {
        u64::from(*self).write_to(to);
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        u64::read_from(from)?.try_into().map_err(|_| Malformed("number"))
    }
}

/// Sixteen bytes: ids are random, so LEB128 would only make them longer.
impl Wire for u128 {
    fn write_to(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.to_le_bytes());
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let bytes = from.bytes(16)?.try_into().map_err(|_| Malformed("id"))?;
        Ok(u128::from_le_bytes(bytes))
    }
}

impl Wire for bool {
    fn write_to(&self, to: &mut Vec<u8>) {
        to.push(u8::from(*self));
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        match from.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("boolean")),
        }
    }
}

impl Wire for Bytes {
    fn write_to(&self, to: &mut Vec<u8>) {
        (self.len() as u64).write_to(to);
        to.extend_from_slice(self);
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let n = from.count()?;
        Ok(Bytes::copy_from_slice(from.bytes(n)?))
    }
}

impl Wire for Arc<str> {
    fn write_to(&self, to: &mut Vec<u8>) {
        (self.len() as u64).write_to(to);
        to.extend_from_slice(self.as_bytes());
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let n = from.count()?;
        let text = std::str::from_utf8(from.bytes(n)?).map_err(|_| Malformed("text"))?;
        Ok(text.into())
    }
}

impl<T: Wire> Wire for Option<T> {
    fn write_to(&self, to: &mut Vec<u8>) {
        self.is_some().write_to(to);
        if let Some(value) = self {
            value.write_to(to);
        }
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        if bool::read_from(from)? { T::read_from(from).map(Some) } else { Ok(None) }
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn write_to(&self, to: &mut Vec<u8>) {
        (self.len() as u64).write_to(to);
        for value in self {
            value.write_to(to);
        }
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let n = from.count()?;
        // An element in memory may be far larger than its shortest encoding: let the vector grow by itself.
        let mut values = Vec::with_capacity(n.min(1024));
        for _ in 0..n {
            values.push(T::read_from(from)?);
        }
        Ok(values)
    }
}

impl<T: Wire + Ord> Wire for BTreeSet<T> {
    fn write_to(&self, to: &mut Vec<u8>) {
        (self.len() as u64).write_to(to);
        for value in self {
            value.write_to(to);
        }
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let n = from.count()?;
        (0..n).map(|_| T::read_from(from)).collect()
    }
}

impl<K: Wire + Ord, V: Wire> Wire for BTreeMap<K, V> {
    fn write_to(&self, to: &mut Vec<u8>) {
        (self.len() as u64).write_to(to);
        for (key, value) in self {
            key.write_to(to);
            value.write_to(to);
        }
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let n = from.count()?;
        (0..n).map(|_| Ok((K::read_from(from)?, V::read_from(from)?))).collect()
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn write_to(&self, to: &mut Vec<u8>) {
        self.0.write_to(to);
        self.1.write_to(to);
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok((A::read_from(from)?, B::read_from(from)?))
    }
}

/// Gives structs and enums their [`Wire`] encoding. The order of fields and the tags *are* the format.
macro_rules! wire {
    (struct $name:ident { $($field:ident),* $(,)? }) => {
        impl $crate::codec::Wire for $name {
            fn write_to(&self, to: &mut Vec<u8>) {
                $( $crate::codec::Wire::write_to(&self.$field, to); )*
            }

            fn read_from(from: &mut $crate::codec::Reader<'_>) -> Result<Self, $crate::codec::Malformed> {
                $( let $field = $crate::codec::Wire::read_from(from)?; )*
                Ok(Self { $($field),* })
            }
        }
    };
    (newtype $name:ident) => {
        impl $crate::codec::Wire for $name {
            fn write_to(&self, to: &mut Vec<u8>) {
                $crate::codec::Wire::write_to(&self.0, to);
            }

            fn read_from(from: &mut $crate::codec::Reader<'_>) -> Result<Self, $crate::codec::Malformed> {
                Ok(Self($crate::codec::Wire::read_from(from)?))
            }
        }
    };
    (enum $name:ident { $($tag:literal => $variant:ident $( { $($field:ident),* $(,)? } )? $( ($inner:ident) )?),* $(,)? }) => {
        impl $crate::codec::Wire for $name {
            fn write_to(&self, to: &mut Vec<u8>) {
                match self {
                    $( Self::$variant $( { $($field),* } )? $( ($inner) )? => {
                        to.push($tag);
                        $( $( $crate::codec::Wire::write_to($field, to); )* )?
                        $( $crate::codec::Wire::write_to($inner, to); )?
                    } )*
                }
            }

            fn read_from(from: &mut $crate::codec::Reader<'_>) -> Result<Self, $crate::codec::Malformed> {
                match from.byte()? {
                    $( $tag => {
                        $( $( let $field = $crate::codec::Wire::read_from(from)?; )* )?
                        $( let $inner = $crate::codec::Wire::read_from(from)?; )?
                        Ok(Self::$variant $( { $($field),* } )? $( ($inner) )?)
                    } )*
                    _ => Err($crate::codec::Malformed(stringify!($name))),
                }
            }
        }
    };
}
pub(crate) use wire;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(n: u64, id: u128, text: Option<String>, list: Vec<u64>) {
            let value = ((n, id), (text.map(|t| Arc::<str>::from(&*t)), list));
            prop_assert_eq!(<((u64, u128), (Option<Arc<str>>, Vec<u64>))>::decode(&value.encode()), Ok(value));
        }

        #[test]
        fn garbage_is_refused_and_reserves_nothing(bytes: Vec<u8>) {
            let _ = Vec::<Arc<str>>::decode(&bytes);
            let _ = BTreeMap::<u64, Bytes>::decode(&bytes);
        }
    }

    #[test]
    fn a_number_of_more_than_64_bits_is_refused() {
        assert_eq!(u64::decode(&[0xff; 10]), Err(Malformed("number")));
        assert_eq!(u64::decode(&u64::MAX.encode()), Ok(u64::MAX));
        assert_eq!(u64::decode(&[1, 1]), Err(Malformed("value: bytes are left over")));
    }
}
