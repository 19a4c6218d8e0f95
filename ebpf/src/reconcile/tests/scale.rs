//! Full maps. Prints how long it takes: `cargo test --release -p weft-ebpf scale -- --nocapture`.

use std::time::Instant;

use weft_model::config::*;

use super::*;
use crate::maps::{Live, desired};

const SERVICES: usize = 64_000;
const ENDPOINTS: usize = 16_000;

fn world() -> (Config, Vec<Live>) {
    let mut config = Config::default();
    let mut live = Vec::new();
    for n in 0..SERVICES {
        let key = Key::new("default", &format!("service-{n}"));
        config.services.push(Arc::new(Service {
            key: key.clone(),
            cluster_ips: vec![IpAddr::V4(Ipv4Addr::from_bits(0x0a60_0000 + n as u32))],
            mode: ServiceMode::Auto,
            fail_open: false,
            ports: vec![ServicePort { name: "".into(), port: 80, protocol: AppProtocol::Tcp, declared: true }],
            endpoints: vec![],
        }));
        if n % 8 == 0 {
            for i in 0..ENDPOINTS * 8 / SERVICES {
                live.push(Live {
                    service: key.clone(),
                    port: 80,
                    id: (n * 8 + i) as u64,
                    address: SocketAddr::from(([10, 1, (n >> 8) as u8, n as u8], 9000 + i as u16)),
                    weight: 1 + i as u32,
                    usable: true,
                    source: None,
                });
            }
        }
    }
    (config, live)
}

use std::net::{IpAddr, Ipv4Addr};

#[test]
fn scale() {
    let (config, mut live) = world();
    let mut fake = Fake::default();
    let mut reconciler = Reconciler::adopt(&fake).unwrap();
    let time = |what: &str, begin: Instant| println!("{what}: {} ms", begin.elapsed().as_millis());
    let begin = Instant::now();
    let wanted = desired(&config, &live, |_| None);
    time("desired", begin);
    let begin = Instant::now();
    assert!(reconciler.apply(&wanted, &mut fake).unwrap().unfit.is_empty());
    time("first apply, the fake's own writes included", begin);
    println!("writes: {}", fake.writes());
    let begin = Instant::now();
    reconciler.apply(&wanted, &mut fake).unwrap();
    time("nothing new", begin);
    assert_eq!(fake.writes(), 0);
    live[0].usable = false;
    let wanted = desired(&config, &live, |_| None);
    let begin = Instant::now();
    reconciler.apply(&wanted, &mut fake).unwrap();
    time("one endpoint out", begin);
    assert_eq!(fake.writes(), 3, "mask, slot, address");
    let begin = Instant::now();
    let mut reconciler = Reconciler::adopt(&fake).unwrap();
    time("adopt", begin);
    let begin = Instant::now();
    reconciler.apply(&wanted, &mut fake).unwrap();
    time("after a restart", begin);
    assert_eq!(fake.writes(), 0);
    let begin = Instant::now();
    reconciler.apply(&Desired::default(), &mut fake).unwrap();
    time("all gone", begin);
    assert!(fake.content.vips.is_empty());
}
