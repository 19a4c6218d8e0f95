//! Diff, export, rollback, sets, backups, and members on standby, with a control plane of real processes.

use std::os::unix::fs::PermissionsExt;

use crate::{
    file,
    plane::{Member, ask, status, until},
    valid, weft,
};

fn one() -> Member {
    let member = Member::start("a", &[]);
    until("it leads", || status(&member).is_some_and(|status| status["leader"] == "a"));
    member
}

#[test]
fn what_would_change_is_shown_and_what_changed_is_taken_back() {
    let one = one();
    let (_dir, path) = file(&valid(8080));
    let path = path.to_str().unwrap();
    let (code, stdout, stderr) = ask(&[&one], &["diff", "-f", path]);
    assert!(code == 1 && stdout.contains("--- /dev/null\n+++ applied/Gateway/default/edge\n"), "{stdout}{stderr}");
    assert_eq!(ask(&[&one], &["apply", "-f", path]).0, 0);
    assert_eq!(ask(&[&one], &["diff", "-f", path]), (0, String::new(), String::new()));
    let (_other, changed) = file(&valid(8081));
    let changed = changed.to_str().unwrap();
    let (code, stdout, _) = ask(&[&one], &["diff", "-f", changed]);
    assert_eq!(code, 1);
    let expected = "--- stored/Gateway/default/edge\n+++ applied/Gateway/default/edge\n@@ ";
    assert!(stdout.starts_with(expected) && stdout.contains("8080\n+") && stdout.contains("8081\n"), "{stdout}");
    assert!(!stdout.contains("creationTimestamp") && !stdout.contains("status"), "{stdout}");
    let (_bad, bad) = file("kind: Servce\n");
    assert_eq!(ask(&[&one], &["diff", "-f", bad.to_str().unwrap()]).0, 4);

    let (code, table, _) = ask(&[&one], &["get", "gateway"]);
    assert!(code == 0 && table.contains("GENERATION  REVISION  AGE"), "{table}");
    assert!(table.contains("True      Unknown (NoNodes)"), "{table}");

    assert_eq!(ask(&[&one], &["apply", "-f", changed]).0, 0);
    let (code, stdout, _) = ask(&[&one], &["rollback", "--to", "1", "--dry-run"]);
    assert!(code == 0 && stdout == "Gateway/edge configured (dry run)\nrevision 2\n", "{stdout}");
    let (code, stdout, _) = ask(&[&one], &["rollback", "--to", "1"]);
    assert!(code == 0 && stdout == "Gateway/edge configured\nrevision 3\n", "{stdout}");
    assert_eq!(ask(&[&one], &["diff", "-f", path]).0, 0);
    let (code, _, stderr) = ask(&[&one], &["rollback", "--to", "99"]);
    assert!(code == 2 && stderr.contains("has not been yet"), "{code} {stderr}");

    let (code, stdout, _) = ask(&[&one], &["apply", "--prune", "--set", "files", "-f", path]);
    assert!(code == 0 && stdout.contains("unchanged"), "{stdout}");
    let (_empty, less) = file(valid(8080).split("---").next().unwrap());
    let less = less.to_str().unwrap();
    let (code, stdout, _) = ask(&[&one], &["diff", "--prune", "--set", "files", "-f", less]);
    assert!(code == 1 && stdout.contains("+++ /dev/null"), "{code} {stdout}");
    let (code, stdout, _) = ask(&[&one], &["apply", "--prune", "--set", "files", "-f", less]);
    assert!(code == 0 && stdout.contains(" deleted\n"), "{code} {stdout}");
    assert_eq!(ask(&[&one], &["apply", "--prune", "-f", less]).0, 2);
}

