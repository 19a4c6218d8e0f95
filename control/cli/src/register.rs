//! `weft register` and `weft deregister`: endpoints that say themselves where they are.

mod keep;

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use weft_control::Client;

use crate::{
    exit::{Done, Exit, Failure, eprint_line, print_line},
    plane::{PlaneArgs, WITHIN, actor, block_on, done, segment},
    proxy,
    query::{each, text},
};

/// Which endpoints.
#[derive(Debug, Clone, clap::Args)]
pub struct Which {
    /// The Service. It may come later.
    service: String,
    /// Where the endpoints are: an IP address or a name; an IPv6 address in brackets.
    #[arg(value_name = "ADDRESS:PORT", required = true, value_parser = place)]
    places: Vec<Place>,
    /// The Service's namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[command(flatten)]
    plane: PlaneArgs,
}

/// Arguments of `weft register`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Their share, compared with the other endpoints.
    #[arg(long, default_value_t = 1)]
    weight: u32,
    /// Their zone.
    #[arg(long, default_value = "")]
    zone: String,
    /// They end unless they are registered again, or kept alive, within this time; without it they stay until they are
    /// deregistered.
    #[arg(long, value_name = "DURATION", value_parser = proxy::time)]
    ttl: Option<Duration>,
    /// Stay, and keep them alive: also through the loss of a member of the control plane. SIGTERM deregisters them.
    #[arg(long)]
    keep_alive: bool,
    /// With --keep-alive, on SIGTERM: let them drain for so long before they are deregistered.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = proxy::time, requires = "keep_alive")]
    drain_timeout: Duration,
    /// Who keeps them alive. The same name after a restart means the same agent [default: a name that is made of what is
    /// registered].
    #[arg(long)]
    agent: Option<String>,
    /// Also when another agent keeps them alive.
    #[arg(long)]
    take_over: bool,
}

/// Arguments of `weft deregister`.
#[derive(Debug, clap::Args)]
pub struct DeregisterArgs {
    #[command(flatten)]
    which: Which,
    /// First let them drain for so long: they finish what they have and get nothing new.
    #[arg(long, value_name = "DURATION", value_parser = proxy::time)]
    drain: Option<Duration>,
}

/// `ADDRESS:PORT`
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    address: String,
    port: u16,
}

