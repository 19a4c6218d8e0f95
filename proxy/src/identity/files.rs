//! PEM text from files or from the documents themselves.
//!
//! Nothing here trusts a file: it may be missing, unreadable, huge, half written or belong to somebody else's key. Each
//! of these is an error that names the file and says what to do. A certificate that has expired is still loaded, with a
//! warning: refusing it would turn a nuisance into an outage.

use std::{
    fmt,
    io::{self, Read},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    sign::CertifiedKey,
};
use weft_model::config::{Certificate, Key, Pem};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::provider;

/// Larger PEM files are refused: no chain or bundle comes near (the whole Mozilla root store is about 220 KiB).
const MAX_PEM_BYTES: u64 = 4 << 20;

/// Key material that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("certificate `{certificate}`: {place}: {problem}")]
pub struct IdentityError {
    /// The object that names the material.
    pub certificate: Key,
    /// The file, or the field of the document.
    pub place: String,
    /// What is wrong.
    pub problem: Problem,
}

impl IdentityError {
    /// What to do about it.
    pub const fn hint(&self) -> &'static str {
        self.problem.hint()
    }
}

/// What is wrong with a piece of key material.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A reference leads nowhere.
    #[error("no Certificate, Secret or ConfigMap of this name has {0}")]
    Missing(&'static str),
    /// The file is not there.
    #[error("no such file")]
    NotFound,
    /// The file is there but this process may not read it.
    #[error("permission denied")]
    Forbidden,
    /// Any other failure to read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// The file is far larger than any PEM file.
    #[error("larger than {} MiB", MAX_PEM_BYTES >> 20)]
    TooLarge,
    /// Not a PEM file, or a damaged one.
    #[error("damaged PEM: {0}")]
    BadPem(String),
    /// PEM without a `CERTIFICATE` block.
    #[error("no certificate in it")]
    NoCertificate,
    /// A `CERTIFICATE` block that is none.
    #[error("certificate {index} cannot be decoded: {reason}")]
    BadCertificate {
        /// Counted from 1, in the order of the file.
        index: usize,
        /// From the decoder.
        reason: String,
    },
    /// PEM without a private key.
    #[error("no private key in it")]
    NoKey,
    /// The key is protected by a passphrase.
    #[error("the private key is encrypted")]
    EncryptedKey,
    /// The key is of an unsupported kind.
    #[error("the private key cannot be used: {0}")]
    BadKey(String),
    /// Key and leaf certificate are not a pair.
    #[error("the private key does not belong to the first certificate of the chain")]
    KeyMismatch,
    /// The host's own trust store is unusable.
    #[error("the system has no usable CA certificates: {0}")]
    NoSystemRoots(String),
    /// A name that no certificate can carry.
    #[error("`{0}` is not a valid DNS name")]
    BadName(String),
    /// The cryptographic library refused to work.
    #[error("TLS cannot be set up: {0}")]
    Crypto(String),
}

impl Problem {
    /// What to do about it.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Missing(_) => "check the name and namespace of the reference",
            Self::NotFound => "relative paths start at the directory of the document that names them",
            Self::Forbidden => "let the user that runs weft read the file, for instance through its group",
            Self::Unreadable(_) => "it has to be a regular file that weft can read",
            Self::TooLarge => "is this the right file?",
            Self::BadPem(_) => "each block needs its BEGIN and END lines with base64 between them",
            Self::NoCertificate => {
                "expected PEM with `-----BEGIN CERTIFICATE-----`; convert DER with `openssl x509 -inform der`"
            }
            Self::BadCertificate { .. } => "look at the file with `openssl x509 -text`",
            Self::NoKey => "expected PEM with `-----BEGIN PRIVATE KEY-----` (PKCS #8, PKCS #1 or SEC 1)",
            Self::EncryptedKey => {
                "store it without a passphrase (`openssl pkey -in KEY -out PLAIN`) and restrict who can read it"
            }
            Self::BadKey(_) => "use ECDSA P-256 or P-384, Ed25519, or RSA with 2048 to 8192 bits",
            Self::KeyMismatch => "the chain has to start with the certificate of this key; intermediates follow",
            Self::NoSystemRoots(_) => "install the ca-certificates package, or use caCertificateRefs",
            Self::BadName(_) => "use a DNS name without a port; a wildcard is one leading `*.`",
            Self::Crypto(_) => "a defect in Weft: please report it with the log",
        }
    }
}

