//! A server in a process of its own, so that it can be killed.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::json;

/// | command | with | answer |
/// |---|---|---|
/// | `listen` | `name`, `at` | its `address` |
pub fn new() -> super::Acts {
    Box::new(|what, with| match what {
        "listen" => {
            let at: SocketAddr = with["at"].as_str().unwrap_or("127.0.0.1:0").parse().unwrap();
            let name = with["name"].as_str().unwrap().to_owned();
            match TcpListener::bind(at) {
                Ok(listener) => {
                    let address = listener.local_addr().unwrap();
                    std::thread::spawn(move || serve(&listener, &name, &Arc::default()));
                    json!({ "address": address.to_string() })
                }
                Err(error) => json!({ "error": error.to_string() }),
            }
        }
        other => panic!("no command {other}"),
    })
}

/// Says its name to whoever connects, then repeats what it hears.
pub fn serve(listener: &TcpListener, name: &str, stopped: &Arc<AtomicBool>) {
    let greeting = format!("{name}\n");
    for stream in listener.incoming() {
        if stopped.load(Ordering::Relaxed) {
            return;
        }
        let Ok(mut stream) = stream else { continue };
        if stream.write_all(greeting.as_bytes()).is_err() {
            continue;
        }
        let echo = move || {
            let mut buffer = [0; 1024];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
        };
        let _ = std::thread::Builder::new().stack_size(128 << 10).spawn(echo);
    }
}
