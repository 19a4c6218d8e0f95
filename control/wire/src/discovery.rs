//! Messages of `envoy.service.discovery.v3`; field numbers are Envoy's.

use std::collections::HashMap;

use bytes::Bytes;

/// `envoy.config.core.v3.Node`: who asks.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Node {
    /// What it is called; unique in the mesh.
    #[prost(string, tag = "1")]
    pub id: String,
    /// What it belongs to.
    #[prost(string, tag = "2")]
    pub cluster: String,
    /// Where it is.
    #[prost(message, optional, tag = "4")]
    pub locality: Option<Locality>,
    /// Which program it is: `weft`, `envoy`, `gRPC C-core`.
    #[prost(string, tag = "6")]
    pub user_agent_name: String,
    /// In which version.
    #[prost(string, tag = "7")]
    pub user_agent_version: String,
}

/// `envoy.config.core.v3.Locality`
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Locality {
    /// Region.
    #[prost(string, tag = "1")]
    pub region: String,
    /// Zone; the only part that Weft uses.
    #[prost(string, tag = "2")]
    pub zone: String,
    /// Part of a zone.
    #[prost(string, tag = "3")]
    pub sub_zone: String,
}

/// `DeltaDiscoveryRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeltaRequest {
    /// Who asks; at least in the first request of a stream.
    #[prost(message, optional, tag = "1")]
    pub node: Option<Node>,
    /// Which sort of resources this is about.
    #[prost(string, tag = "2")]
    pub type_url: String,
    /// More names; `*` for all there are. A first request that names none means all.
    #[prost(string, repeated, tag = "3")]
    pub resource_names_subscribe: Vec<String>,
    /// Names that are of no interest any more.
    #[prost(string, repeated, tag = "4")]
    pub resource_names_unsubscribe: Vec<String>,
    /// What the client has already, in the first request of a stream for a type: names to versions.
    #[prost(map = "string, string", tag = "5")]
    pub initial_resource_versions: HashMap<String, String>,
    /// The response that this one answers.
    #[prost(string, tag = "6")]
    pub response_nonce: String,
    /// Why that response was not taken (NACK); without it, it was (ACK).
    #[prost(message, optional, tag = "7")]
    pub error_detail: Option<Status>,
}

/// `DeltaDiscoveryResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeltaResponse {
    /// The revision that it leads to.
    #[prost(string, tag = "1")]
    pub system_version_info: String,
    /// What is new or has changed.
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<Resource>,
    /// Which sort of resources this is about.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// To be repeated in the answer.
    #[prost(string, tag = "5")]
    pub nonce: String,
    /// Names of what is gone, or does not exist.
    #[prost(string, repeated, tag = "6")]
    pub removed_resources: Vec<String>,
    /// Who answers.
    #[prost(message, optional, tag = "7")]
    pub control_plane: Option<ControlPlane>,
}

/// `Resource`: one resource of a [`DeltaResponse`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Resource {
    /// Its version: the same on every member of the control plane.
    #[prost(string, tag = "1")]
    pub version: String,
    /// What it is.
    #[prost(message, optional, tag = "2")]
    pub resource: Option<Any>,
    /// What it is called.
    #[prost(string, tag = "3")]
    pub name: String,
}

/// `DiscoveryRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub struct SotwRequest {
    /// The version that is in force; empty at first.
    #[prost(string, tag = "1")]
    pub version_info: String,
    /// Who asks; at least in the first request of a stream.
    #[prost(message, optional, tag = "2")]
    pub node: Option<Node>,
    /// All names that are wanted; none means all, for listeners and clusters.
    #[prost(string, repeated, tag = "3")]
    pub resource_names: Vec<String>,
    /// Which sort of resources this is about.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// The response that this one answers.
    #[prost(string, tag = "5")]
    pub response_nonce: String,
    /// Why that response was not taken.
    #[prost(message, optional, tag = "6")]
    pub error_detail: Option<Status>,
}

/// `DiscoveryResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub struct SotwResponse {
    /// The version of all of it.
    #[prost(string, tag = "1")]
    pub version_info: String,
    /// Every resource that was asked for.
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<Any>,
    /// Which sort of resources this is about.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// To be repeated in the answer.
    #[prost(string, tag = "5")]
    pub nonce: String,
    /// Who answers.
    #[prost(message, optional, tag = "6")]
    pub control_plane: Option<ControlPlane>,
}

/// `envoy.config.core.v3.ControlPlane`
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ControlPlane {
    /// The member that answers.
    #[prost(string, tag = "1")]
    pub identifier: String,
}

/// `google.protobuf.Any`
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Any {
    /// `type.googleapis.com/` and the name of the message.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The message.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// `google.rpc.Status`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Status {
    /// A gRPC status code.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// For people.
    #[prost(string, tag = "2")]
    pub message: String,
    /// For programs: [`crate::resource::Rejected`], one for each resource that was not taken.
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<Any>,
}
