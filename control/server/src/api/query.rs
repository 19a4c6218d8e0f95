//! What paths and queries mean.

use std::collections::HashMap;

use http::Uri;
use weft_model::written::Kind;
use weft_store::{
    Consistency,
    machine::Filter,
    types::{ObjectKey, Revision},
};

use super::reply::Refusal;
use crate::{config, registry::ENDPOINT};

/// The query of a request, each name once.
#[derive(Debug, Default)]
pub(super) struct Query(HashMap<String, String>);

impl Query {
    pub(super) fn of(uri: &Uri) -> Result<Self, Refusal> {
        let mut found = HashMap::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_encoding::percent_decode_str(value).decode_utf8();
            let value = value.map_err(|_| Refusal::bad(format!("{name} is not UTF-8")))?.into_owned();
            if found.insert(name.to_owned(), value).is_some() {
                return Err(Refusal::bad(format!("{name} is given twice")));
            }
        }
        Ok(Self(found))
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(super) fn revision(&self, name: &str) -> Result<Option<Revision>, Refusal> {
        let parse = |text: &str| text.parse().map(Revision).map_err(|_| Refusal::bad(format!("{name} is a number")));
        self.text(name).map(parse).transpose()
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, Refusal> {
        match self.text(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Refusal::bad(format!("{name} is true or false"))),
        }
    }

    /// How fresh a read has to be.
    pub(super) fn consistency(&self) -> Result<Consistency, Refusal> {
        match (self.text("consistency"), self.revision("revision")?) {
            (None, Some(revision)) => Ok(Consistency::AtLeast(revision)),
            (None | Some("linearizable"), None) => Ok(Consistency::Linearizable),
            (Some("serializable"), None) => Ok(Consistency::Serializable),
            (Some(_), Some(_)) => Err(Refusal::bad("either consistency or revision")),
            (Some(_), None) => Err(Refusal::bad("consistency is linearizable or serializable")),
        }
    }

    /// Which objects: without a kind, all of the configuration. The control plane's own are never among them.
    pub(super) fn filter(&self, named: Option<&str>) -> Result<Filter, Refusal> {
        let kind = named.or(self.text("kind")).map(shown_kind).transpose()?;
        let kinds = match kind {
            Some(kind) => vec![kind.into()],
            None => Kind::ALL.map(|kind| kind.name().into()).to_vec(),
        };
        let prefix = match (self.text("prefix"), self.text("service")) {
            (prefix, None) => prefix.map(Into::into),
            // Those of a service lie together, by name.
            (None, Some(service)) if kind == Some(ENDPOINT) => Some(format!("{service}/").into()),
            (None, Some(_)) => return Err(Refusal::bad("only endpoints are of a service").hint("kind=Endpoint")),
            (Some(_), Some(_)) => return Err(Refusal::bad("either prefix or service")),
        };
        Ok(Filter { kinds, namespace: self.text("namespace").map(Into::into), prefix })
    }
}

/// The kind that is meant, of those that can be looked at.
fn shown_kind(text: &str) -> Result<&'static str, Refusal> {
    if ["endpoint", "endpoints"].contains(&&*text.to_ascii_lowercase()) { Ok(ENDPOINT) } else { kind(text) }
}

/// The kind that is meant, of those that are configured.
fn kind(text: &str) -> Result<&'static str, Refusal> {
    config::kind_named(text).ok_or_else(|| {
        let names = Kind::ALL.map(Kind::name).join(", ");
        Refusal::not_found(format!("there is no kind {text:?}")).hint(format!("kinds: {names}"))
    })
}

/// The key that a path names, of what can be looked at.
pub(super) fn shown_key(kind: &str, namespace: &str, name: &str) -> Result<ObjectKey, Refusal> {
    of_parts(shown_kind(kind)?, namespace, name)
}

/// The key that a path names, of what is configured.
pub(super) fn key(kind_text: &str, namespace: &str, name: &str) -> Result<ObjectKey, Refusal> {
    if shown_kind(kind_text)? == ENDPOINT {
        return Err(Refusal::bad("registered endpoints are no part of the configuration")
            .hint("weft register and weft deregister; POST /v1/register and /v1/deregister"));
    }
    of_parts(kind(kind_text)?, namespace, name)
}

fn of_parts(kind: &str, namespace: &str, name: &str) -> Result<ObjectKey, Refusal> {
    if namespace.is_empty() || name.is_empty() {
        return Err(Refusal::bad("an object has a namespace and a name"));
    }
    Ok(ObjectKey::new(kind, namespace, name))
}
