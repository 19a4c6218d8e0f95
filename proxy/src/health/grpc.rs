//! gRPC probes: `grpc.health.v1.Health/Check` (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>).
//!
//! The two messages have one field each, so they are written and read by hand:
//! `HealthCheckRequest { string service = 1; }` and `HealthCheckResponse { ServingStatus status = 1; }`.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode, Version, header};
use http_body_util::{BodyExt, Full, Limited};

use super::{
    Failure,
    http::{USER_AGENT, send_h2, uri},
    tcp::Io,
};

const METHOD: &str = "/grpc.health.v1.Health/Check";
const SERVING: u64 = 1;

/// A response is a few bytes long; more is not one.
const MAX_RESPONSE: usize = 4096;

pub(super) async fn probe(io: Io, tls: bool, authority: &str, service: &str) -> Result<(), Failure> {
    let request = Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(uri(tls, authority, METHOD)?)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(Full::new(request(service)))?;
    let (response, _connection) = send_h2(io, request).await?;
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(Failure::Status(head.status));
    }
    // Trailers-only: the status is in the head.
    grpc_status(&head.headers).unwrap_or(Ok(()))?;
    let body = Limited::new(body, MAX_RESPONSE).collect().await.map_err(|error| match error.downcast() {
        Ok(error) => Failure::Http(*error),
        Err(_) => Failure::BadGrpc,
    })?;
    let trailers = body.trailers().and_then(grpc_status);
    trailers.or_else(|| grpc_status(&head.headers)).unwrap_or(Err(Failure::BadGrpc))?;
    match serving_status(&body.to_bytes()).ok_or(Failure::BadGrpc)? {
        SERVING => Ok(()),
        0 => Err(Failure::NotServing("UNKNOWN")),
        2 => Err(Failure::NotServing("NOT_SERVING")),
        3 => Err(Failure::NotServing("SERVICE_UNKNOWN")),
        _ => Err(Failure::NotServing("a status unknown to Weft")),
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<Result<(), Failure>> {
    let status = headers.get("grpc-status")?;
    Some(match status.as_bytes() {
        b"0" => Ok(()),
        other => Err(Failure::GrpcStatus(String::from_utf8_lossy(other).into_owned())),
    })
}

/// The message with its five-byte prefix: not compressed, length.
fn request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(1 << 3 | 2);
        put_varint(&mut message, service.len() as u64);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.unsplit(message);
    frame.freeze()
}

/// `status` in a framed response; 0 when the field is absent, as proto3 says. None if it is not a response.
fn serving_status(frame: &[u8]) -> Option<u64> {
    let (prefix, mut message) = frame.split_at_checked(5)?;
    let length = u32::from_be_bytes(prefix.get(1..)?.try_into().ok()?);
    if prefix.first() != Some(&0) || message.len() != length as usize {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => status = varint(&mut message)?,
            (1.., 0) => drop(varint(&mut message)?),
            (1.., 1) => skip(&mut message, 8)?,
            (1.., 2) => {
                let length = varint(&mut message)?;
                skip(&mut message, usize::try_from(length).ok()?)?;
            }
            (1.., 5) => skip(&mut message, 4)?,
            _ => return None,
        }
    }
    Some(status)
}

fn put_varint(buffer: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        buffer.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    buffer.put_u8(value as u8);
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn skip(message: &mut &[u8], length: usize) -> Option<()> {
    *message = message.get(length..)?;
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_protobuf() {
        assert_eq!(&request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&request("shop")[..], b"\0\0\0\0\x06\x0a\x04shop");
        let long = "s".repeat(300);
        assert_eq!(&request(&long)[..8], [0, 0, 0, 0x01, 0x2f, 0x0a, 0xac, 0x02]);
    }

    #[test]
    fn responses_are_protobuf() {
        #[rustfmt::skip]
        let table: [(&[u8], Option<u64>); 10] = [
            (b"\0\0\0\0\x02\x08\x01", Some(1)),
            (b"\0\0\0\0\x02\x08\x02", Some(2)),
            (b"\0\0\0\0\0", Some(0)),
            // Fields from the future, of every kind, and a repeated one: the last counts.
            (b"\0\0\0\0\x17\x08\x02\x10\x80\x01\x19ABCDEFGH\x22\x02hi\x2dABCD\x08\x01", None), // length is wrong
            (b"\0\0\0\0\x19\x08\x02\x10\x80\x01\x19ABCDEFGH\x22\x02hi\x2dABCD\x08\x01", Some(1)),
            (b"\0\0\0\0\x02\x08", None),
            (b"\x01\0\0\0\x02\x08\x01", None),
            (b"", None),
            (b"\0\0\0\0\x02\x22\x09", None),
            (b"\0\0\0\0\x02\x00\x01", None),
        ];
        for (frame, expect) in table {
            assert_eq!(serving_status(frame), expect, "{frame:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = serving_status(&bytes);
            bytes.splice(..0, [0, 0, 0, 0, bytes.len() as u8]);
            let _ = serving_status(&bytes);
        }
    }
}
