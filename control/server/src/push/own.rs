//! Weft's own resources: what is stored, as nodes get it. The version of each is the revision that made it.

use std::sync::Arc;

use weft_model::written::Kind;
use weft_store::{
    machine::Filter,
    types::{Object, ObjectKey},
};
use weft_wire::{
    prost::Message,
    resource::{self, object_name},
};

use super::log::{Change, Resource, TypeSpec};
use crate::registry;

/// Documents of the configuration: all that changed goes in one response.
pub(super) const OBJECTS: TypeSpec = TypeSpec {
    url: resource::OBJECT,
    response_max: usize::MAX,
    revisions: true,
    full: false,
    after: &[],
    removed_after: &[],
    with: None,
};

/// Registered endpoints. They do not wait for documents, nor documents for them.
pub(super) const ENDPOINTS: TypeSpec = TypeSpec { url: resource::ENDPOINT, response_max: 2 << 20, ..OBJECTS };

/// What nodes get.
pub(super) fn filter() -> Filter {
    let kinds = Kind::ALL.into_iter().map(Kind::name).chain([registry::ENDPOINT]);
    Filter { kinds: kinds.map(Into::into).collect(), ..Filter::default() }
}

/// Which of the two types a key belongs to.
pub(super) fn is_endpoint(key: &ObjectKey) -> bool {
    &*key.kind == registry::ENDPOINT
}

/// What a resource is called.
pub(crate) fn name(key: &ObjectKey) -> Arc<str> {
    if is_endpoint(key) {
        format!("{}/{}", key.namespace, key.name).into()
    } else {
        object_name(&key.kind, &key.namespace, &key.name).into()
    }
}

/// An object as a resource; none when nodes could not read it.
pub(super) fn resource(object: &Object) -> Option<Resource> {
    let key = &object.key;
    let message = if is_endpoint(key) {
        let endpoint = registry::Endpoint::of(object);
        let endpoint = endpoint.map_err(|error| tracing::error!(%key, %error, "an endpoint is not as it is written"));
        let registry::Endpoint { service, address, port, weight, zone, draining } = endpoint.ok()?;
        let namespace = key.namespace.to_string();
        resource::Endpoint { namespace, service, address, port, weight, zone, draining }.encode_to_vec()
    } else {
        let (kind, namespace, name) = (key.kind.to_string(), key.namespace.to_string(), key.name.to_string());
        resource::Object { kind, namespace, name, document: object.spec.clone() }.encode_to_vec()
    };
    let version = object.modified.to_string().into();
    Some(Resource { name: name(key), version, message: message.into(), listed: true, with: None })
}

/// A change of an object as a change of its resource.
pub(super) fn change(key: &ObjectKey, after: Option<&Object>) -> Change {
    after.and_then(resource).map_or_else(|| Change::Remove(name(key)), Change::Put)
}