/// Something that works today and deserves a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// Clients will refuse it.
    Expired {
        /// For how long.
        ago: Duration,
    },
    /// Clients will refuse it until then.
    NotYetValid {
        /// How long from now.
        within: Duration,
    },
    /// It names no host: only clients that verify nothing accept it.
    NoNames,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired { ago } => write!(f, "expired {} ago", span(*ago)),
            Self::NotYetValid { within } => write!(f, "not valid before {} from now", span(*within)),
            Self::NoNames => f.write_str("has no DNS subjectAltName; clients ignore the common name"),
        }
    }
}

/// `3 days`, `5 hours`, `40 seconds`: the largest unit that fits.
pub(crate) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (count, unit) = match seconds {
        172_800.. => (seconds / 86_400, "days"),
        7_200.. => (seconds / 3_600, "hours"),
        120.. => (seconds / 60, "minutes"),
        _ => (seconds, "seconds"),
    };
    format!("{count} {unit}")
}

/// A chain with its key, ready to be shown to clients.
#[derive(Debug, Clone)]
pub struct LoadedCert {
    /// The object it came from.
    pub key: Key,
    /// What rustls needs.
    pub certified: Arc<CertifiedKey>,
    /// DNS names of the leaf, lower case, a wildcard as `*.example.com`.
    pub dns_names: Vec<Arc<str>>,
    /// End of validity of the leaf.
    pub not_after: SystemTime,
    /// For the log.
    pub warnings: Vec<Warning>,
}

impl LoadedCert {
    /// Reads and checks chain and key of `certificate`.
    pub fn load(certificate: &Certificate, now: SystemTime) -> Result<Self, IdentityError> {
        let (chain_pem, chain_text) = read(certificate, certificate.chain.as_ref(), "a certificate chain")?;
        let (key_pem, key_text) = read(certificate, certificate.private_key.as_ref(), "a private key")?;
        let chain = certificates(&chain_text).map_err(|problem| error(certificate, chain_pem, "chain", problem))?;
        let names = chain.first().ok_or(Problem::NoCertificate).and_then(|leaf| describe(leaf, 1, now));
        let (dns_names, not_after, warnings) = names.map_err(|p| error(certificate, chain_pem, "chain", p))?;
        let key = private_key(&key_text).map_err(|problem| error(certificate, key_pem, "key", problem))?;
        let certified = CertifiedKey::from_der(chain, key, provider()).map_err(|reason| {
            let problem = match reason {
                rustls::Error::InconsistentKeys(_) => Problem::KeyMismatch,
                other => Problem::BadKey(other.to_string()),
            };
            error(certificate, key_pem, "key", problem)
        })?;
        Ok(Self { key: certificate.key.clone(), certified: Arc::new(certified), dns_names, not_after, warnings })
    }
}

/// Adds the CA bundle of `certificate` to `roots`.
pub fn load_authorities(certificate: &Certificate, roots: &mut RootCertStore) -> Result<(), IdentityError> {
    let (pem, text) = read(certificate, certificate.ca.as_ref(), "a CA bundle")?;
    let found = certificates(&text).map_err(|problem| error(certificate, pem, "ca", problem))?;
    for (index, authority) in found.into_iter().enumerate() {
        roots.add(authority).map_err(|reason| {
            error(certificate, pem, "ca", Problem::BadCertificate { index: index + 1, reason: reason.to_string() })
        })?;
    }
    Ok(())
}

/// The bytes of one piece of key material; used to see whether anything changed.
pub(crate) fn bytes(pem: &Pem) -> Result<Vec<u8>, Problem> {
    match pem {
        Pem::Inline(text) => Ok(text.as_bytes().to_vec()),
        Pem::File(path) => read_file(path),
    }
}

