//! getpeername(): what the application sees of its peer.

use std::sync::Arc;

use serde_json::json;

use crate::support::{
    Bed, Capture, Endpoint, config, live,
    yaml::{service, workload},
};

#[test]
fn an_application_sees_whom_it_asked_for() {
    let Some(bed) = Bed::make("an_application_sees_whom_it_asked_for") else { return };
    let agent = Arc::new(bed.agent());
    let endpoint = Endpoint::start("direct");
    let config = config(&[
        service("direct", &["10.96.0.20", "fd00:96::20"], 6379, "Direct"),
        service("proxied", &["10.96.0.30", "fd00:96::30"], 80, "Proxy"),
        workload("web"),
    ]);
    agent.put(&config, vec![live("direct", 6379, 1, endpoint.address)]);
    let _capture = Capture::start(&agent);
    agent.attach();
    let mut web = bed.client("web");
    let six = Endpoint::at("direct", "[::1]:0".parse().unwrap());
    let (real, real6) = (endpoint.address.to_string(), six.address.to_string());
    let mapped = format!("[::ffff:127.0.0.1]:{}", endpoint.address.port());
    for (to, elsewhere) in [
        ("10.96.0.20:6379", &real),
        ("10.96.0.30:80", &real),
        // Not through v4-mapped: after that a socket reaches IPv6 no more, with or without us.
        ("[fd00:96::30]:80", &real6),
        ("[::ffff:10.96.0.20]:6379", &mapped),
        ("[::ffff:10.96.0.30]:80", &mapped),
    ] {
        let answer = web.connect(to);
        assert_eq!(answer["peer"], to, "{answer}");
        // connect(AF_UNSPEC) runs no hook; what the socket asked for before must not stick to it.
        let socket = answer["socket"].as_u64().unwrap();
        let answer = web.ask("again", &json!({ "socket": socket, "to": elsewhere }));
        assert_eq!((&answer["peer"], &answer["hello"]), (&json!(elsewhere), &json!("direct")), "after {to}");
        let answer = web.ask("again", &json!({ "socket": socket, "to": to }));
        assert_eq!(answer["peer"], to, "and back: {answer}");
        web.ask("close", &json!({ "socket": socket }));
    }
}
