//! What all documents have in common.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A document with a `spec`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Object<S> {
    /// Group and version of the kind.
    #[schemars(required)]
    pub api_version: Option<String>,
    /// What this document describes.
    #[schemars(required)]
    pub kind: Option<String>,
    /// Name and namespace.
    #[schemars(required)]
    pub metadata: Option<Metadata>,
    /// What is wanted.
    #[schemars(required)]
    pub spec: Option<S>,
    /// Ignored: Weft reports status elsewhere.
    pub status: Option<serde_json::Value>,
}

/// `metadata` of a document. Only name, namespace and creation time have a meaning here.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Unique per kind and namespace.
    #[schemars(required)]
    pub name: Option<String>,
    /// `default` when omitted.
    pub namespace: Option<String>,
    /// Older routes win ties.
    pub creation_timestamp: Option<String>,
    /// Ignored.
    pub labels: Option<BTreeMap<String, String>>,
    /// Ignored.
    pub annotations: Option<BTreeMap<String, String>>,
    /// Ignored.
    pub uid: Option<String>,
    /// Ignored.
    pub resource_version: Option<String>,
    /// Ignored.
    pub generation: Option<i64>,
    /// Ignored.
    pub managed_fields: Option<serde_json::Value>,
}

/// `targetRefs[]` of a policy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// `weft.dev` (or the core group) for a Service, `gateway.networking.k8s.io` for a route.
    pub group: Option<String>,
    /// `Service`, `HTTPRoute` or `GRPCRoute`.
    #[schemars(required)]
    pub kind: Option<String>,
    /// Name, in the namespace of the policy.
    #[schemars(required)]
    pub name: Option<String>,
    /// Part of the target, where a policy supports it.
    pub section_name: Option<String>,
}
