//! Files and directories.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, path::PathBuf};

use weft_model::{
    Options, Problems,
    config::{Key, Pem},
    load_paths,
};

fn service(name: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n"
    )
}

/// The names of the services in a path.
fn names(path: PathBuf) -> Vec<String> {
    let checked = load_paths(&[path], Options::default()).unwrap_or_else(|problems| panic!("{problems}"));
    checked.config.services.iter().map(|service| service.key.to_string()).collect()
}

fn only(result: Result<weft_model::Checked, Problems>) -> (usize, usize, String) {
    let problems = result.expect_err("it cannot be loaded");
    assert_eq!(problems.len(), 1, "{problems}");
    let problem = problems.iter().next().unwrap();
    assert!(problem.hint.is_some(), "{problem}");
    (problem.line, problem.column, problem.message.clone())
}

#[test]
fn a_directory_is_its_files_in_order() {
    let dir = tempfile::tempdir().unwrap();
    for (file, name) in [("b.yaml", "b"), ("a.yml", "a"), ("c.json", "c"), ("d.txt", "d"), (".e.yaml", "e")] {
        fs::write(dir.path().join(file), service(name)).unwrap();
    }
    fs::create_dir(dir.path().join("sub.yaml")).unwrap();
    assert_eq!(names(dir.path().to_owned()), ["a", "b", "c"]);
}

#[cfg(unix)]
#[test]
fn a_mounted_config_map_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("..2026_01_01");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("a.yaml"), service("a")).unwrap();
    std::os::unix::fs::symlink("..2026_01_01", dir.path().join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.yaml", dir.path().join("a.yaml")).unwrap();
    assert_eq!(names(dir.path().to_owned()), ["a"]);
}

#[test]
fn a_file_named_twice_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, service("a")).unwrap();
    let checked = load_paths(&[dir.path().to_owned(), file], Options::default()).unwrap();
    assert_eq!(checked.config.services.len(), 1);
}

#[test]
fn what_cannot_be_read_is_one_clear_problem() {
    let dir = tempfile::tempdir().unwrap();
    let load = |name: &str| only(load_paths(&[dir.path().join(name)], Options::default()));
    assert_eq!(load("missing.yaml"), (0, 0, "there is no such file or directory".into()));
    fs::create_dir(dir.path().join("empty")).unwrap();
    assert_eq!(load("empty"), (0, 0, "there is no configuration in this directory".into()));
    fs::write(dir.path().join("empty.yaml"), "").unwrap();
    assert_eq!(load("empty.yaml"), (0, 0, "there is no document in this file".into()));
    fs::write(dir.path().join("latin.yaml"), b"a: 1\nb: caf\xe9\n").unwrap();
    assert_eq!(load("latin.yaml"), (2, 7, "this file is not UTF-8".into()));
    fs::write(dir.path().join("wide.yaml"), b"\xff\xfea\0:\0").unwrap();
    assert_eq!(load("wide.yaml"), (1, 1, "this file is not UTF-8".into()));
    let file = fs::File::create(dir.path().join("huge.yaml")).unwrap();
    file.set_len((16 << 20) + 1).unwrap();
    assert_eq!(load("huge.yaml"), (0, 0, "this file is larger than 16 MiB".into()));
}

#[cfg(unix)]
#[test]
fn a_link_to_nowhere_is_one_clear_problem() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("gone", dir.path().join("a.yaml")).unwrap();
    let (_, _, message) = only(load_paths(&[dir.path().to_owned()], Options::default()));
    assert_eq!(message, "there is no such file");
}

#[test]
fn a_missing_file_makes_no_problems_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.yaml");
    fs::write(
        &file,
        "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p}\nspec: {targetRefs: [{kind: Service, name: elsewhere}]}\n",
    )
    .unwrap();
    let (_, _, message) = only(load_paths(&[file, dir.path().join("gone.yaml")], Options::default()));
    assert_eq!(message, "there is no such file or directory");
}

#[test]
fn a_byte_order_mark_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), format!("\u{feff}{}", service("a"))).unwrap();
    assert_eq!(names(dir.path().to_owned()), ["a"]);
}

#[test]
fn files_of_certificates_are_found_beside_the_document() {
    let dir = tempfile::tempdir().unwrap();
    let text = "apiVersion: weft.dev/v1alpha1\nkind: Certificate\nmetadata: {name: c}\nspec: {certFile: tls/c.pem, keyFile: /etc/c.key}\n";
    fs::write(dir.path().join("a.yaml"), text).unwrap();
    let config = load_paths(&[dir.path().to_owned()], Options::default()).unwrap().config;
    assert_eq!(config.certificates[0].key, Key::new("default", "c"));
    assert_eq!(config.certificates[0].chain, Some(Pem::File(dir.path().join("tls/c.pem"))));
    assert_eq!(config.certificates[0].private_key, Some(Pem::File("/etc/c.key".into())));
}
