//! Certificates: what Weft shows to clients, and whom it believes behind an endpoint.
//!
//! | file | |
//! |---|---|
//! | `files.rs` | PEM from files or documents, checked, with errors that name the file |
//! | `server.rs` | which certificate a client gets (SNI), hot-swapped under one `ServerConfig` |
//! | `handshake.rs` | accepting TLS: bounded in number, bounded in time |
//! | `client.rs` | TLS towards endpoints (`BackendTLSPolicy`) |
//! | `store.rs` | all of it for one configuration; reloads what changed |
//! | `watch.rs` | watches the files and calls the store |

pub mod client;
pub mod files;
pub mod handshake;
pub mod server;
pub mod store;
pub mod watch;

#[cfg(test)]
mod testing;

use std::sync::{Arc, OnceLock};

pub use client::ClientTls;
pub use files::{IdentityError, LoadedCert, Problem};
pub use handshake::{Handshake, HandshakeError, Handshakes};
pub use server::{ListenerCerts, ServerIdentity};
pub use store::Identities;

use rustls::crypto::CryptoProvider;

/// The one cryptographic provider, so that nothing depends on a process-wide default being installed.
pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
}

/// TLS 1.2 and 1.3.
pub(crate) static VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

/// ALPN name of HTTP/2.
pub const ALPN_H2: &[u8] = b"h2";
/// ALPN name of HTTP/1.1.
pub const ALPN_HTTP1: &[u8] = b"http/1.1";
