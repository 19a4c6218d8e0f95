//! As much as a large cluster has.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
};

use weft_ebpf::maps::Live;
use weft_model::{
    Config,
    config::{Key, Service},
};

use crate::support::{Bed, config, live, yaml::service};

const SERVICES: u32 = 64_000;
const ENDPOINTS: u32 = 16_000;

fn vip(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a_60_00_00 + number).into()
}

fn endpoint(number: u32, port: u16) -> SocketAddr {
    (Ipv4Addr::from_bits(0x7f_01_00_00 + number), port).into()
}

#[test]
fn many_services_and_endpoints() {
    let Some(bed) = Bed::make("many_services_and_endpoints") else { return };
    let agent = bed.agent();
    // One listener is at all addresses of loopback, and says at which it was met.
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let met = format!("{}\n", stream.local_addr().unwrap());
            let _ = stream.write_all(met.as_bytes());
        }
    });
    // Made from one that was read: reading so many is another test's matter.
    let one = config(&[service("s", &["10.96.0.1"], 80, "Direct")]);
    let services = (0..SERVICES).map(|number| {
        let mut service = Service::clone(&one.services[0]);
        service.key = Key::new("default", &format!("s{number}"));
        service.cluster_ips = vec![vip(number)];
        Arc::new(service)
    });
    let mut config = Config { services: services.collect(), ..Config::clone(&one) };
    // Every fourth has an endpoint.
    let all: Vec<Live> = (0..ENDPOINTS)
        .map(|number| live(&format!("s{}", number * 4), 80, u64::from(number) + 1, endpoint(number, port)))
        .collect();
    agent.update(Arc::new(config.clone()), all.clone()).unwrap();
    agent.attach();
    let status = agent.status();
    assert_eq!(status["unfit"], serde_json::json!([]));
    let used = |name: &str| {
        let maps = status["maps"].as_array().unwrap();
        maps.iter().find(|map| map["map"] == name).unwrap()["used"].as_u64().unwrap()
    };
    assert_eq!((used("VIPS"), used("ENDPOINTS")), (u64::from(SERVICES) * 2, u64::from(ENDPOINTS)));

    let mut client = bed.client("web");
    let mut random = fastrand::Rng::with_seed(1);
    let some = [0, 1, SERVICES - 1, SERVICES - 4].into_iter().chain((0..200).map(|_| random.u32(..SERVICES)));
    for number in some.collect::<Vec<_>>() {
        let to = format!("{}:80", vip(number));
        if number.is_multiple_of(4) {
            assert_eq!(client.greeted(&to), endpoint(number / 4, port).to_string(), "{to}");
        } else {
            assert_eq!(client.refused(&to).0, i64::from(libc::ECONNREFUSED), "{to}");
        }
    }
    // A service goes: its address is nobody's, the others are as they were.
    config.services.remove(4);
    agent.update(Arc::new(config), all).unwrap();
    assert_eq!(client.greeted(&format!("{}:80", vip(8))), endpoint(2, port).to_string());
    let gone = client.ask("connect", &serde_json::json!({ "to": format!("{}:80", vip(4)), "limit_ms": 100 }));
    assert!(gone["hello"].is_null(), "{gone}");
    assert_eq!(agent.count("deny no_port"), 0);
}
