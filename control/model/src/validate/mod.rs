//! From documents as written to a [`Config`]: every check, every problem at its place.

mod at;
mod capture;
mod filters;
mod gateway;
mod grpc;
mod index;
mod policy;
mod route;
mod security;
pub(crate) mod service;
pub(crate) mod syntax;

use std::{collections::HashMap, sync::Arc};

use serde::de::DeserializeOwned;

use self::{at::At, index::Index};
use crate::{
    config::{Config, Key},
    not_yet,
    problem::{Diagnostic, Sink, Source},
    schema, suggest,
    tree::{Node, Value},
    unsupported,
    written::{self, Kind, Object},
};

/// A document that has a kind. Its tree holds only what is well formed.
pub(crate) struct Document {
    pub kind: Kind,
    pub key: Key,
    pub source: Arc<Source>,
    pub node: Node,
    pub written: Written,
    /// Nothing was wrong with its form, so that what is not here was not written.
    pub sound: bool,
}

/// A document as written.
pub(crate) enum Written {
    Gateway(written::GatewaySpec),
    HttpRoute(written::HttpRouteSpec),
    GrpcRoute(written::GrpcRouteSpec),
    TcpRoute(written::TcpRouteSpec),
    BackendTlsPolicy(written::BackendTlsPolicySpec),
    Service(written::ServiceSpec),
    TrafficPolicy(Box<written::TrafficPolicySpec>),
    AccessPolicy(written::AccessPolicySpec),
    TelemetryPolicy(written::TelemetryPolicySpec),
    Workload(written::WorkloadSpec),
    Certificate(written::CertificateSpec),
    Secret(written::Secret),
    ConfigMap(written::ConfigMap),
}

/// What every check may look at.
pub(crate) struct Context<'a> {
    pub problems: &'a Sink,
    pub warnings: &'a Sink,
    pub index: &'a Index,
    /// References have to resolve.
    pub refs: bool,
}

/// Takes the documents of a file, and checks their form.
pub(crate) struct Reader<'a> {
    pub source: &'a Arc<Source>,
    pub problems: &'a Sink,
    pub warnings: &'a Sink,
    pub found: &'a mut Vec<Document>,
}

impl Reader<'_> {
    /// Reads one document (a `List` holds several). False when it is unknown what the document defines.
    pub(crate) fn document(&mut self, node: &Node, sound: bool) -> bool {
        match &node.value {
            Value::Null => return true,
            Value::Map(_) => {}
            _ => {
                let message = format!("a document has to be a mapping, but this is {}", node.describe());
                let hint = "a document starts with apiVersion, kind and metadata".to_owned();
                return self.refuse(node, "wrong-type", message, Some(hint));
            }
        }
        let Some(kind_node) = node.get("kind") else {
            let hint = format!("kind: one of {}", Kind::ALL.map(Kind::name).join(", "));
            return self.refuse(node, "missing-field", "this document has no kind".into(), Some(hint));
        };
        let Some(name) = kind_node.as_str() else {
            let message = format!("kind has to be text, but this is {}", kind_node.describe());
            return self.refuse(kind_node, "wrong-type", message, None);
        };
        let version = node.get("apiVersion").and_then(Node::as_str);
        if name == "List" && version == Some("v1") {
            let Some(Value::Seq(items)) = node.get("items").map(|items| &items.value) else {
                return self.refuse(node, "missing-field", "a List needs items".into(), None);
            };
            let mut known = true;
            for item in items {
                known &= self.document(item, sound);
            }
            return known;
        }
        match Kind::from_name(name) {
            None => self.unknown_kind(kind_node, name),
            Some(Kind::Service) if version == Some("v1") => {
                let hint = "use apiVersion: weft.dev/v1alpha1, whose Service lists its ports and endpoints".to_owned();
                let message = "a core Service is not supported by Weft".to_owned();
                self.refuse(kind_node, "unsupported", message, Some(hint))
            }
            Some(kind) => self.known(kind, node, sound),
        }
    }

    fn known(&mut self, kind: Kind, node: &Node, sound: bool) -> bool {
        let before = self.problems.len();
        let checked = schema::check(kind, node, self.source, self.problems);
        let sound = sound && self.problems.len() == before;
        not_yet::warn(kind, &checked, self.source, self.warnings);
        let metadata = checked.get("metadata");
        let text = |field| metadata.and_then(|metadata| metadata.get(field)).and_then(Node::as_str);
        let key = Key::new(text("namespace").unwrap_or("default"), text("name").unwrap_or_default());
        let named = !key.name.is_empty();
        match decode(kind, &checked) {
            Ok(written) => {
                self.found.push(Document { kind, key, source: self.source.clone(), node: checked, written, sound });
                named
            }
            Err(error) => self.refuse(node, "unreadable", format!("this {kind} cannot be read: {error}"), None),
        }
    }

    fn unknown_kind(&self, node: &Node, name: &str) -> bool {
        if let Some(hint) = unsupported::kind(name) {
            self.refuse(node, "unsupported", format!("{name} is not supported by Weft"), Some(hint.into()));
            // None of these defines what something else could refer to.
            return true;
        }
        let kinds = Kind::ALL.map(Kind::name);
        let mut message = format!("unknown kind {name:?}");
        if let Some(best) = suggest::closest(name, kinds) {
            message.push_str(&format!("; did you mean {best:?}?"));
        }
        self.refuse(node, "unknown-kind", message, Some(format!("kinds: {}", kinds.join(", "))))
    }

    fn refuse(&self, node: &Node, code: &'static str, message: String, hint: Option<String>) -> bool {
        self.problems.push(Diagnostic::at(self.source, node.span, code, message, hint));
        false
    }
}

