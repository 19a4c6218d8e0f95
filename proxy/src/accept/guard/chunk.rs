//! The chunked coding up to the trailers (RFC 9112 §7.1), one byte at a time where it matters.

use super::{
    Violation,
    class::{QDTEXT, TOKEN, VALUE, is},
};

/// Extensions of one chunk.
const MAX_EXTENSION: u16 = 256;
/// Extensions of one body; hyper gives up at 16 KiB.
const MAX_EXTENSIONS: u32 = 4096;
/// More digits than any length has.
const MAX_DIGITS: u8 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Size,
    ExtensionName,
    ExtensionNameMore,
    ExtensionValue,
    ExtensionToken,
    Quoted,
    QuotedPair,
    QuotedEnd,
    SizeLf,
    Data,
    DataCr,
    DataLf,
}

/// Follows the chunks of one body.
#[derive(Debug)]
pub(super) struct Chunks {
    at: At,
    digits: u8,
    extension: u16,
    extensions: u32,
    left: u64,
}

/// How far [`Chunks::advance`] came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Through all bytes.
    All,
    /// Through this many, behind the line of the last chunk: trailers follow.
    Last(usize),
    /// This many are good, the next one is not.
    Bad(usize, Violation),
}

impl Chunks {
    pub(super) const fn new() -> Self {
        Self { at: At::Size, digits: 0, extension: 0, extensions: 0, left: 0 }
    }

    pub(super) fn advance(&mut self, bytes: &[u8]) -> Progress {
        let mut pos = 0;
        while let Some(&byte) = bytes.get(pos) {
            if self.at == At::Data {
                let here = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - pos);
                pos += here;
                self.left -= here as u64;
                if self.left == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            match self.step(byte) {
                Ok(false) => pos += 1,
                Ok(true) => return Progress::Last(pos + 1),
                Err(detail) => return Progress::Bad(pos, Violation::in_body(detail)),
            }
        }
        Progress::All
    }

    /// Takes one byte outside the data; true behind the last chunk's line.
    fn step(&mut self, byte: u8) -> Result<bool, &'static str> {
        if !matches!(self.at, At::Size | At::SizeLf | At::DataCr | At::DataLf) {
            self.extension += 1;
            self.extensions += 1;
            if self.extension > MAX_EXTENSION || self.extensions > MAX_EXTENSIONS {
                return Err("a chunk extension is too long");
            }
        }
        self.at = match (self.at, byte) {
            (At::Size, _) if byte.is_ascii_hexdigit() => {
                self.digits += 1;
                self.left = self.left << 4 | u64::from((byte & 15) + if byte > b'9' { 9 } else { 0 });
                if self.digits > MAX_DIGITS || self.left > i64::MAX as u64 {
                    return Err("a chunk is too large");
                }
                At::Size
            }
            (At::Size, _) if self.digits == 0 => return Err("a chunk has no size"),
            (At::ExtensionName | At::ExtensionNameMore, _) if is(byte, TOKEN) => At::ExtensionNameMore,
            (At::ExtensionNameMore, b'=') => At::ExtensionValue,
            (At::ExtensionValue, b'"') => At::Quoted,
            (At::ExtensionValue | At::ExtensionToken, _) if is(byte, TOKEN) => At::ExtensionToken,
            (At::Quoted, b'"') => At::QuotedEnd,
            (At::Quoted, b'\\') => At::QuotedPair,
            (At::Quoted, _) if is(byte, QDTEXT) => At::Quoted,
            (At::QuotedPair, _) if is(byte, VALUE) => At::Quoted,
            (At::Size | At::ExtensionNameMore | At::ExtensionToken | At::QuotedEnd, b';') => At::ExtensionName,
            (At::Size | At::ExtensionNameMore | At::ExtensionToken | At::QuotedEnd, b'\r') => At::SizeLf,
            (At::SizeLf, b'\n') => {
                let last = self.left == 0;
                (self.digits, self.extension) = (0, 0);
                self.at = At::Data;
                return Ok(last);
            }
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size,
            (At::SizeLf, _) => return Err("a chunk size ends with a bare CR"),
            (At::DataCr | At::DataLf, _) => return Err("a chunk is longer than its size, or not followed by CRLF"),
            (At::Size, _) => return Err("a chunk size is not a hexadecimal number"),
            _ => return Err("a chunk extension breaks the grammar"),
        };
        Ok(false)
    }
}
