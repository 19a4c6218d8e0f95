//! `weft completions` and `weft man`: generated from the command line's own definition.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{Cli, exit::Done};

/// Arguments of `weft completions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// bash, zsh, fish, elvish or powershell.
    shell: Shell,
}

/// Prints a completion script.
pub fn run(args: &Args) -> Done {
    clap_complete::generate(args.shell, &mut Cli::command(), "weft", &mut std::io::stdout());
    Ok(())
}

/// Prints the manual page in roff: `weft man | man -l -`.
pub fn man() -> Done {
    clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout()).map_err(anyhow::Error::from)?;
    Ok(())
}
