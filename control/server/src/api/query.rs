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
use crate::config;

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

    /// Which objects; the control plane's own are never among them.
    pub(super) fn filter(&self, named: Option<&str>) -> Result<Filter, Refusal> {
        let kinds = match named.or(self.text("kind")) {
            Some(text) => vec![kind(text)?.into()],
            None => Kind::ALL.map(|kind| kind.name().into()).to_vec(),
        };
        Ok(Filter { kinds, namespace: self.text("namespace").map(Into::into), prefix: None })
    }
}

/// The kind that is meant.
pub(super) fn kind(text: &str) -> Result<&'static str, Refusal> {
    config::kind_named(text).ok_or_else(|| {
        let names = Kind::ALL.map(Kind::name).join(", ");
        Refusal::not_found(format!("there is no kind {text:?}")).hint(format!("kinds: {names}"))
    })
}

/// The key that a path names.
pub(super) fn key(kind_text: &str, namespace: &str, name: &str) -> Result<ObjectKey, Refusal> {
    if namespace.is_empty() || name.is_empty() {
        return Err(Refusal::bad("an object has a namespace and a name"));
    }
    Ok(ObjectKey::new(kind(kind_text)?, namespace, name))
}