fn place(text: &str) -> Result<Place, String> {
    let wrong = || "ADDRESS:PORT, as in 10.0.0.7:8080 or [fd00::7]:8080".to_owned();
    let (address, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match bare {
        Some(bare) => Ok(Place { address: bare.into(), port }),
        None if address.contains(':') => Err(wrong()),
        None => Ok(Place { address: address.into(), port }),
    }
}

/// What is kept alive when nobody says for how long.
const TTL: Duration = Duration::from_secs(10);

/// Registers, and perhaps keeps alive.
pub fn run(args: &Args) -> Done {
    let ttl = args.ttl.or(args.keep_alive.then_some(TTL));
    match ttl {
        None if args.agent.is_some() => Err(Failure::new(Exit::Usage, "an agent needs --ttl or --keep-alive")),
        None => block_on(async {
            let mut client = args.which.plane.client(WITHIN);
            say(&register(&mut client, args, None).await?);
            Ok(())
        }),
        Some(ttl) if args.keep_alive => block_on(keep::run(args, ttl)),
        Some(ttl) => block_on(async {
            let mut client = args.which.plane.client(WITHIN);
            let held = grant(&mut client, args, ttl).await?;
            say(&register(&mut client, args, Some(&held)).await?);
            let ttl = weft_model::duration::format(ttl);
            eprint_line(&format!(
                "it ends in {ttl} unless it is registered again by then; --keep-alive stays and keeps it alive"
            ));
            Ok(())
        }),
    }
}

/// Deregisters, perhaps after a while.
pub fn deregister(args: &DeregisterArgs) -> Done {
    block_on(async {
        let mut client = args.which.plane.client(WITHIN);
        if let Some(time) = args.drain {
            say(&post(&mut client, "/v1/drain", &args.which.body(None)).await?);
            tokio::time::sleep(time).await;
        }
        let gone = post(&mut client, "/v1/deregister", &args.which.body(None)).await?;
        say(&gone);
        if gone["changed"] == 0 { Err(Failure::silent(Exit::Failed)) } else { Ok(()) }
    })
}

/// A lease that was granted.
#[derive(Debug, Clone)]
struct Held {
    agent: String,
    generation: u64,
}

impl Which {
    /// What the control plane is told.
    fn body(&self, held: Option<&Held>) -> Value {
        let places = self.places.iter().map(|place| json!({"address": place.address, "port": place.port}));
        let mut body = json!({
            "namespace": self.namespace,
            "service": self.service,
            "endpoints": places.collect::<Vec<_>>(),
        });
        if let Some(Held { agent, generation }) = held {
            body["agent"] = agent.as_str().into();
            body["generation"] = (*generation).into();
        }
        body
    }
}

impl Args {
    /// Who keeps them alive. What is registered by itself ends by itself.
    fn agent(&self) -> String {
        if let Some(agent) = &self.agent {
            return agent.clone();
        }
        let mut places: Vec<String> =
            self.which.places.iter().map(|place| format!("{}:{}", place.address, place.port)).collect();
        places.sort();
        places.dedup();
        let service = format!("{}/{}", self.which.namespace, self.which.service);
        match &*places {
            [place] => format!("{service}/{place}"),
            _ => {
                let sum = weft_store::codec::checksum(&[places.join(",").as_bytes()]);
                format!("{service}/{} endpoints {sum:016x}", places.len())
            }
        }
    }
}

async fn grant(client: &mut Client, args: &Args, ttl: Duration) -> Result<Held, Failure> {
    let agent = args.agent();
    let body = json!({"ttlMs": u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)}).to_string();
    let target = format!("/v1/agents/{}", segment(&agent));
    let granted = done(client.change(Method::PUT, &target, &[("weft-actor", &*actor())], body).await)?;
    let generation = granted["generation"].as_u64();
    let generation = generation.ok_or_else(|| Failure::new(Exit::Failed, "the control plane named no generation"))?;
    Ok(Held { agent, generation })
}

async fn register(client: &mut Client, args: &Args, held: Option<&Held>) -> Result<Value, Failure> {
    let mut body = args.which.body(held);
    for endpoint in body["endpoints"].as_array_mut().into_iter().flatten() {
        endpoint["weight"] = args.weight.into();
        endpoint["zone"] = args.zone.as_str().into();
    }
    body["takeOver"] = args.take_over.into();
    post(client, "/v1/register", &body).await
}

async fn post(client: &mut Client, target: &str, body: &Value) -> Result<Value, Failure> {
    done(client.change(Method::POST, target, &[("weft-actor", &*actor())], body.to_string()).await)
}

/// A line for each endpoint, the revision, and what to mind.
fn say(done: &Value) {
    for warning in each(&done["warnings"]) {
        eprint_line(&format!("warning: {}\n  hint: {}", text(&warning["message"]), text(&warning["hint"])));
    }
    for object in each(&done["objects"]) {
        print_line(&format!("{} {}", text(&object["name"]), text(&object["action"])));
    }
    print_line(&format!("revision {}", done["revision"]));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_place_has_an_address_and_a_port() {
        let of = |address: &str, port| Ok(Place { address: address.into(), port });
        assert_eq!(place("10.0.0.7:8080"), of("10.0.0.7", 8080));
        assert_eq!(place("[fd00::7]:80"), of("fd00::7", 80));
        assert_eq!(place("web.internal:80"), of("web.internal", 80));
        for wrong in ["10.0.0.7", "fd00::7:80", ":x", "a:70000", "8080"] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }
}
