//! An agent in a process of its own, so that it can be killed.

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use weft_ebpf::{
    agent::{Agent, Options},
    maps::Live,
};

use super::client;
use crate::support::{Nowhere, config, live, tell_origins};

/// | command | with | answer |
/// |---|---|---|
/// | `start` | `cgroup`, `end_stale_ms` | `error`, if any |
/// | `listen` | an address: greets captured connections with `destination workload` | its `address` |
/// | `update` | `config`, `live`: `[service, port, id, address]` | |
/// | `attach`, `stop` | | |
/// | `mask` | `id`, `masked` | |
/// | `recovered` | `id` | |
/// | `own` | `id`, `to`, `limit_ms`: a connection of the proxy's own | `errno`, if any |
/// | `signals` | | by id: the counters |
/// | `status`, `connections`, `flows` | | as the agent shows them |
pub fn new() -> super::Acts {
    let mut agent: Option<Arc<Agent>> = None;
    Box::new(move |what, with| {
        let running = || agent.as_ref().unwrap();
        match what {
            "start" => {
                let options = Options {
                    cgroup: with["cgroup"].as_str().unwrap().into(),
                    end_stale: with["end_stale_ms"].as_u64().map(Duration::from_millis),
                };
                match Agent::start(&options) {
                    Ok(started) => agent = Some(Arc::new(started)),
                    Err(error) => return json!({ "error": error.to_string() }),
                }
            }
            "listen" => {
                let listener = TcpListener::bind(with.as_str().unwrap()).unwrap();
                let address = listener.local_addr().unwrap();
                running().captured(&[address]).unwrap();
                let agent = running().clone();
                std::thread::spawn(move || tell_origins(&agent, &listener, &AtomicBool::new(false)));
                return json!({ "address": address.to_string() });
            }
            "update" => {
                let config = config(&[with["config"].as_str().unwrap().into()]);
                let endpoints = with["live"].as_array().unwrap().iter().map(endpoint).collect();
                running().update(Arc::clone(&config), endpoints).unwrap();
            }
            "attach" => running().attach(Arc::new(Nowhere)).unwrap(),
            "mask" => running().mask(with["id"].as_u64().unwrap(), with["masked"] == true).unwrap(),
            "recovered" => running().recovered(with["id"].as_u64().unwrap()),
            "own" => return own(running(), with),
            "signals" => {
                let signals = running().signals();
                let all = signals.iter().map(|(id, stats)| {
                    let shown = json!({
                        "attempts": stats.attempts, "established": stats.established, "refused": stats.refused,
                        "timed_out": stats.timed_out, "aborted": stats.aborted, "closed": stats.closed,
                        "rto": stats.rto, "retransmits": stats.retransmits, "srtt_us": stats.srtt_us,
                    });
                    (id.to_string(), shown)
                });
                return Value::Object(all.collect());
            }
            "status" => return running().status(),
            "connections" => return running().connections(),
            "flows" => return running().flows(0),
            "stop" => agent.take().unwrap().stop(),
            other => panic!("no command {other}"),
        }
        json!({})
    })
}

fn endpoint(one: &Value) -> Live {
    let port = one[1].as_u64().unwrap() as u16;
    live(one[0].as_str().unwrap(), port, one[2].as_u64().unwrap(), one[3].as_str().unwrap().parse().unwrap())
}

/// Without a limit it waits until the socket gives up.
fn own(agent: &Agent, with: &Value) -> Value {
    let to: SocketAddr = with["to"].as_str().unwrap().parse().unwrap();
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    agent.attribute(socket.as_fd(), with["id"].as_u64().unwrap());
    let done = match with["limit_ms"].as_u64() {
        Some(limit) => socket.connect_timeout(&to.into(), Duration::from_millis(limit)),
        None => socket.connect(&to.into()),
    };
    done.map_or_else(|error| client::failed(&error), |()| json!({}))
}
