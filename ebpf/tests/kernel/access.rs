//! AccessPolicies inside connect().

use serde_json::json;
use weft_ebpf::maps::Live;

use crate::support::{
    Bed, Child, Endpoint, SOON, TestAgent, config, eventually, live,
    netns::Netns,
    yaml::{access, service, workload, workload_in},
};

const FAMILIES: [&str; 3] = ["10.96.0.20:6379", "[fd00:96::20]:6379", "[::ffff:10.96.0.20]:6379"];

/// A direct service at the addresses above, with this policy and more.
fn stage(bed: &Bed, policies: &[String]) -> (TestAgent, Endpoint) {
    let agent = bed.agent();
    let endpoint = Endpoint::start("direct");
    let mut parts = vec![
        service("direct", &["10.96.0.20", "fd00:96::20"], 6379, "Direct"),
        workload("web"),
        workload_in("job", "batch/job"),
    ];
    parts.extend_from_slice(policies);
    for name in ["web", "batch/job", "other"] {
        bed.cgroup.child(name);
    }
    agent.put(&config(&parts), endpoints(&endpoint));
    agent.attach();
    (agent, endpoint)
}

fn endpoints(endpoint: &Endpoint) -> Vec<Live> {
    vec![live("direct", 6379, 1, endpoint.address)]
}

/// Whether the connection is let in; refused means ECONNREFUSED.
fn let_in(client: &mut Child, to: &str, bind: Option<&str>) -> bool {
    let answer = client.ask("connect", &json!({ "to": to, "bind": bind }));
    if answer["errno"].is_null() {
        assert_eq!(answer["hello"], "direct", "{answer}");
        return true;
    }
    assert_eq!(answer["errno"], libc::ECONNREFUSED, "{answer}");
    false
}

#[test]
fn by_workload() {
    let Some(bed) = Bed::make("by_workload") else { return };
    let (agent, _endpoint) = stage(&bed, &[access("direct", "Allow", "{workloads: [web]}")]);
    let mut refused = Vec::new();
    for (place, allowed) in [
        ("web", true),
        ("web/deeper/still", true),
        ("batch/job", false),
        ("batch", false),
        ("other", false),
        ("", false),
    ] {
        let mut client = bed.client(place);
        for to in FAMILIES {
            assert_eq!(let_in(&mut client, to, None), allowed, "{to} from {place:?}");
            if !allowed {
                refused.push((client.id(), if place == "batch/job" { json!("job") } else { json!(null) }));
            }
        }
    }
    assert_eq!(agent.count("deny access_denied"), refused.len() as u64);
    eventually("all are events", SOON, || agent.refusals().len() >= refused.len());
    let events = agent.refusals();
    assert_eq!(events.len(), refused.len(), "one each");
    for (event, (pid, workload)) in events.iter().zip(&refused) {
        assert_eq!((&event["pid"], &event["workload"]), (&json!(pid), workload), "{event}");
        assert_eq!((&event["reason"], &event["service"]), (&json!("access_denied"), &json!("direct:6379")), "{event}");
    }
}

#[test]
fn deny_and_identities() {
    let Some(bed) = Bed::make("deny_and_identities") else { return };
    let identity = "{identities: [\"spiffe://mesh.local/ns/default/sa/job\"]}";
    let (_agent, _endpoint) = stage(&bed, &[access("direct", "Deny", identity)]);
    for (place, allowed) in [("batch/job", false), ("batch", true), ("web", true), ("other", true)] {
        assert_eq!(let_in(&mut bed.client(place), FAMILIES[0], None), allowed, "{place}");
    }
}

