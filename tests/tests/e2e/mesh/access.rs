//! Who may connect.

use std::time::Duration;

use weft_tests::{
    SOON, Upstream, eventually,
    mesh::{Banner, Bed},
};

use super::{allow, direct, docs, http, vip, workload};

/// What connecting comes to: the greeting, or the name of the error, and in how many milliseconds.
async fn connect(bed: &Bed, workload: &str, to: std::net::SocketAddr) -> (String, f64) {
    let script = "
import errno, socket, sys, time
host, port = sys.argv[1], int(sys.argv[2])
start = time.monotonic()
try:
    s = socket.create_connection((host, port), 10)
    took = time.monotonic() - start
    print(s.makefile('rb').readline().decode().strip(), took * 1000)
except OSError as e:
    print(errno.errorcode.get(e.errno), (time.monotonic() - start) * 1000)
";
    let args = ["-c", script, &to.ip().to_string(), &to.port().to_string()];
    let out = bed.run(workload, "python3", &args).await;
    let (what, took) = out.stdout.trim().rsplit_once(' ').unwrap_or_else(|| panic!("{}", out.stderr));
    (what.to_owned(), took.parse().unwrap())
}

#[tokio::test]
async fn a_workload_that_may_not_is_refused_in_connect() {
    let Some(bed) = Bed::make("a_workload_that_may_not_is_refused_in_connect") else { return };
    let (redis, cart) = (Banner::start("redis").await, Upstream::h1("cart").await);
    let parts = [
        direct("redis", 20, &[redis.addr]),
        http("cart", 10, &[cart.addr]),
        workload("web"),
        workload("batch"),
        allow("redis", "web"),
        allow("cart", "web"),
    ];
    let weft = bed.weft(&docs(&parts)).await;
    assert_eq!(connect(&bed, "web", vip(20, 6379)).await.0, "redis");
    assert_eq!(bed.get("web", "http://10.96.0.10/").await["upstream"], "cart");
    let seen = cart.seen.count();
    let mut expected = Vec::new();
    for (from, shown) in [("batch", Some("batch")), ("stranger", None)] {
        for (to, service) in [(vip(20, 6379), "redis:6379"), (vip(10, 80), "cart:80")] {
            let (error, took) = connect(&bed, from, to).await;
            assert_eq!(error, "ECONNREFUSED", "{to} from {from}");
            assert!(took < 1000.0, "{to} from {from}: {took} ms");
            expected.push((shown.map(str::to_owned), service.to_owned()));
        }
    }
    assert_eq!(cart.seen.count(), seen, "nothing came through");
    let refusals = async || {
        let flows = weft.admin_json("/flows").await;
        let flows = flows["flows"].as_array().unwrap().clone();
        flows.into_iter().filter(|flow| flow["verdict"] == "deny").collect::<Vec<_>>()
    };
    eventually("the refusals are events", SOON, async || refusals().await.len() >= expected.len()).await;
    let seen: Vec<(Option<String>, String)> = (refusals().await.iter())
        .map(|flow| {
            assert_eq!(flow["reason"], "access_denied");
            assert!(flow["command"].as_str().unwrap().starts_with("python"), "{flow}");
            (flow["workload"].as_str().map(str::to_owned), flow["service"].as_str().unwrap().to_owned())
        })
        .collect();
    assert_eq!(seen, expected, "one each");
    let denied = weft.metrics().await.sum("weft_verdicts_total", &[("verdict", "deny"), ("reason", "access_denied")]);
    assert!((denied - 4.0).abs() < 0.5, "{denied}");
}

#[tokio::test]
async fn a_workload_that_begins_later_is_known_at_once() {
    let Some(bed) = Bed::make("a_workload_that_begins_later_is_known_at_once") else { return };
    let redis = Banner::start("redis").await;
    let parts = [direct("redis", 20, &[redis.addr]), workload("web"), allow("redis", "web")];
    let path = bed.cgroup.path.join("web");
    std::fs::remove_dir(&path).unwrap();
    let _weft = bed.weft(&docs(&parts)).await;
    assert_eq!(connect(&bed, "other", vip(20, 6379)).await.0, "ECONNREFUSED");
    for _ in 0..2 {
        eventually("it is let in", Duration::from_secs(5), async || {
            connect(&bed, "web", vip(20, 6379)).await.0 == "redis"
        })
        .await;
        // The cgroup goes and comes again: another one, of the same name.
        eventually("its cgroup is gone", SOON, async || std::fs::remove_dir(&path).is_ok()).await;
    }
}

#[tokio::test]
async fn a_policy_is_in_force_with_its_configuration() {
    let Some(bed) = Bed::make("a_policy_is_in_force_with_its_configuration") else { return };
    let redis = Banner::start("redis").await;
    let open = [direct("redis", 20, &[redis.addr]), workload("web")];
    let mut closed = open.to_vec();
    closed.push(allow("redis", "web"));
    let weft = bed.weft(&docs(&open)).await;
    assert_eq!(connect(&bed, "other", vip(20, 6379)).await.0, "redis");
    for (config, expected) in [(&closed[..], "ECONNREFUSED"), (&open[..], "redis")] {
        weft.apply(&docs(config)).await;
        eventually("the kernel follows", SOON, async || connect(&bed, "other", vip(20, 6379)).await.0 == expected)
            .await;
        assert_eq!(connect(&bed, "web", vip(20, 6379)).await.0, "redis");
    }
}