#[test]
fn what_is_exported_is_the_same_again_elsewhere() {
    let (from, to) = (one(), one());
    for name in ["minimal.yaml", "gateway.yaml", "mesh.yaml"] {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/tests/contract/").to_owned() + name;
        let (code, stdout, stderr) = ask(&[&from], &["apply", "--prune", "--set", "files", "-f", &path]);
        assert_eq!(code, 0, "{name}: {stdout}{stderr}");
        let dir = tempfile::tempdir().unwrap();
        let exported = dir.path().join("all.yaml");
        let exported = exported.to_str().unwrap();
        assert_eq!(ask(&[&from], &["export", "-o", exported]).0, 0);
        let (code, stdout, stderr) = weft(&["validate", exported]);
        assert_eq!(code, 0, "{name}: {stdout}{stderr}");
        assert_eq!(ask(&[&from], &["diff", "-f", exported]), (0, String::new(), String::new()), "{name}");
        let (code, _, stderr) = ask(&[&to], &["apply", "--prune", "--set", "files", "-f", exported]);
        assert_eq!(code, 0, "{name}: {stderr}");
        let text = std::fs::read_to_string(exported).unwrap();
        assert!(!text.contains("resourceVersion") && !text.contains("status:"), "{text}");
        let (code, stdout, _) = ask(&[&to], &["export"]);
        let but_for_time =
            |text: &str| text.lines().filter(|line| !line.contains("creationTimestamp")).collect::<Vec<_>>().join("\n");
        assert_eq!((code, but_for_time(&stdout)), (0, but_for_time(&text)), "{name}");
    }
}

#[test]
fn paths_of_certificates_are_sent_as_they_are_meant() {
    let one = one();
    let text = "apiVersion: weft.dev/v1alpha1\nkind: Certificate\nmetadata: {name: tls}\nspec: {caFile: tls/ca.pem}\n";
    let (dir, path) = file(text);
    let (code, _, stderr) = ask(&[&one], &["apply", "-f", path.to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    let (_, stdout, _) = ask(&[&one], &["get", "certificate", "tls", "-o", "json"]);
    let stored: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(stored["spec"]["caFile"], dir.path().join("tls/ca.pem").to_str().unwrap());
}

#[test]
fn a_backup_is_restored_for_a_new_control_plane() {
    let mut one = one();
    let (_dir, path) = file(&valid(8080));
    let path = path.to_str().unwrap();
    assert_eq!(ask(&[&one], &["apply", "-f", path]).0, 0);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (code, stdout, stderr) = ask(&[&one], &["backup", &at("backup")]);
    assert!(code == 0 && stdout.starts_with("revision 1: "), "{stdout}{stderr}");
    assert!(!std::path::Path::new(&at("backup.new")).exists());
    // A Secret's key is nobody else's.
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(std::path::Path::new(&at("backup"))), 0o600);
    for entry in std::fs::read_dir(one.dir.path()).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
    one.kill();

    let restored = tempfile::tempdir().unwrap();
    let into = restored.path().to_str().unwrap();
    let restore = |file: &str, into: &str| weft(&["restore", file, "--data-dir", into, "--name", "z"]);
    let mut damaged = std::fs::read(at("backup")).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(at("damaged"), damaged).unwrap();
    let (code, _, stderr) = restore(&at("damaged"), into);
    assert!(code == 1 && stderr.contains("damaged is damaged: "), "{stderr}");
    let (code, _, stderr) = restore(&at("backup"), dir.path().to_str().unwrap());
    assert!(code == 1 && stderr.contains("is not empty"), "{stderr}");
    let (code, stdout, stderr) = restore(&at("backup"), into);
    assert!(code == 0 && stdout.starts_with("revision 1 is restored as revision 1099511627777: "), "{stdout}{stderr}");

    let two = Member::start_in("z", restored, &[]);
    until("it leads", || status(&two).is_some_and(|status| status["leader"] == "z"));
    assert_eq!(ask(&[&two], &["diff", "-f", path]).0, 0);
    let (code, _, stderr) = ask(&[&two], &["watch", "--from", "1"]);
    assert!(code == 1 && stderr.contains("compacted at 1099511627777"), "{stderr}");
    let (code, stdout, _) = ask(&[&two], &["delete", "-f", path]);
    assert!(code == 0 && stdout.ends_with("revision 1099511627778\n"), "{stdout}");
    // Another one joins what was restored.
    let standby = Member::start_in("y", tempfile::tempdir().unwrap(), &["--standby"]);
    until("it is there", || status(&standby).is_some());
    let (code, stdout, stderr) = ask(&[&two], &["raft", "add", &standby.address]);
    assert!(code == 0 && stdout.starts_with("y is a member with a vote"), "{stdout}{stderr}");
    assert_eq!(ask(&[&standby], &["wait", "--revision", "1099511627778"]).0, 0);
}
