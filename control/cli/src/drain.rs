//! `weft drain`: tell a running node to finish what it is doing and to stop.

use crate::{
    exit::{Done, print_line},
    query::{AdminArgs, ask},
};

/// Asks the node.
pub fn run(args: &AdminArgs) -> Done {
    print_line(ask(args.admin, "POST", "/drain")?.trim_end());
    Ok(())
}
