//! What shares a budget.

use std::{fmt, sync::Arc};

use http::HeaderName;
use weft_model::config::RateKey;

/// [`RateKey`], ready to be looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// Everybody.
    Global,
    /// Value of a header.
    Header(HeaderName),
    /// Value of a cookie.
    Cookie(Arc<str>),
    /// The client's address.
    SourceIp,
    /// The client's SPIFFE id.
    Identity,
    /// The path without its query.
    Path,
}

impl From<&RateKey> for Key {
    fn from(written: &RateKey) -> Self {
        match written {
            // Names have been checked. If one got here all the same, better to limit everybody than nobody.
            RateKey::Header(name) => HeaderName::try_from(&**name).map_or(Self::Global, Self::Header),
            RateKey::Cookie(name) => Self::Cookie(name.clone()),
            RateKey::SourceIp => Self::SourceIp,
            RateKey::Identity => Self::Identity,
            RateKey::Path => Self::Path,
            RateKey::Global => Self::Global,
        }
    }
}

impl fmt::Display for Key {
    /// As people write it: `global`, `header x-user`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global => f.write_str("global"),
            Self::Header(name) => write!(f, "header {name}"),
            Self::Cookie(name) => write!(f, "cookie {name}"),
            Self::SourceIp => f.write_str("sourceIP"),
            Self::Identity => f.write_str("identity"),
            Self::Path => f.write_str("path"),
        }
    }
}
