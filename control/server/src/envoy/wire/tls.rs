//! `envoy.extensions.transport_sockets.tls.v3`

use prost::Message;

use super::{DataSource, StringMatcher};

/// `DownstreamTlsContext`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct DownstreamTlsContext {
    #[prost(message, optional, tag = "1")]
    pub common_tls_context: Option<CommonTls>,
}

/// `UpstreamTlsContext`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct UpstreamTlsContext {
    #[prost(message, optional, tag = "1")]
    pub common_tls_context: Option<CommonTls>,
    #[prost(string, tag = "2")]
    pub sni: String,
}

/// `CommonTlsContext`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct CommonTls {
    #[prost(message, repeated, tag = "2")]
    pub tls_certificates: Vec<TlsCertificate>,
    #[prost(message, optional, tag = "3")]
    pub validation_context: Option<Validation>,
    #[prost(string, repeated, tag = "4")]
    pub alpn_protocols: Vec<String>,
}

/// `TlsCertificate`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct TlsCertificate {
    #[prost(message, optional, tag = "1")]
    pub certificate_chain: Option<DataSource>,
    #[prost(message, optional, tag = "2")]
    pub private_key: Option<DataSource>,
}

/// `CertificateValidationContext`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Validation {
    #[prost(message, optional, tag = "1")]
    pub trusted_ca: Option<DataSource>,
    #[prost(message, repeated, tag = "15")]
    pub match_typed_subject_alt_names: Vec<SanMatcher>,
}

/// `SubjectAltNameMatcher`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct SanMatcher {
    #[prost(enumeration = "SanType", tag = "1")]
    pub san_type: i32,
    #[prost(message, optional, tag = "2")]
    pub matcher: Option<StringMatcher>,
}

/// `SubjectAltNameMatcher.SanType`
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(in crate::envoy) enum SanType {
    Unspecified = 0,
    Dns = 2,
    Uri = 3,
}
