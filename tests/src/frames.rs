//! HTTP/2 frame by frame, for what a well-behaved library refuses to send.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

#[derive(Debug, Clone)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Error code of a RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// Status of a response's HEADERS, if it comes first and from the static table.
    pub fn status(&self) -> Option<u16> {
        let mut block = self.payload.as_slice();
        while let [first, rest @ ..] = block
            && first & 0xe0 == 0x20
        {
            block = if first & 0x1f == 0x1f { &rest[1..] } else { rest };
        }
        match block.first()? {
            0x88 => Some(200),
            0x89 => Some(204),
            0x8a => Some(206),
            0x8b => Some(304),
            0x8c => Some(400),
            0x8d => Some(404),
            0x8e => Some(500),
            _ => None,
        }
    }
}

/// A connection after its preface and SETTINGS.
pub struct H2Wire {
    pub stream: TcpStream,
}

/// How a stream or its connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Reset(u32),
    GoAway(u32),
    Closed,
    Response(Option<u16>),
}

impl H2Wire {
    pub async fn connect(addr: SocketAddr) -> Self {
        Self::connect_with(addr, &[]).await
    }

    /// `settings`: identifier and value.
    pub async fn connect_with(addr: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut wire = Self { stream };
        let mut payload = Vec::new();
        for (id, value) in settings {
            payload.extend_from_slice(&id.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &payload));
        wire.send_bytes(&bytes).await;
        wire
    }

    /// False when the other side has closed.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// Like [`Self::send_bytes`], but gives up when nothing can be written for `limit`: the peer does not read.
    pub async fn try_send(&mut self, bytes: &[u8], limit: Duration) -> bool {
        matches!(tokio::time::timeout(limit, self.stream.write_all(bytes)).await, Ok(Ok(())))
    }

    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.send_bytes(&frame(kind, flags, stream, payload)).await
    }

    /// A request's HEADERS.
    pub async fn request(&mut self, stream: u32, fields: &[(&str, &str)], end: bool) -> bool {
        let flags = END_HEADERS | if end { END_STREAM } else { 0 };
        self.send(HEADERS, flags, stream, &block(fields)).await
    }

    /// The next frame; `None` at the end. SETTINGS and PING are answered.
    pub async fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        let read = Frame { kind: head[3], flags: head[4], stream, payload };
        if read.flags & ACK == 0 && (read.kind == SETTINGS || read.kind == PING) {
            let payload = if read.kind == PING { read.payload.as_slice() } else { &[] };
            self.send(read.kind, ACK, 0, payload).await;
        }
        Some(read)
    }

    /// Waits for what becomes of `stream`: its reset or response, GOAWAY, or the end of the connection.
    pub async fn end_of(&mut self, stream: u32) -> End {
        crate::soon("the stream's end", async {
            loop {
                match self.read().await {
                    None => return End::Closed,
                    // A graceful GOAWAY does not end the stream.
                    Some(frame) if frame.kind == GOAWAY && frame.code() != 0 => return End::GoAway(frame.code()),
                    Some(frame) if frame.kind == RST_STREAM && frame.stream == stream => {
                        return End::Reset(frame.code());
                    }
                    Some(frame) if frame.kind == HEADERS && frame.stream == stream => {
                        return End::Response(frame.status());
                    }
                    Some(_) => {}
                }
            }
        })
        .await
    }

    /// Reads until the connection ends; the code of the last GOAWAY seen.
    pub async fn drain(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.read().await {
            if frame.kind == GOAWAY {
                code = Some(frame.code());
            }
        }
        code
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// An HPACK block of literals without indexing: any byte may stand anywhere.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            integer(&mut bytes, 7, text.len());
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

/// One literal that enters the dynamic table (as entry 62).
pub fn indexed_literal(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0x40];
    for text in [name, value] {
        integer(&mut bytes, 7, text.len());
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

fn integer(bytes: &mut Vec<u8>, prefix: u8, value: usize) {
    let limit = (1_usize << prefix) - 1;
    if value < limit {
        bytes.push(value as u8);
        return;
    }
    bytes.push(limit as u8);
    let mut rest = value - limit;
    while rest >= 128 {
        bytes.push((rest % 128) as u8 | 0x80);
        rest /= 128;
    }
    bytes.push(rest as u8);
}

/// The four pseudo-headers of a GET.
pub fn get<'a>(authority: &'a str, path: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![(":method", "GET"), (":scheme", "http"), (":authority", authority), (":path", path)]
}
