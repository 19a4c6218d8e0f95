//! What the tests of the deciders share.

use std::time::Instant;

use super::{
    exchange::Now,
    log::{Change, Resource, TypeSpec},
};

/// A type of nothing in particular.
pub(super) const SPEC: TypeSpec = TypeSpec {
    url: "t",
    response_max: 1 << 20,
    revisions: true,
    full: false,
    after: &[],
    removed_after: &[],
    with: None,
};

/// `name` in a version.
pub(super) fn resource(name: &str, version: u64) -> Resource {
    let message = format!("{name}={version}").into();
    Resource { name: name.into(), version: version.to_string().into(), message, listed: true, with: None }
}

pub(super) fn put(name: &str, version: u64) -> Change {
    Change::Put(resource(name, version))
}

pub(super) fn remove(name: &str) -> Change {
    Change::Remove(name.into())
}

pub(super) fn now() -> Now {
    Now { instant: Instant::now(), unix_ms: 1 }
}

/// What is in these encoded bytes of a [`resource`], for delta or the state of the world: `NAME=VERSION`.
pub(super) fn text(encoded: &[u8]) -> String {
    use weft_wire::{discovery, prost::Message};
    let any = match discovery::Resource::decode(encoded) {
        Ok(resource) if !resource.name.is_empty() => resource.resource,
        _ => discovery::Any::decode(encoded).ok(),
    };
    let any = any.unwrap_or_default();
    String::from_utf8_lossy(&any.value).into_owned()
}