#[test]
fn by_address() {
    let Some(bed) = Bed::make("by_address") else { return };
    let (agent, endpoint) = stage(&bed, &[access("direct", "Allow", "{ipBlocks: [\"127.0.0.0/30\"]}")]);
    let mut web = bed.client("web");
    let [v4, v6, mapped] = FAMILIES;
    // Not bound: it would come from the address that its route has, 127.0.0.1.
    for to in FAMILIES {
        assert!(let_in(&mut web, to, None), "{to}");
    }
    for (bind, to, allowed) in [
        ("127.0.0.2:0", v4, true),
        ("127.0.0.4:0", v4, false),
        ("127.1.0.1:0", v4, false),
        ("0.0.0.0:0", v4, true),
        ("[::ffff:127.0.0.2]:0", mapped, true),
        ("[::ffff:127.0.0.4]:0", mapped, false),
        ("[::]:0", mapped, true),
        ("[::ffff:127.0.0.4]:0", v6, false),
        ("[::ffff:127.0.0.2]:0", v6, true),
    ] {
        assert_eq!(let_in(&mut web, to, Some(bind)), allowed, "{to} from {bind}");
    }
    // Somewhere else, and everybody but those.
    let parts = |policy: String| {
        config(&[service("direct", &["10.96.0.20", "fd00:96::20"], 6379, "Direct"), workload("web"), policy])
    };
    agent.put(&parts(access("direct", "Allow", "{ipBlocks: [\"192.0.2.0/24\"]}")), endpoints(&endpoint));
    for to in FAMILIES {
        assert!(!let_in(&mut web, to, None), "{to}");
    }
    agent.put(&parts(access("direct", "Deny", "{ipBlocks: [\"127.0.0.4/32\"]}")), endpoints(&endpoint));
    assert!(let_in(&mut web, v4, None));
    assert!(!let_in(&mut web, v4, Some("127.0.0.4:0")));
    agent.put(
        &parts(access("direct", "Allow", "{workloads: [web], ipBlocks: [\"127.0.0.2/32\"]}")),
        endpoints(&endpoint),
    );
    assert!(let_in(&mut web, v4, Some("127.0.0.2:0")));
    assert!(!let_in(&mut web, v4, Some("127.0.0.3:0")));
    assert!(!let_in(&mut bed.client("other"), v4, Some("127.0.0.2:0")), "the workload has to match too");
}

#[test]
fn by_the_address_of_another_namespace() {
    let test = "by_the_address_of_another_namespace";
    let Some(bed) = Bed::make(test) else { return };
    let (Some(node), Some(pod)) = (Netns::make(test, "node"), Netns::make(test, "pod")) else { return };
    node.cable(&pod, "cable", "10.99.0.1/24", "10.99.0.2/24");
    pod.run("ip route add default via 10.99.0.1");
    let mut server = Child::start_in(&node, "server");
    let address = server.ask("listen", &json!({ "name": "direct", "at": "10.99.0.1:0" }))["address"].clone();
    let mut there = Child::start_in(&pod, "client").inside(&bed.cgroup.child("web"));
    let agent = bed.agent();
    let put = |block: &str| {
        let policy = access("direct", "Allow", &format!("{{ipBlocks: [\"{block}\"]}}"));
        let config = config(&[service("direct", &["10.96.0.20"], 6379, "Direct"), workload("web"), policy]);
        agent.put(&config, vec![live("direct", 6379, 1, address.as_str().unwrap().parse().unwrap())]);
    };
    put("10.99.0.2/32");
    agent.attach();
    // The agent looks into the namespaces of processes from time to time; until then the address is not known.
    eventually("it is let in", SOON, || let_in(&mut there, FAMILIES[0], None));
    assert!(let_in(&mut there, FAMILIES[0], Some("10.99.0.2:0")));
    put("10.99.0.3/32");
    assert!(!let_in(&mut there, FAMILIES[0], None));
    assert!(!let_in(&mut there, FAMILIES[0], Some("10.99.0.2:0")));
}

#[test]
fn a_policy_that_appears_or_goes_is_in_force_when_the_call_returns() {
    let Some(bed) = Bed::make("a_policy_that_appears_or_goes_is_in_force_when_the_call_returns") else { return };
    let (agent, endpoint) = stage(&bed, &[]);
    let mut other = bed.client("other");
    for round in 0..20 {
        let mut parts = vec![service("direct", &["10.96.0.20", "fd00:96::20"], 6379, "Direct"), workload("web")];
        let protected = round % 2 == 0;
        if protected {
            parts.push(access("direct", "Allow", "{workloads: [web]}"));
        }
        agent.put(&config(&parts), endpoints(&endpoint));
        for to in FAMILIES {
            assert_eq!(let_in(&mut other, to, None), !protected, "{to} in round {round}");
        }
    }
}