/// Names, end of validity and warnings of a leaf.
type Description = (Vec<Arc<str>>, SystemTime, Vec<Warning>);

fn describe(leaf: &CertificateDer<'_>, index: usize, now: SystemTime) -> Result<Description, Problem> {
    let bad = |reason: String| Problem::BadCertificate { index, reason };
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|e| bad(e.to_string()))?;
    let mut names: Vec<Arc<str>> = Vec::new();
    if let Some(alternative) = leaf.subject_alternative_name().map_err(|e| bad(e.to_string()))? {
        for name in &alternative.value.general_names {
            if let GeneralName::DNSName(name) = name {
                names.push(name.to_ascii_lowercase().into());
            }
        }
    }
    let not_before = system_time(leaf.validity().not_before.timestamp());
    let not_after = system_time(leaf.validity().not_after.timestamp());
    let mut warnings = Vec::new();
    if let Ok(ago) = now.duration_since(not_after) {
        warnings.push(Warning::Expired { ago });
    } else if let Ok(within) = not_before.duration_since(now)
        && !within.is_zero()
    {
        warnings.push(Warning::NotYetValid { within });
    }
    if names.is_empty() {
        warnings.push(Warning::NoNames);
    }
    Ok((names, not_after, warnings))
}

/// Times before 1970 are as good as 1970.
fn system_time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn read<'a>(
    certificate: &'a Certificate,
    pem: Option<&'a Pem>,
    part: &'static str,
) -> Result<(&'a Pem, Vec<u8>), IdentityError> {
    let Some(pem) = pem else {
        let place = "reference".into();
        return Err(IdentityError { certificate: certificate.key.clone(), place, problem: Problem::Missing(part) });
    };
    let text = bytes(pem).map_err(|problem| error(certificate, pem, part, problem))?;
    Ok((pem, text))
}

fn error(certificate: &Certificate, pem: &Pem, part: &str, problem: Problem) -> IdentityError {
    let place = match pem {
        Pem::File(path) => path.display().to_string(),
        Pem::Inline(_) => format!("inline {part}"),
    };
    IdentityError { certificate: certificate.key.clone(), place, problem }
}

fn read_file(path: &Path) -> Result<Vec<u8>, Problem> {
    let explain = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Problem::NotFound,
        io::ErrorKind::PermissionDenied => Problem::Forbidden,
        _ => Problem::Unreadable(error.to_string()),
    };
    // Looked at before it is opened: opening a FIFO would wait for a writer.
    let meta = std::fs::metadata(path).map_err(explain)?;
    if !meta.is_file() {
        return Err(Problem::Unreadable("not a regular file".into()));
    }
    let mut text = Vec::new();
    std::fs::File::open(path).map_err(explain)?.take(MAX_PEM_BYTES + 1).read_to_end(&mut text).map_err(explain)?;
    if text.len() as u64 > MAX_PEM_BYTES {
        return Err(Problem::TooLarge);
    }
    Ok(text)
}

fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().map_err(bad_pem)?;
    if found.is_empty() { Err(Problem::NoCertificate) } else { Ok(found) }
}

fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, Problem> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        pem::Error::NoItemsFound if memchr::memmem::find(text, b"ENCRYPTED PRIVATE KEY").is_some() => {
            Problem::EncryptedKey
        }
        pem::Error::NoItemsFound => Problem::NoKey,
        other => bad_pem(other),
    })
}

fn bad_pem(error: pem::Error) -> Problem {
    match error {
        // Never quotes the line: it may be part of a key.
        pem::Error::IllegalSectionStart { .. } => Problem::BadPem("malformed BEGIN line".into()),
        pem::Error::MissingSectionEnd { .. } => Problem::BadPem("a block has no END line".into()),
        pem::Error::Base64Decode(_) => Problem::BadPem("a block is not base64".into()),
        other => Problem::BadPem(other.to_string()),
    }
}

#[cfg(test)]
mod tests;
