//! Against a DNS server of a few lines, which changes its mind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::HashMap, net::Ipv6Addr};

use tokio::{net::UdpSocket, task::JoinSet};

use super::*;

/// What the server says about a name.
#[derive(Clone, Default)]
struct Zone {
    a: Vec<Ipv4Addr>,
    aaaa: Vec<Ipv6Addr>,
    ttl: u32,
    /// SERVFAIL (2), NXDOMAIN (3), …
    code: u8,
    silent: bool,
}

struct Dns {
    address: SocketAddr,
    zones: Arc<Mutex<HashMap<String, Zone>>>,
    asked: Arc<Mutex<Vec<(String, u16)>>>,
    _task: JoinSet<()>,
}

impl Dns {
    async fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let zones = Arc::new(Mutex::new(HashMap::<String, Zone>::new()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (facts, log) = (zones.clone(), asked.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut packet = [0; 1500];
            loop {
                let (length, client) = socket.recv_from(&mut packet).await.unwrap();
                let (name, kind, end) = question(&packet[..length]);
                log.lock().unwrap().push((name.clone(), kind));
                let zone = facts.lock().unwrap().get(&name).cloned();
                let zone = zone.unwrap_or(Zone { code: 3, ..Zone::default() });
                if !zone.silent {
                    socket.send_to(&reply(&packet[..end], kind, &zone), client).await.unwrap();
                }
            }
        });
        Self { address, zones, asked, _task: task }
    }

    fn say(&self, name: &str, zone: Zone) {
        self.zones.lock().unwrap().insert(name.to_owned(), zone);
    }

    fn resolver(&self) -> Resolver {
        Resolver::with_servers(&[self.address]).unwrap()
    }
}

/// Name, type and end of the question.
fn question(packet: &[u8]) -> (String, u16, usize) {
    let (mut labels, mut at) = (Vec::new(), 12);
    while packet[at] != 0 {
        let length = usize::from(packet[at]);
        labels.push(String::from_utf8(packet[at + 1..=at + length].to_vec()).unwrap().to_lowercase());
        at += length + 1;
    }
    (labels.join("."), u16::from_be_bytes([packet[at + 1], packet[at + 2]]), at + 5)
}

fn reply(question: &[u8], kind: u16, zone: &Zone) -> Vec<u8> {
    let records: Vec<Vec<u8>> = match kind {
        1 => zone.a.iter().map(|address| address.octets().to_vec()).collect(),
        28 => zone.aaaa.iter().map(|address| address.octets().to_vec()).collect(),
        _ => Vec::new(),
    };
    let mut reply = question.to_vec();
    // A response, recursion available; one question, the answers, no other records.
    reply[2..4].copy_from_slice(&[0x81, 0x80 | zone.code]);
    reply[4..12].copy_from_slice(&[0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
    for data in records {
        // The name is that of the question; class IN.
        reply.extend([0xc0, 12, 0, kind as u8, 0, 1]);
        reply.extend(zone.ttl.to_be_bytes());
        reply.extend([0, data.len() as u8]);
        reply.extend(data);
    }
    reply
}

fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}

fn v6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last)
}

