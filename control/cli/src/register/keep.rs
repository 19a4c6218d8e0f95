//! `weft register --keep-alive`: stays, until it is told to end or another process takes its name.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::json;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep, sleep_until},
};
use weft_control::{Client, client::Unanswered};

use super::{Args, Held, grant, post, register, say};
use crate::{
    exit::{Done, Exit, Failure, eprint_line},
    plane::{WITHIN, actor, refused, segment},
};

/// Between tries to register again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long it tries to leave in good order. What it cannot say, the lease does.
const LEAVING: Duration = Duration::from_secs(5);

/// Why it does not go on as it was.
enum Next {
    /// The lease is gone: register again.
    Lost,
    /// It was told to end.
    Ended,
}

/// SIGTERM or SIGINT.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

pub(super) async fn run(args: &Args, ttl: Duration) -> Done {
    let failed = |error: std::io::Error| Failure::new(Exit::Failed, error);
    let mut ends = Ends {
        terminate: signal(SignalKind::terminate()).map_err(failed)?,
        interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
    };
    // What is wrong with what is asked for is wrong at once: only the first time is it the end.
    let mut held = begin(args, ttl, false).await?;
    loop {
        match keep(args, ttl, &held, &mut ends).await? {
            Next::Ended => return leave(args, &held, &mut ends).await,
            Next::Lost => {}
        }
        eprint_line("the lease was lost: registering again");
        held = loop {
            // Refused, it belongs to somebody else by now; unanswered, it is tried until there is an answer.
            match begin(args, ttl, true).await {
                Ok(held) => break held,
                Err(failure) if failure.exit() == Exit::Failed => return Err(failure),
                Err(failure) => eprint_line(&format!("not registered yet: {}", failure.message())),
            }
            tokio::select! {
                () = sleep(AGAIN) => {}
                () = ends.wait() => return Ok(()),
            }
        };
    }
}

async fn begin(args: &Args, ttl: Duration, again: bool) -> Result<Held, Failure> {
    let mut client = args.which.plane.client(WITHIN);
    let held = grant(&mut client, args, ttl).await?;
    let registered = register(&mut client, args, Some(&held)).await?;
    if again {
        eprint_line(&format!("registered again at revision {}", registered["revision"]));
    } else {
        say(&registered);
    }
    Ok(held)
}

/// Keeps the lease alive. A member that hangs, or that died, costs less than the lease has left.
async fn keep(args: &Args, ttl: Duration, held: &Held, ends: &mut Ends) -> Result<Next, Failure> {
    let one = (ttl / 6).clamp(Duration::from_millis(100), Duration::from_secs(5));
    let mut client = args.which.plane.client(ttl / 2).patience(one);
    let mut silent = false;
    loop {
        let next = Instant::now() + ttl / 3;
        tokio::select! {
            () = sleep_until(next) => {}
            () = ends.wait() => return Ok(Next::Ended),
        }
        let renewed = tokio::select! {
            renewed = renew(&mut client, held) => renewed,
            () = ends.wait() => return Ok(Next::Ended),
        };
        match renewed {
            Ok(None) => {
                if silent {
                    eprint_line("the control plane answers again");
                }
                silent = false;
            }
            Ok(Some(next)) => return Ok(next),
            // Nobody is there who could end the lease either: nodes keep what they know.
            Err(Renewal::Unanswered(error)) => {
                if !silent {
                    eprint_line(&format!("not kept alive, trying on: {error}"));
                }
                silent = true;
            }
            Err(Renewal::Refused(failure)) => return Err(failure),
        }
    }
}

enum Renewal {
    Unanswered(Unanswered),
    Refused(Failure),
}

async fn renew(client: &mut Client, held: &Held) -> Result<Option<Next>, Renewal> {
    let target = format!("/v1/agents/{}/keep-alive", segment(&held.agent));
    let body = json!({"generation": held.generation}).to_string();
    let answer = client.change(Method::POST, &target, &[("weft-actor", &*actor())], body).await;
    let answer = answer.map_err(Renewal::Unanswered)?;
    match answer.status {
        StatusCode::OK => Ok(None),
        StatusCode::CONFLICT if answer.body["reason"] == "gone" => Ok(Some(Next::Lost)),
        _ => Err(Renewal::Refused(refused(&answer))),
    }
}

/// Drains if that is wanted, and deregisters. A second signal does not wait any longer.
async fn leave(args: &Args, held: &Held, ends: &mut Ends) -> Done {
    let mut client = args.which.plane.client(LEAVING);
    let body = args.which.body(Some(held));
    let leaving = async {
        if !args.drain_timeout.is_zero() {
            say(&post(&mut client, "/v1/drain", &body).await?);
            // The lease may be shorter than this.
            drained(args, held).await;
        }
        say(&post(&mut client, "/v1/deregister", &body).await?);
        Ok::<_, Failure>(())
    };
    tokio::select! {
        left = leaving => if let Err(failure) = left {
            eprint_line(&format!("not deregistered, it ends with its lease: {}", failure.message()));
        },
        () = ends.wait() => eprint_line("not deregistered: it ends with its lease"),
    }
    Ok(())
}

/// Waits while it drains, and keeps the lease alive meanwhile.
async fn drained(args: &Args, held: &Held) {
    let ttl = args.ttl.unwrap_or(super::TTL);
    let mut client = args.which.plane.client(ttl / 2);
    let end = Instant::now() + args.drain_timeout;
    while Instant::now() < end {
        sleep_until(end.min(Instant::now() + ttl / 3)).await;
        // If it is lost, so is what would be deregistered.
        let _ = renew(&mut client, held).await;
    }
}
