//! Weft's own resources.

use bytes::Bytes;
use prost::Message;

use crate::discovery::Any;

/// Type of [`Object`].
pub const OBJECT: &str = "type.googleapis.com/weft.v1.Object";
/// Type of [`Endpoint`].
pub const ENDPOINT: &str = "type.googleapis.com/weft.v1.Endpoint";
/// Type of [`Rejected`].
pub const REJECTED: &str = "type.googleapis.com/weft.v1.Rejected";

/// A document of the configuration. As a resource it is called `KIND/NAMESPACE/NAME`.
///
/// All documents of a revision come in one response: what they make together was checked as a whole.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Object {
    /// `Service`, `HTTPRoute`, …
    #[prost(string, tag = "1")]
    pub kind: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Its name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// The whole document as JSON.
    #[prost(bytes = "bytes", tag = "4")]
    pub document: Bytes,
}

/// A registered endpoint of a service. As a resource it is called `NAMESPACE/SERVICE/ADDRESS:PORT`.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Endpoint {
    /// The service's namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// The service's name.
    #[prost(string, tag = "2")]
    pub service: String,
    /// IP address, or a name to resolve.
    #[prost(string, tag = "3")]
    pub address: String,
    /// Port on that address.
    #[prost(uint32, tag = "4")]
    pub port: u32,
    /// Relative share.
    #[prost(uint32, tag = "5")]
    pub weight: u32,
    /// Its zone; empty when it is not known.
    #[prost(string, tag = "6")]
    pub zone: String,
    /// It finishes what it has and gets nothing new.
    #[prost(bool, tag = "7")]
    pub draining: bool,
}

/// Why a node did not take a resource: a detail of a NACK. What a NACK does not name in this way was taken; a NACK
/// without such details (any client but Weft sends that) took nothing of the response.
///
/// A node names everything that is not in force at the moment, also what came with an earlier response; when nothing is
/// left to name, it sends an ACK, which says that everything that was sent is in force.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Rejected {
    /// The resource.
    #[prost(string, tag = "1")]
    pub name: String,
    /// What is wrong with it, for people.
    #[prost(string, tag = "2")]
    pub reason: String,
}

impl Any {
    /// `message` as a value of `type_url`.
    pub fn of(type_url: &str, message: &impl Message) -> Self {
        Self { type_url: type_url.to_owned(), value: message.encode_to_vec().into() }
    }
}

/// What a resource is called that is `name` in `namespace`, of `kind`.
pub fn object_name(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind}/{namespace}/{name}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::discovery::{DeltaResponse, Resource};

    /// Written by hand from the definition of the protocol: what others read must not change.
    #[test]
    fn a_response_is_written_as_envoy_reads_it() {
        let endpoint = Endpoint { namespace: "d".into(), port: 300, draining: true, ..Endpoint::default() };
        let any = Any::of("t", &endpoint);
        assert_eq!(&any.value[..], [0x0a, 1, b'd', 0x20, 0xac, 0x02, 0x38, 1]);
        let resource = Resource { version: "7".into(), resource: Some(any), name: "n".into() };
        let response = DeltaResponse {
            system_version_info: "7".into(),
            resources: vec![resource],
            type_url: "t".into(),
            nonce: "9".into(),
            removed_resources: vec!["x".into()],
            control_plane: None,
        };
        let any = [0x0a, 1, b't', 0x12, 8, 0x0a, 1, b'd', 0x20, 0xac, 0x02, 0x38, 1];
        let mut expected = vec![0x0a, 1, b'7', 0x12, 21, 0x0a, 1, b'7', 0x12, 13];
        expected.extend(any);
        expected.extend([0x1a, 1, b'n', 0x22, 1, b't', 0x2a, 1, b'9', 0x32, 1, b'x']);
        assert_eq!(response.encode_to_vec(), expected);
        assert_eq!(DeltaResponse::decode(&*expected).unwrap(), response);
    }
}
