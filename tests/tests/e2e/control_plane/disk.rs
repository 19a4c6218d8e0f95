//! Disks that are full, and files that are not what was written.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use weft_tests::{eventually, plane::LONG, skip};

use super::Stage;

/// A file system of a few MiB, unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Result<Self, String> {
        std::fs::create_dir_all(at).unwrap();
        let options = format!("size={size}");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "weft-test"]).arg(at).output();
        let mount = mount.map_err(|error| format!("mount: {error}"))?;
        if mount.status.success() {
            Ok(Self(at.into()))
        } else {
            Err(String::from_utf8_lossy(&mount.stderr).trim().to_owned())
        }
    }

    /// Takes all the room that is left.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut filler = std::fs::File::create(&path).unwrap();
        let block = [b'x'; 4096];
        while std::io::Write::write_all(&mut filler, &block).is_ok() {}
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy"]).arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_ends_one_member_with_a_reason_and_the_others_go_on() {
    let mut stage = Stage::start().await;
    let data = stage.plane.fresh("small");
    let small = match Small::mount(&data, "24m") {
        Ok(small) => small,
        Err(why) => return skip("a_full_disk_ends_one_member", &format!("no file system can be mounted: {why}")),
    };
    let full = stage.plane.add_at("d", data).await;
    stage.plane.voting(4).await;

    let filler = small.fill();
    let status = stage.plane.members[full].wait_exit(LONG).await;
    let last = stage.plane.members[full].last_line();
    assert_eq!(status.code(), Some(1), "{last}");
    let said = last.strip_prefix("weft: the store cannot go on: cannot ").unwrap_or_else(|| panic!("{last}"));
    assert!(said.contains("/small/") && said.contains("No space left on device"), "{last}");
    stage.load.goes_on(20).await;

    // Without room it says the same again, and does not begin anew.
    stage.plane.restart(full, &[]);
    let early = eventually_exits_or_follows(&mut stage, full).await;
    assert!(early.is_none_or(|line| line.contains("No space left on device")), "it ends for its disk or lives with it");

    std::fs::remove_file(filler).unwrap();
    if stage.plane.members[full].exited().is_some() {
        stage.plane.restart(full, &[]);
    }
    stage.plane.voting(4).await;
    let plane = stage.check().await;
    // Before the directory that it is in is removed.
    drop(small);
    drop(plane);
}

/// Its last line, if it ends; it may also find enough room to go on.
async fn eventually_exits_or_follows(stage: &mut Stage, index: usize) -> Option<String> {
    let mut exited = false;
    eventually("it ends or follows", LONG, async || {
        exited = stage.plane.members[index].exited().is_some();
        exited || stage.plane.members[index].ask("/ready").await.is_some()
    })
    .await;
    exited.then(|| stage.plane.members[index].last_line())
}

/// Changes every place where `text` stands; how many.
fn garble(path: &Path, text: &str) -> usize {
    let mut bytes = std::fs::read(path).unwrap();
    let places: Vec<usize> =
        bytes.windows(text.len()).enumerate().filter(|(_, part)| *part == text.as_bytes()).map(|(at, _)| at).collect();
    for place in &places {
        bytes[*place] ^= 1;
    }
    std::fs::write(path, bytes).unwrap();
    places.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_not_what_was_written_are_named_and_not_used() {
    let mut stage = Stage::start().await;
    let index = (stage.plane.leader().await + 1) % 3;
    stage.plane.members[index].kill();
    let data = stage.plane.members[index].data.clone();
    let (log, identity) = (data.join("log.redb"), data.join("member"));
    let whole = (std::fs::read(&log).unwrap(), std::fs::read(&identity).unwrap());
    stage.load.goes_on(10).await;

    let cut = |path: &Path, to: u64| std::fs::File::options().write(true).open(path).unwrap().set_len(to).unwrap();
    for (what, damaged) in [
        ("one byte of each entry", &log),
        ("half of the log", &log),
        ("nothing of the log", &log),
        ("no log", &log),
        ("half of the identity", &identity),
        ("no identity", &identity),
    ] {
        match what {
            "one byte of each entry" => assert!(garble(&log, "register-0") > 0),
            "half of the log" => cut(&log, whole.0.len() as u64 / 2),
            "nothing of the log" => cut(&log, 0),
            "half of the identity" => cut(&identity, whole.1.len() as u64 / 2),
            _ => std::fs::remove_file(damaged).unwrap(),
        }
        stage.plane.restart(index, &[]);
        let member = &mut stage.plane.members[index];
        let status = member.wait_exit(LONG).await;
        let last = member.last_line();
        eprintln!("{what}: {last}");
        assert_eq!(status.code(), Some(1), "{what}: {last}");
        let named = format!("weft: the store cannot go on: {}", damaged.display());
        assert!(last.starts_with(&named), "{what}: {last}");
        std::fs::write(&log, &whole.0).unwrap();
        std::fs::write(&identity, &whole.1).unwrap();
    }
    // As it was before it was damaged: killed, and no more.
    stage.plane.restart(index, &[]);
    stage.plane.voting(3).await;
    stage.check().await;
}
