//! What the tests of the deciders share.

use super::log::{Change, Resource, TypeSpec};

/// A type of nothing in particular.
pub(super) const SPEC: TypeSpec =
    TypeSpec { url: "t", whole: false, revisions: true, full: false, after: &[], removed_after: &[], with: None };

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
