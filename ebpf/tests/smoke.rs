#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, clippy::print_stderr)]
use std::{
    io::{Read, Write},
    net::TcpListener,
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::Duration,
};
use weft_ebpf::{
    agent::{Agent, Options},
    cgroup,
    maps::Live,
};
use weft_model::config::Key;

#[test]
fn smoke() {
    let root = cgroup::mount().unwrap().join(format!("weft-smoke-{}", std::process::id()));
    std::fs::create_dir(&root).unwrap();
    std::fs::create_dir(root.join("web")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for s in listener.incoming() {
            let mut s = s.unwrap();
            let mut b = [0; 10];
            let n = s.read(&mut b).unwrap();
            s.write_all(&b[..n]).unwrap();
        }
    });
    let yaml = std::fs::read_to_string("../../shared/contract/mesh.yaml").unwrap();
    let path = PathBuf::from(format!("/tmp/smoke-{}.yaml", std::process::id()));
    std::fs::write(&path, yaml).unwrap();
    let config = weft_model::load_paths(std::slice::from_ref(&path), weft_model::Options::default()).unwrap().config;
    let agent = Agent::start(&Options { cgroup: root.clone(), end_stale: None }).unwrap();
    let live = vec![Live {
        service: Key::new("default", "redis"),
        port: 6379,
        id: 7,
        address,
        weight: 3,
        usable: true,
        source: None,
    }];
    agent.captured(&["127.0.0.1:15001".parse().unwrap()]).unwrap();
    agent.update(Arc::new(config), live).unwrap();
    struct Nowhere;
    impl weft_ebpf::agent::Listeners for Nowhere {
        fn listen(&self, _: u64) -> std::io::Result<()> {
            Ok(())
        }
        fn leave(&self, _: u64) {}
    }
    agent.attach(Arc::new(Nowhere)).unwrap();
    let py = r#"
import socket,sys
for (host,port,fam) in [("10.96.0.20",6379,socket.AF_INET),("::ffff:10.96.0.20",6379,socket.AF_INET6),("10.96.0.20",1,socket.AF_INET),("10.96.0.10",80,socket.AF_INET),("127.0.0.1",1,socket.AF_INET)]:
    s=socket.socket(fam); s.settimeout(3)
    try:
        s.connect((host,port)); s.sendall(b"hi"); print(host,port,s.recv(10),s.getpeername(),s.getsockname())
    except OSError as e: print(host,port,e)
"#;
    agent.flows(0);
    for group in ["web", "."] {
        let out = Command::new("sh")
            .arg("-c")
            .arg(format!("echo $$ > {}/{group}/cgroup.procs; exec python3 -c '{py}'", root.display()))
            .output()
            .unwrap();
        eprintln!("{group}:\n{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    }
    std::thread::sleep(Duration::from_millis(300));
    eprintln!("{:#}", agent.flows(0));
    eprintln!("{:?}", agent.signals());
    eprintln!("{}", agent.connections());
    eprintln!("{:#}", agent.status());
    agent.stop();
    eprintln!(
        "{:?}",
        std::fs::read_dir(&root).unwrap().flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect::<Vec<_>>()
    );
    weft_ebpf::pins::Pins::of(&cgroup::Cgroup::open(&root).unwrap(), false).unwrap().remove().unwrap();
    std::fs::remove_dir(root.join("web")).unwrap();
    std::fs::remove_dir(&root).unwrap();
}
