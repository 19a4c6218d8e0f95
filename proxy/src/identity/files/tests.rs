#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use super::*;
use crate::identity::testing::{Ca, in_files};

fn load(chain: &str, key: &str) -> Result<LoadedCert, IdentityError> {
    let folder = tempfile::tempdir().unwrap();
    let (chain_file, key_file) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    fs::write(&chain_file, chain).unwrap();
    fs::write(&key_file, key).unwrap();
    LoadedCert::load(&in_files("shop", chain_file, key_file), SystemTime::now())
}

#[test]
fn a_good_pair_loads() {
    let leaf = Ca::new("ca").leaf(&["Shop.test", "*.shop.test"]);
    let loaded = load(&leaf.chain, &leaf.key).unwrap();
    assert_eq!(loaded.dns_names, ["shop.test".into(), "*.shop.test".into()] as [Arc<str>; 2]);
    assert!(loaded.warnings.is_empty());
    assert!(loaded.not_after > SystemTime::now());
}

#[test]
fn each_defect_has_its_own_words() {
    let ca = Ca::new("ca");
    let (leaf, other) = (ca.leaf(&["a.test"]), ca.leaf(&["a.test"]));
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let half = &leaf.chain[..leaf.chain.len() / 2];
    let not_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let not_base64 = "-----BEGIN CERTIFICATE-----\n%%%%\n-----END CERTIFICATE-----\n";
    let bad_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for (chain, key, file, problem) in [
        ("", leaf.key.as_str(), "tls.crt", Problem::NoCertificate),
        (&leaf.key, &leaf.key, "tls.crt", Problem::NoCertificate),
        (half, &leaf.key, "tls.crt", Problem::BadPem("a block has no END line".into())),
        (not_base64, &leaf.key, "tls.crt", Problem::BadPem("a block is not base64".into())),
        (&leaf.chain, "", "tls.key", Problem::NoKey),
        (&leaf.chain, &leaf.chain, "tls.key", Problem::NoKey),
        (&leaf.chain, encrypted, "tls.key", Problem::EncryptedKey),
        (&leaf.chain, &other.key, "tls.key", Problem::KeyMismatch),
    ] {
        let error = load(chain, key).unwrap_err();
        assert_eq!(error.problem, problem);
        assert!(error.to_string().contains(file), "{error}");
        assert!(error.to_string().starts_with("certificate `shop`: /"), "{error}");
        assert!(!error.hint().is_empty());
    }
    assert!(matches!(load(not_der, &leaf.key).unwrap_err().problem, Problem::BadCertificate { index: 1, .. }));
    assert!(matches!(load(&leaf.chain, bad_key).unwrap_err().problem, Problem::BadKey(_)));
}

#[test]
fn files_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let missing = in_files("shop", folder.path().join("none"), folder.path().join("none"));
    assert_eq!(LoadedCert::load(&missing, SystemTime::now()).unwrap_err().problem, Problem::NotFound);
    let directory = in_files("shop", folder.path().into(), folder.path().into());
    let problem = LoadedCert::load(&directory, SystemTime::now()).unwrap_err().problem;
    assert_eq!(problem, Problem::Unreadable("not a regular file".into()));
    let huge = folder.path().join("huge");
    fs::File::create(&huge).unwrap().set_len(MAX_PEM_BYTES + 1).unwrap();
    let huge = in_files("shop", huge.clone(), huge);
    assert_eq!(LoadedCert::load(&huge, SystemTime::now()).unwrap_err().problem, Problem::TooLarge);
    let mut nothing = huge;
    nothing.chain = None;
    let problem = LoadedCert::load(&nothing, SystemTime::now()).unwrap_err().problem;
    assert_eq!(problem, Problem::Missing("a certificate chain"));
}

#[test]
fn an_expired_certificate_loads_with_a_warning() {
    let ca = Ca::new("ca");
    let expired = ca.leaf_with(&["a.test"], |p| {
        p.not_before = rcgen::date_time_ymd(2001, 1, 1);
        p.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    let loaded = load(&expired.chain, &expired.key).unwrap();
    assert!(matches!(loaded.warnings[..], [Warning::Expired { .. }]));
    assert!(loaded.warnings[0].to_string().ends_with(" days ago"));
    let future = ca.leaf_with(&["a.test"], |p| p.not_before = rcgen::date_time_ymd(2999, 1, 1));
    assert!(matches!(load(&future.chain, &future.key).unwrap().warnings[..], [Warning::NotYetValid { .. }]));
    let nameless = ca.leaf(&[]);
    assert_eq!(load(&nameless.chain, &nameless.key).unwrap().warnings, [Warning::NoNames]);
}

#[test]
fn a_bundle_holds_several_authorities() {
    let bundle = format!("{}\n# a comment\n{}", Ca::new("one").pem, Ca::new("two").pem);
    let mut certificate = in_files("ca", "unused".into(), "unused".into());
    certificate.ca = Some(Pem::Inline(bundle.into()));
    let mut roots = RootCertStore::empty();
    load_authorities(&certificate, &mut roots).unwrap();
    assert_eq!(roots.len(), 2);
    certificate.ca = Some(Pem::Inline("no PEM".into()));
    let error = load_authorities(&certificate, &mut roots).unwrap_err();
    assert_eq!(error.to_string(), "certificate `ca`: inline ca: no certificate in it");
}

#[test]
fn spans_use_one_unit() {
    for (seconds, text) in [(5, "5 seconds"), (600, "10 minutes"), (7_200, "2 hours"), (864_000, "10 days")] {
        assert_eq!(span(Duration::from_secs(seconds)), text);
    }
}
