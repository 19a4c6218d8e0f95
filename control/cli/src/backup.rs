//! `weft backup` and `weft restore`: everything that a control plane keeps, in a file and back.

use std::{
    fs::File,
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use http_body_util::BodyExt;
use weft_store::backup::{self, NotRestored};

use crate::{
    exit::{Done, Exit, Failure, print_line},
    plane::{PlaneArgs, WITHIN, block_on, unanswered},
};

/// Arguments of `weft backup`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file; one that is there is replaced once the backup is whole.
    file: PathBuf,
    #[command(flatten)]
    plane: PlaneArgs,
}

/// Arguments of `weft restore`.
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// What `weft backup` wrote.
    file: PathBuf,
    /// An empty directory, for `weft control --data-dir`.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// What the member is called that starts on it.
    #[arg(long)]
    name: String,
    /// Where that member is reached.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:15010")]
    advertise: SocketAddr,
}

/// Writes everything into a file.
pub fn run(args: &Args) -> Done {
    let file = block_on(async {
        let client = args.plane.client(WITHIN);
        let (status, body) = client.stream("/v1/backup").await.map_err(unanswered)?;
        let body = body
            .collect()
            .await
            .map_err(|error| Failure::new(Exit::Failed, format!("the backup ended early: {error}")))?;
        let body = body.to_bytes();
        if !status.is_success() {
            return Err(Failure::new(
                Exit::Failed,
                format!("the member answered {status}: {}", String::from_utf8_lossy(&body).trim_end()),
            ));
        }
        Ok(body)
    })?;
    let contents = backup::read(&file).map_err(|error| Failure::new(Exit::Failed, format!("the backup: {error}")))?;
    keep(&args.file, &file).map_err(|error| anyhow::anyhow!("cannot write {}: {error}", args.file.display()))?;
    print_line(&format!(
        "revision {}: {} objects, {} leases, {} bytes",
        contents.revision,
        contents.objects,
        contents.leases,
        file.len()
    ));
    Ok(())
}

/// Under its name, the file is always whole.
fn keep(path: &Path, content: &[u8]) -> io::Result<()> {
    let unfinished = path.with_added_extension("new");
    // It may hold keys.
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// Makes a data directory.
pub fn restore(args: RestoreArgs) -> Done {
    let RestoreArgs { file, data_dir, name, advertise } = args;
    let content = std::fs::read(&file).map_err(|error| anyhow::anyhow!("cannot read {}: {error}", file.display()))?;
    let failed = |error: NotRestored| match error {
        NotRestored::Damaged(_) => Failure::new(Exit::Failed, format!("{} is damaged: {error}", file.display())),
        NotRestored::NotEmpty(_) => {
            Failure::new(Exit::Failed, format!("{error}: nothing is overwritten; name an empty directory"))
        }
        NotRestored::Disk(_) => Failure::new(Exit::Failed, error),
    };
    let contents = backup::read(&content).map_err(failed)?;
    let (was, objects, leases) = (contents.revision, contents.objects, contents.leases);
    let restoring = async { backup::restore(contents, &data_dir, &name, &advertise.to_string()).await.map_err(failed) };
    let revision = block_on(restoring)?;
    print_line(&format!("revision {was} is restored as revision {revision}: {objects} objects, {leases} leases"));
    let dir = data_dir.display();
    print_line(&format!("start it with: weft control --name {name} --data-dir {dir} --listen {advertise}"));
    Ok(())
}
