//! curl as an independent client.

use std::process::Stdio;

pub struct Curl {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `curl -sS --max-time 20` with these arguments; `None`, said loudly, when there is no curl.
pub async fn curl(test: &str, args: &[&str]) -> Option<Curl> {
    let child = tokio::process::Command::new("curl")
        .args(["-sS", "--max-time", "20"])
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let Ok(child) = child else {
        crate::skip(test, "curl is not installed");
        return None;
    };
    let output = child.wait_with_output().await.unwrap();
    Some(Curl {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
