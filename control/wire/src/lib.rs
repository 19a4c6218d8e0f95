//! What goes over the wire between a control plane and its nodes: xDS as Envoy speaks it, and Weft's own resources in it.
//!
//! The envelope is `envoy.service.discovery.v3` with the fields that Weft reads or writes; others are skipped when they
//! arrive, as protobuf has it. Written as structs rather than generated: a dozen messages are read more quickly than a
//! build script, and the whole of Envoy's API would take longer to compile than everything else that a newcomer builds.
//!
//! | file | |
//! |---|---|
//! | `discovery.rs` | requests and responses, delta and state of the world |
//! | `resource.rs` | Weft's own resources, and what a node says about one that it does not take |

pub mod discovery;
pub mod resource;

pub use prost;

/// `AggregatedDiscoveryService`, delta: a stream of [`discovery::DeltaRequest`]s and [`discovery::DeltaResponse`]s.
pub const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// `AggregatedDiscoveryService`, state of the world: a stream of [`discovery::SotwRequest`]s and
/// [`discovery::SotwResponse`]s.
pub const SOTW: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