fn decode(kind: Kind, node: &Node) -> Result<Written, serde_json::Error> {
    fn spec<S: DeserializeOwned + Default>(node: &Node) -> Result<S, serde_json::Error> {
        Ok(serde_json::from_value::<Object<S>>(node.to_json())?.spec.unwrap_or_default())
    }
    Ok(match kind {
        Kind::Gateway => Written::Gateway(spec(node)?),
        Kind::HttpRoute => Written::HttpRoute(spec(node)?),
        Kind::GrpcRoute => Written::GrpcRoute(spec(node)?),
        Kind::TcpRoute => Written::TcpRoute(spec(node)?),
        Kind::BackendTlsPolicy => Written::BackendTlsPolicy(spec(node)?),
        Kind::Service => Written::Service(spec(node)?),
        Kind::TrafficPolicy => Written::TrafficPolicy(Box::new(spec(node)?)),
        Kind::AccessPolicy => Written::AccessPolicy(spec(node)?),
        Kind::TelemetryPolicy => Written::TelemetryPolicy(spec(node)?),
        Kind::Workload => Written::Workload(spec(node)?),
        Kind::Certificate => Written::Certificate(spec(node)?),
        Kind::Secret => Written::Secret(serde_json::from_value(node.to_json())?),
        Kind::ConfigMap => Written::ConfigMap(serde_json::from_value(node.to_json())?),
    })
}

/// Checks all documents together. The result counts only if no problem was found.
pub(crate) fn validate(documents: &[Document], refs: bool, problems: &Sink, warnings: &Sink) -> Config {
    let index = Index::new(documents);
    let cx = Context { problems, warnings, index: &index, refs };
    let mut config = Config::default();
    duplicates(documents, &cx);
    for document in documents {
        let at = At::new(&cx, document);
        identity(at);
        let spec = at.field("spec");
        let key = &document.key;
        match &document.written {
            Written::Gateway(written) => config.gateways.extend(gateway::gateway(spec, key, written)),
            Written::HttpRoute(written) => config.http_routes.push(route::http(spec, key, written)),
            Written::GrpcRoute(written) => config.http_routes.push(grpc::grpc(spec, key, written)),
            Written::TcpRoute(written) => config.tcp_routes.extend(route::tcp(spec, key, written)),
            Written::BackendTlsPolicy(written) => config.backend_tls.extend(security::backend_tls(spec, key, written)),
            Written::Service(written) => config.services.push(service::service(spec, key, written).into()),
            Written::TrafficPolicy(written) => config.traffic_policies.push(policy::policy(spec, key, written)),
            Written::AccessPolicy(written) => config.access_policies.push(security::access(spec, key, written)),
            Written::TelemetryPolicy(written) => config.telemetry = security::telemetry(spec, written),
            Written::Workload(written) => config.workloads.extend(service::workload(spec, key, written)),
            Written::Certificate(written) => config.certificates.push(security::certificate(spec, key, written)),
            Written::Secret(written) => config.certificates.push(security::secret(at, key, written)),
            Written::ConfigMap(written) => config.certificates.push(security::config_map(at, key, written)),
        }
    }
    gateway::conflicts(documents, &cx);
    service::conflicts(documents, &cx);
    policy::conflicts(documents, &cx);
    policy::overruled(documents, &config, &cx);
    policy::on_tcp(documents, &config, &cx);
    capture::unreached(documents, &config, &cx);
    config
}

/// Checks `metadata`.
fn identity(at: At<'_>) {
    let metadata = at.field("metadata");
    let Key { namespace, name } = &at.document.key;
    // A missing name was reported with the form.
    if (!name.is_empty() || metadata.field("name").span() != metadata.span())
        && let Err(reason) = syntax::subdomain(name)
    {
        let hint = "lower-case letters, digits, - and . as in cart-v2";
        metadata.field("name").invalid(format!("{:?} is not a name: {reason}", &**name), hint);
    }
    if let Err(reason) = syntax::label(namespace) {
        let hint = "lower-case letters, digits and - as in team-a";
        metadata.field("namespace").invalid(format!("{:?} is not a namespace: {reason}", &**namespace), hint);
    }
}

/// `file:line` of an object's name, for hints.
fn whereabouts(document: &Document) -> String {
    let name = document.node.get("metadata").and_then(|metadata| metadata.get("name")).unwrap_or(&document.node);
    let (line, _) = document.source.position(name.span.start);
    format!("{}:{line}", document.source.name)
}

fn duplicates(documents: &[Document], cx: &Context<'_>) {
    let mut seen: HashMap<(Kind, &Key), &Document> = HashMap::new();
    let mut material: HashMap<&Key, &Document> = HashMap::new();
    let mut telemetry: Option<&Document> = None;
    for document in documents.iter().filter(|document| !document.key.name.is_empty()) {
        let at = At::new(cx, document).field("metadata").field("name");
        let (kind, key) = (document.kind, &document.key);
        if let Some(first) = seen.insert((kind, key), document) {
            let hint = format!("the first is at {}; remove one or rename it", whereabouts(first));
            at.error("duplicate-object", format!("{kind} {:?} is defined twice", key.to_string()), Some(hint));
            continue;
        }
        if matches!(kind, Kind::Certificate | Kind::Secret | Kind::ConfigMap)
            && let Some(first) = material.insert(key, document)
        {
            let hint = format!("the other is the {} at {}; rename one", first.kind, whereabouts(first));
            let message = format!("{:?} names key material twice", key.to_string());
            at.error("duplicate-object", message, Some(hint));
        }
        if kind == Kind::TelemetryPolicy
            && let Some(first) = telemetry.replace(document)
        {
            let hint = format!("the first is at {}; there can be only one", whereabouts(first));
            at.error("conflict", "a second TelemetryPolicy", Some(hint));
        }
    }
}
