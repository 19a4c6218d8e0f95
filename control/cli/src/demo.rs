//! `weft demo`: three sample services, the proxy in front of them, gentle traffic. Everything on loopback, everything in
//! this process; Ctrl-C ends it.

mod mesh;
mod services;
mod traffic;

pub use mesh::{ClientArgs, client};

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use weft_control::member::Setup;
use weft_proxy::options::Options;

use crate::{
    exit::{Done, Exit, Failure, eprint_line, print_line},
    node,
    source::Origin,
};

/// Arguments of `weft demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the proxy listens; another free port when it is taken.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Where the admin server listens; another free port when it is taken.
    #[arg(long, default_value_t = 15000)]
    admin_port: u16,
    /// Where the control plane listens; another free port when it is taken.
    #[arg(long, default_value_t = 15010)]
    control_port: u16,
    /// Send no traffic of its own.
    #[arg(long)]
    quiet: bool,
}

/// Runs until Ctrl-C.
pub fn run(args: Args) -> Done {
    let failed = |error: std::io::Error| Failure::new(Exit::Failed, format!("cannot start the demo: {error}"));
    let samples = services::start().map_err(failed)?;
    let port = free_port(args.port).map_err(failed)?;
    let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(args.admin_port).map_err(failed)?));
    let control = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(args.control_port).map_err(failed)?));
    let mut stage = mesh::Stage::set();
    let config = Config::write(&configuration(port, &samples, stage.is_ok())).map_err(failed)?;
    let captured = mesh::captured().map_err(failed)?;
    let options = Options { node: "demo".into(), admin: Some(admin), captured, ..Options::default() };
    let kernel = stage.as_ref().ok().map(mesh::Stage::wanted);
    let path = config.path.clone();
    let setup = Setup {
        name: "demo".into(),
        data_dir: config.directory.join("control"),
        listen: control,
        advertise: None,
        join: Vec::new(),
    };
    let origin = Origin::Embedded { setup, files: vec![config.path.clone()] };
    let done = node::run(options, kernel, origin, |captured| {
        print_line(&guide(port, admin, &path));
        print_line(&plane_guide(control, samples.spare));
        match &mut stage {
            Ok(stage) if captured => transparent(stage, admin, args.quiet),
            Ok(_) => {}
            Err(error) => print_line(&format!("\nWithout capturing in the kernel ({error}): `weft check` says more.")),
        }
        if !args.quiet
            && let Err(error) = traffic::start(port)
        {
            eprint_line(&format!("no traffic: {error}"));
        }
    });
    drop(stage);
    eprint_line("demo ended");
    done
}

/// The part that talks to the control plane.
fn plane_guide(control: SocketAddr, spare: SocketAddr) -> String {
    format!(
        "
What is in force comes from a control plane of one member, which the file above is applied to:

  weft register hello {spare} --ttl 60s --control {control}    a third endpoint, for a minute
  weft get endpoints --control {control}    who registered, and for how long
  weft status --control {control}           which nodes follow, and how far they are
  weft watch Service --control {control}    changes as they are made: edit the file meanwhile
  weft history service hello --control {control}    who changed it when"
    )
}

/// The part that needs the kernel.
fn transparent(stage: &mut mesh::Stage, admin: SocketAddr, quiet: bool) {
    let cgroup = stage.path().display();
    print_line(&format!(
        "
Connections are captured in the kernel, for processes below {cgroup}. No port, no proxy in their environment:

  sh -c 'echo $$ > {cgroup}/shop/cgroup.procs; exec curl -i http://{hello}/'    an address that exists only there
  weft ebpf flows -f --admin {admin}    every verdict, as it is made
  weft ebpf status --admin {admin}      programs, maps, counters
",
        hello = mesh::HELLO
    ));
    if quiet {
        return;
    }
    if let Err(error) = stage.play() {
        eprint_line(&format!("no captured traffic: {error}"));
        return;
    }
    std::thread::spawn(move || mesh::verdicts(admin).iter().for_each(|line| print_line(line)));
}

/// The wanted port, or one that the kernel has left.
fn free_port(wanted: u16) -> std::io::Result<u16> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)) {
        Ok(_) => Ok(wanted),
        Err(_) => TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr().map(|address| address.port()),
    }
}

/// The configuration in a file of its own, so that it can be edited while the demo runs.
struct Config {
    directory: PathBuf,
    path: PathBuf,
}

impl Config {
    fn write(text: &str) -> std::io::Result<Self> {
        let directory = std::env::temp_dir().join(format!("weft-demo-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let path = directory.join("demo.yaml");
        std::fs::write(&path, text)?;
        Ok(Self { directory, path })
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        // Left behind in the temporary directory at worst.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn configuration(port: u16, samples: &services::Samples, mesh: bool) -> String {
    let endpoints = |addresses: &[SocketAddr]| {
        addresses
            .iter()
            .map(|address| format!("  - {{address: {}, port: {}}}\n", address.ip(), address.port()))
            .collect::<String>()
    };
    let service = |name: &str, addresses: &[SocketAddr]| {
        let address =
            if mesh && name == "hello" { format!("  clusterIPs: [{}]\n", mesh::HELLO) } else { String::new() };
        format!(
            "---\napiVersion: weft.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n{address}  \
             ports: [{{name: http, port: 80, appProtocol: http}}]\n  endpoints:\n{}",
            endpoints(addresses)
        )
    };
    format!(
        "# Edit and save: the running demo takes it over, and says so when something is wrong.\n{}{}{}{}{}{}",
        include_str!("demo/routes.yaml").replace("PORT", &port.to_string()),
        service("hello", &samples.hello),
        service("cart", &samples.cart),
        service("flaky", &samples.flaky),
        service("calm", &samples.flaky),
        if mesh { mesh::configuration(samples) } else { String::new() },
    )
}

fn guide(port: u16, admin: SocketAddr, config: &Path) -> String {
    let (url, admin_url) = (format!("http://127.0.0.1:{port}"), format!("http://{admin}"));
    let config = config.display();
    format!(
        "
Weft is running. Try:

  curl -i {url}/                      hello, from one of two endpoints
  curl -i {url}/cart/42               another service, found by its path
  curl -i {url}/flaky                 fails now and then: see x-weft-reason and the endpoint's own 500s
  curl -i {url}/calm                  the same endpoints with retries and a circuit breaker: does not fail
  curl -i {url}/limited               two requests a second, after a burst of five: 429 beyond
  curl -i {url}/old                   a redirect
  curl -i {url}/nowhere              no route: Weft answers, and says why
  wrk -t1 -c64 -d10 {url}/

See what it does:

  weft explain GET {url}/cart/42 --admin {admin}    what happens to a request, and why
  weft endpoints --admin {admin}      health, load and latency of every endpoint
  weft breakers --admin {admin} --watch    which endpoint is ejected, on what evidence
  curl -s {admin_url}/traces?min_ms=20    slow requests, as traces
  curl -s {admin_url}/metrics
  $EDITOR {config}    the configuration; saved changes are in force at once

Ctrl-C ends everything."
    )
}
