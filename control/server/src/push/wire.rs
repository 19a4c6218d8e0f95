//! Responses whose resources are encoded already: on the wire the same as weft-wire's, without encoding each resource
//! again for each stream.

use bytes::Bytes;
use weft_wire::discovery::ControlPlane;

/// `DeltaDiscoveryResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct EncodedDelta {
    #[prost(string, tag = "1")]
    pub system_version_info: String,
    /// Each a `Resource`.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub resources: Vec<Bytes>,
    #[prost(string, tag = "4")]
    pub type_url: String,
    #[prost(string, tag = "5")]
    pub nonce: String,
    #[prost(string, repeated, tag = "6")]
    pub removed_resources: Vec<String>,
    #[prost(message, optional, tag = "7")]
    pub control_plane: Option<ControlPlane>,
}

/// `DiscoveryResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct EncodedSotw {
    #[prost(string, tag = "1")]
    pub version_info: String,
    /// Each an `Any`.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub resources: Vec<Bytes>,
    #[prost(string, tag = "4")]
    pub type_url: String,
    #[prost(string, tag = "5")]
    pub nonce: String,
    #[prost(message, optional, tag = "6")]
    pub control_plane: Option<ControlPlane>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use weft_wire::{
        discovery::{Any, DeltaResponse, Resource, SotwResponse},
        prost::Message,
    };

    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_protocol() {
        let any = Any { type_url: "t".into(), value: Bytes::from_static(b"value") };
        let resource = Resource { version: "7".into(), resource: Some(any.clone()), name: "n".into() };
        let control_plane = Some(ControlPlane { identifier: "a".into() });
        let encoded = EncodedDelta {
            system_version_info: "7".into(),
            resources: vec![resource.encode_to_vec().into()],
            type_url: "t".into(),
            nonce: "9".into(),
            removed_resources: vec!["x".into()],
            control_plane: control_plane.clone(),
        };
        let response = DeltaResponse::decode(&*encoded.encode_to_vec()).unwrap();
        assert_eq!(response.encode_to_vec(), encoded.encode_to_vec());
        assert_eq!(response.resources, [resource]);
        let encoded = EncodedSotw {
            version_info: "7".into(),
            resources: vec![any.encode_to_vec().into()],
            type_url: "t".into(),
            nonce: "9".into(),
            control_plane,
        };
        let response = SotwResponse::decode(&*encoded.encode_to_vec()).unwrap();
        assert_eq!(response.encode_to_vec(), encoded.encode_to_vec());
        assert_eq!(response.resources, [any]);
    }
}
