//! Without the rights, or without a cgroup to attach to.

use weft_tests::{Client, Options, Upstream, Weft, mesh::Bed, ports, weft, yaml};

use crate::local;

/// Runs what follows as nobody. The test needs root to become somebody else.
fn as_nobody() -> Vec<String> {
    ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
        .map(str::to_owned)
        .into()
}

/// Starts with `--ebpf auto`, and expects an explicit proxy and one warning.
async fn falls_back(options: Options, why: &str) {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let weft = Weft::start_with(&yaml::simple(port, "http", upstream.addr), options).await;
    let mut client = Client::h1(local(port)).await.unwrap();
    assert_eq!(client.get("a", "/").await.unwrap().upstream(), "app");
    let log = weft.stderr();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert!(warnings[0].contains("not captured") && warnings[0].contains(why), "{log}");
    assert!(!log.contains("ERROR"), "{log}");
    assert_eq!(weft.admin_json("/ebpf").await, serde_json::json!({ "enabled": false }));
    assert_eq!(weft.admin_json("/connections").await, serde_json::json!([]));
}

#[tokio::test]
async fn a_path_that_is_no_cgroup() {
    let args = ["--ebpf", "auto", "--cgroup", "/proc/self"].map(str::to_owned);
    let why = if weft_ebpf::cgroup::mount().is_ok() { "is not in a cgroup2 file system" } else { "cgroup2" };
    falls_back(Options { args: args.into(), ..Options::default() }, why).await;

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), yaml::simple(ports::free(), "http", ports::refusing())).unwrap();
    let path = file.path().to_str().unwrap();
    let args = ["proxy", "--config", path, "--admin", "127.0.0.1:0", "--ebpf", "require", "--cgroup", "/proc/self"];
    let output = weft::run(&args).await;
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("connections cannot be captured") && text.contains(why), "{text}");
}

#[tokio::test]
async fn without_rights() {
    let Some(bed) = Bed::make("without_rights") else { return };
    let args = ["--ebpf", "auto", "--cgroup", bed.cgroup.path.to_str().unwrap()].map(str::to_owned);
    falls_back(Options { args: args.into(), through: as_nobody(), ..Options::default() }, "ermi").await;
    let required = Options { through: as_nobody(), ..bed.options() };
    let weft = Weft::spawn(&yaml::simple(ports::free(), "http", ports::refusing()), required);
    let status = weft.wait_exit(std::time::Duration::from_secs(30)).await;
    assert_eq!(status.code(), Some(1), "{}", weft.stderr());
    let log = weft.stderr();
    assert!(log.contains("connections cannot be captured"), "{log}");
    let left = bed.cgroup.children();
    assert!(!left.contains(&"weft-proxy".to_owned()), "it left something behind: {left:?}");
}
