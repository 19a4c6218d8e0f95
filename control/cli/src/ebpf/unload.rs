//! `weft ebpf unload`: nothing of Weft stays in the kernel.

use std::path::PathBuf;

use weft_ebpf::{pins::Pins, programs::EbpfSetupError};

use super::observe::{pins, pins_at};
use crate::exit::{Done, Exit, Failure, eprint_line, print_line};

/// Arguments of `weft ebpf unload`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The attach point [default: the only one there is].
    #[arg(long, value_name = "PATH", conflicts_with = "all")]
    cgroup: Option<PathBuf>,
    /// Every attach point of this host.
    #[arg(long)]
    all: bool,
    /// Even below a Weft that runs there: it captures nothing from then on.
    #[arg(long)]
    force: bool,
}

/// Removes.
pub fn run(args: &Args) -> Done {
    let chosen: Vec<Pins> = match &args.cgroup {
        Some(path) => pins_at(path)?.into_iter().collect(),
        None => pins()?,
    };
    if chosen.is_empty() {
        eprint_line("nothing to unload: no kernel programs of Weft are here");
        return Ok(());
    }
    if chosen.len() > 1 && !args.all {
        let names: Vec<String> = chosen.iter().map(|pins| format!("\n  {}", name(pins))).collect();
        let text =
            format!("there are {} attach points: name one with --cgroup, or --all{}", chosen.len(), names.concat());
        return Err(Failure::new(Exit::Usage, text));
    }
    let mut done = Ok(());
    for pins in &chosen {
        let name = name(pins);
        match pins.unload(args.force) {
            Ok(_) => print_line(&format!("unloaded: {name}")),
            Err(error) => {
                eprint_line(&format!("weft: {name}: {}", refusal(&error)));
                done = Err(Failure::silent(Exit::Failed));
            }
        }
    }
    done
}

/// What an attach point is called.
fn name(pins: &Pins) -> String {
    match pins.cgroup() {
        Ok(Some(cgroup)) => cgroup.path.display().to_string(),
        _ => format!("{} (its cgroup is gone)", pins.path().display()),
    }
}

fn refusal(error: &EbpfSetupError) -> String {
    match error {
        EbpfSetupError::Taken(_) => {
            "a Weft that runs manages it: stop it first, or --force (it captures nothing from then on)".into()
        }
        error => error.to_string(),
    }
}