#[tokio::test]
async fn addresses_are_of_one_family() {
    let dns = Dns::new().await;
    let zone = |a: &[u8], aaaa: &[u16], code| Zone {
        a: a.iter().copied().map(v4).collect(),
        aaaa: aaaa.iter().copied().map(v6).collect(),
        ttl: 60,
        code,
        silent: false,
    };
    dns.say("both.test", zone(&[2, 1, 2], &[1], 0));
    dns.say("six.test", zone(&[], &[2, 1], 0));
    dns.say("none.test", zone(&[], &[], 0));
    dns.say("broken.test", zone(&[], &[1], 2));
    let resolver = dns.resolver();
    let resolve = async |name: &str| resolver.resolve(name).await.map(|answer| answer.addresses);
    assert_eq!(resolve("both.test").await.unwrap(), [IpAddr::from(v4(1)), v4(2).into()]);
    assert_eq!(resolve("six.test.").await.unwrap(), [IpAddr::from(v6(1)), v6(2).into()]);
    assert!(matches!(resolve("none.test").await, Err(ResolveError::NoAddress)));
    assert!(matches!(resolve("unknown.test").await, Err(ResolveError::NoAddress)));
    assert!(matches!(resolve("").await, Err(ResolveError::BadName | ResolveError::NoAddress)));
    let long = "x".repeat(64);
    assert!(matches!(resolve(&long).await, Err(ResolveError::BadName)));
    // A failure to look up IPv4 is not the absence of IPv4.
    assert!(matches!(resolve("broken.test").await, Err(ResolveError::Dns(_))));
    assert!(!dns.asked.lock().unwrap().contains(&("broken.test".into(), 28)));
    // Nobody is asked about addresses.
    dns.asked.lock().unwrap().clear();
    assert_eq!(resolve("192.0.2.1").await.unwrap(), [IpAddr::from([192, 0, 2, 1])]);
    assert_eq!(resolve("::1").await.unwrap(), [IpAddr::from(Ipv6Addr::LOCALHOST)]);
    assert!(dns.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_time_to_live_has_bounds() {
    let dns = Dns::new().await;
    for (ttl, least, most) in [(0, 1.0, 1.0), (60, 58.0, 60.0), (86_400, 298.0, 300.0)] {
        let name = format!("ttl-{ttl}.test");
        dns.say(&name, Zone { a: vec![v4(1)], ttl, ..Zone::default() });
        let got = dns.resolver().resolve(&name).await.unwrap().ttl.as_secs_f64();
        assert!((least..=most).contains(&got), "{ttl}: {got}");
    }
}

#[tokio::test]
async fn a_watch_follows_changes_and_outlives_failures() {
    let dns = Dns::new().await;
    let name = "shop.test";
    let mut watch = dns.resolver().watch(&Handle::current(), name);
    assert!(watch.borrow().is_empty());
    let asked = || dns.asked.lock().unwrap().iter().filter(|(_, kind)| *kind == 1).count();
    // Not there yet.
    while asked() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let say = |a: &[u8]| dns.say(name, Zone { a: a.iter().copied().map(v4).collect(), ttl: 1, ..Zone::default() });
    let next = async |watch: &mut watch::Receiver<Vec<IpAddr>>| {
        tokio::time::timeout(Duration::from_secs(20), watch.changed()).await.expect("a change in time").unwrap();
        watch.borrow_and_update().clone()
    };
    say(&[1]);
    assert_eq!(next(&mut watch).await, [IpAddr::from(v4(1))]);
    say(&[2, 1]);
    assert_eq!(next(&mut watch).await, [IpAddr::from(v4(1)), v4(2).into()]);
    // Another order is no change, a failure and an empty answer neither.
    let before = asked();
    say(&[1, 2]);
    while asked() == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for code in [2, 3] {
        let before = asked();
        dns.say(name, Zone { code, ..Zone::default() });
        while asked() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    say(&[3]);
    assert_eq!(next(&mut watch).await, [IpAddr::from(v4(3))]);
}

#[tokio::test]
async fn a_watch_ends_with_its_receivers() {
    let dns = Dns::new().await;
    dns.say("silent.test", Zone { silent: true, ..Zone::default() });
    dns.say("shop.test", Zone { a: vec![v4(1)], ttl: 60, ..Zone::default() });
    let resolver = dns.resolver();
    let silent = resolver.watch(&Handle::current(), "silent.test");
    let mut waits = resolver.watch(&Handle::current(), "shop.test");
    waits.changed().await.unwrap();
    // Each task has a clone.
    assert_eq!(Arc::strong_count(&resolver.0), 3);
    drop((silent, waits));
    let end = Instant::now() + Duration::from_secs(20);
    while Arc::strong_count(&resolver.0) > 1 {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn localhost_needs_no_server() {
    let resolver = Resolver::new();
    for name in ["localhost", "LOCALHOST", "localhost.", "shop.localhost"] {
        assert_eq!(resolver.resolve(name).await.unwrap().addresses, [IpAddr::from(Ipv4Addr::LOCALHOST)], "{name}");
    }
    assert!(!is_localhost("localhost.example") && !is_localhost("notlocalhost") && !is_localhost(""));
}

#[tokio::test]
async fn resolv_conf_may_be_absent_and_may_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resolv.conf");
    let source = System::new(path.clone());
    assert!(source.resolver().is_err());
    let resolver = Resolver(Arc::new(Source::System(System::new(path.clone()))));
    assert!(matches!(resolver.resolve("shop.test").await, Err(ResolveError::NoServer(_))));
    assert!(resolver.resolve("localhost").await.is_ok());

    let write = |text: &str, seconds: u64| {
        std::fs::write(&path, text).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
    };
    write("nameserver 192.0.2.1\noptions ndots:5\n", 1);
    let first = source.resolver().unwrap();
    assert_eq!(first.options().ndots, 5);
    assert!(Arc::ptr_eq(&first, &source.resolver().unwrap()));
    write("nameserver 192.0.2.2\noptions ndots:2\n", 2);
    let second = source.resolver().unwrap();
    assert_eq!(second.options().ndots, 2);
    // Damaged or gone: what there was.
    write("", 3);
    assert!(Arc::ptr_eq(&second, &source.resolver().unwrap()));
    std::fs::remove_file(&path).unwrap();
    assert!(Arc::ptr_eq(&second, &source.resolver().unwrap()));
}

#[test]
fn waits_grow_and_are_spread() {
    let mut rng = fastrand::Rng::with_seed(1);
    for (failures, most) in [(1, 1.0), (2, 2.0), (3, 4.0), (5, 16.0), (6, 30.0), (u32::MAX, 30.0)] {
        let all: Vec<f64> = (0..200).map(|_| back_off(failures, &mut rng).as_secs_f64()).collect();
        assert!(all.iter().all(|wait| (most / 2.0..=most).contains(wait)), "{failures}");
        assert!(all.iter().any(|wait| *wait < most * 0.6) && all.iter().any(|wait| *wait > most * 0.9), "{failures}");
    }
}
