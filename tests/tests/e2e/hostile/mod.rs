//! Hostile input: refused with a name, never forwarded, and never at the cost of an honest client.

mod h1_bodies;
mod h1_heads;
mod h1_tunnels;
mod h2_floods;
mod h2_rules;
mod paths;
mod slow;
mod tls;

use weft_tests::{
    RawUpstream, Upstream, Weft,
    load::{Load, Speak},
    weft::Usage,
};

use crate::Stage;

/// An upstream that answers whatever it gets and records it, and Weft in front.
async fn recorded() -> Stage<RawUpstream> {
    Stage::raw(RawUpstream::answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await).await
}

/// What has to be the same after an attack as before it.
struct Watch {
    load: Load,
    usage: Usage,
}

impl Watch {
    /// Starts an honest client beside the attack.
    async fn start(stage: &Stage<Upstream>) -> Self {
        let load = Load::start(stage.addr, Speak::H1, 1, "honest.local", "/honest");
        load.progress(20).await;
        Self { load, usage: stage.weft.usage() }
    }

    /// The honest client was and is served, and Weft is its old self.
    async fn unharmed(self, weft: &Weft) {
        self.load.progress(20).await;
        self.load.finish_unharmed().await;
        weft.recovered(self.usage, 48 * 1024).await;
    }
}
