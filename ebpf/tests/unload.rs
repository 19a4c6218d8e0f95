//! What is left after unloading: nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use weft_ebpf::{
    agent::{Agent, Listeners, Options},
    cgroup::{self, Cgroup},
    features::{self, Level},
    pins::Pins,
    programs::EbpfSetupError,
    status,
    store::Maps,
};

/// An agent moves its process to another cgroup: one after the other.
static ONE: Mutex<()> = Mutex::new(());

/// A cgroup of its own, below the mount.
struct Group(PathBuf, #[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Group {
    /// `None`, and a line that says so, where programs cannot be loaded.
    fn new(name: &str) -> Option<Self> {
        let lacks = features::all(true).into_iter().find(|finding| finding.level == Level::Missing);
        if let Some(lacks) = lacks {
            eprintln!("SKIPPED: {}: {}", lacks.check, lacks.found);
            return None;
        }
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let path = cgroup::mount().unwrap().join(format!("weft-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Some(Self(path, one))
    }

    fn pins(&self) -> Pins {
        Pins::of(&Cgroup::open(&self.0).unwrap(), true).unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Ok(attach) = Cgroup::open(&self.0)
            && let Ok(pins) = Pins::of(&attach, false)
        {
            let _ = pins.unload(true);
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Nobody is in another namespace.
struct Nowhere;

impl Listeners for Nowhere {
    fn listen(&self, _: u64) -> std::io::Result<()> {
        Ok(())
    }

    fn leave(&self, _: u64) {}
}

/// Which of these links the kernel still has.
fn alive(links: &[u32]) -> Vec<u32> {
    let all = aya::programs::loaded_links().flatten().map(|link| link.id());
    all.filter(|id| links.contains(id)).collect()
}

#[test]
fn unloading_waits_for_the_agent_and_leaves_nothing() {
    let Some(group) = Group::new("unload") else { return };
    let agent = Agent::start(&Options { cgroup: group.0.clone(), end_stale: None }).unwrap();
    agent.attach(Arc::new(Nowhere)).unwrap();
    let attach = Cgroup::open(&group.0).unwrap();
    let pins = group.pins();
    assert_eq!(pins.cgroup().unwrap(), Some(attach.clone()));
    let status = status::of(&attach, &pins, &Maps::pinned(&pins).unwrap());
    let links: Vec<u32> =
        status["programs"].as_array().unwrap().iter().map(|one| one["link"].as_u64().unwrap() as u32).collect();
    assert_eq!(alive(&links).len(), 5, "{status:#}");

    let refused = pins.unload(false);
    assert!(matches!(refused, Err(EbpfSetupError::Taken(_))), "{refused:?}");
    assert_eq!(alive(&links).len(), 5);

    agent.stop();
    drop(agent);
    assert_eq!(pins.unload(false).unwrap(), Some(attach));
    assert_eq!(alive(&links), [0_u32; 0]);
    assert!(!pins.exist());
    // What is not there is not missed.
    assert!(pins.unload(false).is_ok());
}

#[test]
fn unloading_by_force_works_beside_an_agent() {
    let Some(group) = Group::new("force") else { return };
    let agent = Agent::start(&Options { cgroup: group.0.clone(), end_stale: None }).unwrap();
    agent.attach(Arc::new(Nowhere)).unwrap();
    let attach = Cgroup::open(&group.0).unwrap();
    let pins = group.pins();
    assert!(pins.unload(true).is_ok() && !pins.exist());
    assert!(agent.status()["programs"].as_array().unwrap().iter().all(|program| program["attached"] == false));
    assert!(attach.path.join(cgroup::OWN).is_dir());
    agent.stop();
    assert!(!attach.path.join(cgroup::OWN).exists());
}
