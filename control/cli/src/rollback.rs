//! `weft rollback`: back to an earlier configuration.

use http::Method;

use crate::{
    apply::summary,
    exit::{Done, print_line},
    plane::{PlaneArgs, WITHIN, actor, block_on, changed},
};

/// Arguments of `weft rollback`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration becomes what it was right after this revision: `weft history` names some. How far back depends
    /// on what the control plane still remembers.
    #[arg(long, value_name = "REVISION")]
    to: u64,
    /// Check, and say what would change, without changing anything.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    plane: PlaneArgs,
}

/// Goes back in one new revision, or does nothing.
pub fn run(args: &Args) -> Done {
    block_on(async {
        let mut client = args.plane.client(WITHIN);
        let target = format!("/v1/rollback?to={}&dryRun={}", args.to, args.dry_run);
        let answer = client.change(Method::POST, &target, &[("weft-actor", &*actor())], "").await;
        print_line(&summary(&changed(&client, answer, &[], &[]).await?));
        Ok(())
    })
}
