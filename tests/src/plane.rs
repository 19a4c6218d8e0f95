//! Members of a control plane as processes, with a [`Network`] between them and in front of them.
//!
//! [`client`]: writers and readers that remember what they saw; [`watch`]: followers of the changes that count what does
//! not follow.

pub mod client;
pub mod watch;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use futures_util::future::join_all;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    cut::{Link, Network, Way},
    eventually, ports, weft,
};
pub use client::{Line, Load};
pub use watch::Follower;

/// For elections, joining and catching up: debug builds on a shared machine.
pub const LONG: Duration = Duration::from_secs(60);
/// For what a member says of itself.
const ASIDE: Duration = Duration::from_secs(1);

/// A `weft control`. Killed, by its own id, when dropped.
pub struct Member {
    pub name: String,
    /// Where it listens. Who comes here comes past the network.
    pub direct: SocketAddr,
    /// Where everybody else reaches it.
    pub address: SocketAddr,
    pub data: PathBuf,
    log: PathBuf,
    child: Child,
}

/// Members that know each other by their addresses in the network.
pub struct Plane {
    pub network: Network,
    pub members: Vec<Member>,
    binary: PathBuf,
    dir: TempDir,
    plain: bool,
}

impl Plane {
    /// Members `a`, `b`, `c` … with a vote.
    pub async fn start(count: usize) -> Self {
        Self::start_with(weft::binary(), count, false).await
    }

    /// Members that run this binary; `plain`: without a network in between, for measurements.
    pub async fn start_with(binary: &Path, count: usize, plain: bool) -> Self {
        let dir = TempDir::with_prefix("weft-plane-").unwrap();
        let mut plane = Self { network: Network::default(), members: Vec::new(), binary: binary.into(), dir, plain };
        for number in 0..count {
            let name = char::from(b'a' + u8::try_from(number).unwrap());
            plane.add(&name.to_string()).await;
        }
        plane.voting(count).await;
        plane
    }

    /// One more, which joins those that are there.
    pub async fn add(&mut self, name: &str) -> usize {
        let data = self.dir.path().join(name);
        self.add_at(name, data).await
    }

    pub async fn add_at(&mut self, name: &str, data: PathBuf) -> usize {
        let direct = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()));
        let address = if self.plain { direct } else { self.network.proxy(name, direct).await };
        let log = self.dir.path().join(format!("{name}-{}.log", self.members.len()));
        let join: Vec<SocketAddr> = self.members.iter().map(|member| member.address).collect();
        let child = spawn(&self.binary, name, (direct, address), &data, &log, &join);
        self.network.introduce(child.id(), name);
        self.members.push(Member { name: name.into(), direct, address, data, log, child });
        self.members.len() - 1
    }

    /// Starts an ended member again, with what it has on disk.
    pub fn restart(&mut self, index: usize, join: &[SocketAddr]) {
        let member = &mut self.members[index];
        assert!(member.exited().is_some(), "{} still runs", member.name);
        let at = (member.direct, member.address);
        member.child = spawn(&self.binary, &member.name, at, &member.data, &member.log, join);
        self.network.introduce(member.child.id(), &member.name);
    }

    /// A name for a directory that nobody uses.
    pub fn fresh(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|member| member.address).collect()
    }

    /// Waits until `count` members have a vote, and no other, as each of those says that lead or follow.
    pub async fn voting(&self, count: usize) {
        eventually(&format!("{count} voters"), LONG, async || {
            let Some(leader) = self.leading().await else { return false };
            let Some(status) = self.members[leader].ask("/v1/raft").await else { return false };
            let list = status["members"].as_array().unwrap();
            let all = list.iter().all(|member| member["voter"] == true && member["role"] != "unreachable");
            all && list.len() == count && status["joint"] == false
        })
        .await;
    }

    /// The member that leads, if one says so and no other says so of a later term.
    pub async fn leading(&self) -> Option<usize> {
        let all = join_all(self.members.iter().map(|member| member.ask("/v1/raft/self"))).await;
        let leading = all.iter().enumerate().filter_map(|(index, own)| {
            let own = own.as_ref().filter(|own| own["role"] == "leader")?;
            Some((own["term"].as_u64()?, index))
        });
        leading.max().map(|(_, index)| index)
    }

    /// Waits for a leader.
    pub async fn leader(&self) -> usize {
        self.leader_but(usize::MAX).await
    }

    /// Waits for a leader that is another one.
    pub async fn leader_but(&self, not: usize) -> usize {
        let mut found = None;
        eventually("a leader", LONG, async || {
            found = self.leading().await.filter(|leader| *leader != not);
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// Connections between this member and the others, by who began them.
    pub fn cut(&self, index: usize, from_others: Link, to_others: Link) {
        let own = &self.members[index].name;
        for other in self.members.iter().filter(|other| other.name != *own) {
            self.network.set(Some(&other.name), own, from_others);
            self.network.set(Some(own), &other.name, to_others);
        }
    }

    /// The member hears nothing of the others: no requests, and no answers to its own. They hear it.
    pub fn deafen(&self, index: usize) {
        let (there, back) = (Way::Swallow, Way::Swallow);
        self.cut(index, Link::Open { there, back: Way::Pass }, Link::Open { there: Way::Pass, back });
    }

    /// The others hear nothing of the member. It hears them.
    pub fn mute(&self, index: usize) {
        let (there, back) = (Way::Swallow, Way::Swallow);
        self.cut(index, Link::Open { there: Way::Pass, back }, Link::Open { there, back: Way::Pass });
    }

    /// Waits until every member that runs has this revision.
    pub async fn reached(&self, revision: u64) {
        for member in &self.members {
            if !member.runs() {
                continue;
            }
            eventually(&format!("{} reaches revision {revision}", member.name), LONG, async || {
                member.revision().await.is_some_and(|own| own >= revision)
            })
            .await;
        }
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for member in &self.members {
                let said = member.said();
                let lines: Vec<&str> = said.lines().collect();
                let shown = &lines[lines.len().saturating_sub(25)..];
                eprintln!("--- {}, last {} of {} lines\n{}", member.name, shown.len(), lines.len(), shown.join("\n"));
            }
        }
    }
}

impl Member {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    fn runs(&self) -> bool {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        state.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    }

    pub async fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        eventually(&format!("{} exits", self.name), limit, async || self.exited().is_some()).await;
        self.exited().unwrap()
    }

    /// What it wrote to stderr, in all its lives.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn last_line(&self) -> String {
        self.said().lines().last().unwrap_or_default().to_owned()
    }

    /// What it answers, past the network; `None` when it does not.
    pub async fn ask(&self, path: &str) -> Option<Value> {
        let (status, body) = Line::new(self.direct).get(path, ASIDE).await.ok()?;
        (status == 200).then_some(body)
    }

    /// The revision that it has itself.
    pub async fn revision(&self) -> Option<u64> {
        self.ask("/v1/revision?consistency=serializable").await?["revision"].as_u64()
    }

    /// Resident memory in KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(
    binary: &Path,
    name: &str,
    (direct, address): (SocketAddr, SocketAddr),
    data: &Path,
    log: &Path,
    join: &[SocketAddr],
) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
    let mut command = Command::new(binary);
    command.args(["control", "--name", name, "--listen", &direct.to_string(), "--advertise", &address.to_string()]);
    command.arg("--data-dir").arg(data);
    command.args(join.iter().flat_map(|other| ["--join".to_owned(), other.to_string()]));
    command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().expect("the weft binary starts")
}
