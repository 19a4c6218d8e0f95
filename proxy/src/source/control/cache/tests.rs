#![allow(clippy::unwrap_used)]
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;

fn accepted(kind: Kind, name: &str, resource: Option<(&str, &str)>) -> Accepted {
    let resource = resource.map(|(version, value)| (version.into(), Bytes::copy_from_slice(value.as_bytes())));
    Accepted { kind, name: name.into(), resource }
}

fn some() -> Vec<Accepted> {
    vec![
        accepted(Kind::Object, "Service/default/web", Some(("3", "web"))),
        accepted(Kind::Object, "Service/default/cart", Some(("4", "cart"))),
        accepted(Kind::Endpoint, "default/web/10.0.0.1:80", Some(("7", ""))),
    ]
}

fn reopened(dir: &Path) -> Vec<Accepted> {
    let (cache, mut saved) = Cache::open(dir).unwrap();
    cache.close();
    saved.sort_by(|one, other| (one.kind, &one.name).cmp(&(other.kind, &other.name)));
    saved
}

#[test]
fn what_is_noted_is_there_after_a_restart_and_nobody_else_can_read_it() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path().join("a/b");
    let (cache, saved) = Cache::open(&dir).unwrap();
    assert_eq!(saved, []);
    cache.note(some());
    cache.note(vec![accepted(Kind::Object, "Service/default/cart", None)]);
    cache.close();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&dir.join(FILE))), (0o700, 0o600));
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing is left beside it");
    let expected = vec![
        accepted(Kind::Object, "Service/default/web", Some(("3", "web"))),
        accepted(Kind::Endpoint, "default/web/10.0.0.1:80", Some(("7", ""))),
    ];
    assert_eq!(reopened(&dir), expected);
}

/// Whatever happened to the file, it is put aside and the node starts without it.
#[test]
fn no_damage_gets_through() {
    let dir = TempDir::new().unwrap();
    let (cache, _) = Cache::open(dir.path()).unwrap();
    cache.note(some());
    cache.close();
    let path = dir.path().join(FILE);
    let good = fs::read(&path).unwrap();
    let mut cases: Vec<(Vec<u8>, &str)> = (0..good.len()).map(|length| (good[..length].to_vec(), "")).collect();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        cases.push((bad, ""));
    }
    cases.push((
        b"listeners: []
"
        .repeat(20),
        "it is not a cache of Weft's",
    ));
    cases.push(([&good[..], b"more"].concat(), "it is not complete"));
    cases.push(([&MAGIC[..], &[0, 0, 0, 2], &good[12..]].concat(), "it has version 2 of the format, and this is 1"));
    for (bad, why) in cases {
        fs::write(&path, &bad).unwrap();
        let damage = read(&path).unwrap_err().to_string();
        assert!(why.is_empty() || damage == why, "{damage}");
        assert_eq!(reopened(dir.path()), []);
        assert_eq!(fs::read(path.with_extension("damaged")).unwrap(), bad);
        assert!(!path.exists());
    }
}

#[test]
fn a_disk_that_takes_nothing_hurts_nobody() {
    let dir = TempDir::new().unwrap();
    let (cache, _) = Cache::open(dir.path()).unwrap();
    cache.note(some());
    cache.close();
    // A directory is in the way of the new file.
    fs::create_dir(dir.path().join(FILE).with_extension(std::process::id().to_string())).unwrap();
    let (cache, saved) = Cache::open(dir.path()).unwrap();
    cache.note(vec![accepted(Kind::Object, "Service/default/cart", None)]);
    cache.close();
    assert_eq!(saved.len(), 3);
    assert_eq!(reopened(dir.path()).len(), 3, "the old one stays");
}

#[test]
fn the_last_of_many_changes_counts() {
    let dir = TempDir::new().unwrap();
    let (cache, _) = Cache::open(dir.path()).unwrap();
    for version in 0..1000 {
        cache.note(vec![accepted(Kind::Object, "Service/default/cart", Some((&version.to_string(), "x")))]);
    }
    cache.close();
    assert_eq!(reopened(dir.path()), [accepted(Kind::Object, "Service/default/cart", Some(("999", "x")))]);
}
