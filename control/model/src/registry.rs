//! Endpoints that registered themselves, beside those that are written in a Service.

use std::collections::HashMap;

use crate::{
    config::{Address, Endpoint, Key, Service},
    validate::{service::address, syntax},
};

/// The largest weight of an endpoint.
const WEIGHT_MAX: u32 = 1_000_000;

/// An endpoint that registered itself with a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Registered {
    /// With which service. Whether there is such a service is not checked: endpoints may come first.
    pub service: Key,
    /// What it said about itself.
    pub endpoint: Endpoint,
}

/// What an endpoint says about itself, unchecked.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// Namespace of the service.
    pub namespace: &'a str,
    /// Name of the service.
    pub service: &'a str,
    /// IP address, or a name to resolve.
    pub address: &'a str,
    /// Port on that address.
    pub port: u32,
    /// Relative share.
    pub weight: u32,
    /// Zone; empty when it is not known.
    pub zone: &'a str,
    /// It finishes what it has and gets nothing new.
    pub draining: bool,
}

/// Why an endpoint cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: &'static str,
}

impl Registered {
    /// Checks what an endpoint says about itself, as strictly as if it were written in a Service.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(claim: &Claim<'_>) -> Result<Self, Invalid> {
        let invalid = |message: String, hint| Invalid { message, hint };
        syntax::label(claim.namespace)
            .map_err(|why| invalid(format!("{:?} is not a namespace: {why}", claim.namespace), "as in team-a"))?;
        syntax::subdomain(claim.service).map_err(|why| {
            invalid(format!("{:?} is not the name of a service: {why}", claim.service), "as in cart-v2")
        })?;
        let address = address(claim.address).map_err(|(message, hint)| invalid(message, hint))?;
        let port = u16::try_from(claim.port).ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| invalid(format!("{} is not a port", claim.port), "from 1 to 65535"))?;
        if claim.weight > WEIGHT_MAX {
            return Err(invalid(format!("weight {} is too large", claim.weight), "from 0 to 1000000"));
        }
        let zone = (!claim.zone.is_empty()).then(|| claim.zone.into());
        let endpoint = Endpoint { address, port, weight: claim.weight, zone, draining: claim.draining };
        Ok(Self { service: Key::new(claim.namespace, claim.service), endpoint })
    }

    /// What it is called: `SERVICE/ADDRESS:PORT`, unique within a namespace.
    pub fn name(&self) -> String {
        format!("{}/{}", self.service.name, place(&self.endpoint))
    }
}

/// `ADDRESS:PORT`, an IPv6 address in brackets.
fn place(endpoint: &Endpoint) -> String {
    match &endpoint.address {
        Address::Ip(ip) => std::net::SocketAddr::new(*ip, endpoint.port).to_string(),
        Address::Name(name) => format!("{name}:{}", endpoint.port),
    }
}

/// The service with the endpoints that registered with it after those that are written. Of two at the same place the
/// registered one counts: it knows better how it is.
pub fn merged<'r>(service: &Service, registered: impl IntoIterator<Item = &'r Endpoint>) -> Service {
    let mut places: HashMap<(Address, u16), usize> = HashMap::new();
    let mut endpoints = service.endpoints.clone();
    for (at, endpoint) in endpoints.iter().enumerate() {
        places.insert((endpoint.address.clone(), endpoint.port), at);
    }
    for endpoint in registered {
        match places.get(&(endpoint.address.clone(), endpoint.port)) {
            Some(at) => endpoints[*at] = endpoint.clone(),
            None => {
                places.insert((endpoint.address.clone(), endpoint.port), endpoints.len());
                endpoints.push(endpoint.clone());
            }
        }
    }
    Service { endpoints, ..service.clone() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Options, load_str};

    const WEB: Claim<'_> = Claim {
        namespace: "default",
        service: "web",
        address: "10.0.0.7",
        port: 8080,
        weight: 2,
        zone: "a",
        draining: false,
    };

    #[test]
    fn what_could_not_be_written_in_a_service_cannot_register() {
        assert_eq!(Registered::check(&WEB).unwrap().name(), "web/10.0.0.7:8080");
        assert_eq!(Registered::check(&Claim { address: "fd00::1", ..WEB }).unwrap().name(), "web/[fd00::1]:8080");
        for (claim, expected) in [
            (Claim { namespace: "A", ..WEB }, "is not a namespace"),
            (Claim { service: "a b", ..WEB }, "is not the name of a service"),
            (Claim { address: "0.0.0.0", ..WEB }, "is not the address of an endpoint"),
            (Claim { address: "10.0.0", ..WEB }, "neither an IP address nor a name"),
            (Claim { port: 0, ..WEB }, "0 is not a port"),
            (Claim { port: 65_536, ..WEB }, "65536 is not a port"),
            (Claim { weight: 1_000_001, ..WEB }, "is too large"),
        ] {
            let error = Registered::check(&claim).unwrap_err();
            assert!(error.message.contains(expected) && !error.hint.is_empty(), "{error:?}");
        }
    }

    #[test]
    fn a_registered_endpoint_counts_instead_of_a_written_one() {
        let text = "apiVersion: weft.dev/v1alpha1\nkind: Service\nmetadata: {name: web}\nspec:\n  ports: [{port: 80}]\n  \
                    endpoints: [{address: 10.0.0.7, port: 8080}, {address: 10.0.0.8, port: 8080}]\n";
        let written = load_str("web.yaml", text, Options::default()).unwrap().config;
        let draining = Registered::check(&Claim { draining: true, ..WEB }).unwrap().endpoint;
        let another = Registered::check(&Claim { port: 9090, ..WEB }).unwrap().endpoint;
        let service = merged(&written.services[0], [&draining, &another]);
        let shares: Vec<_> = service.endpoints.iter().map(|e| (place(e), e.share())).collect();
        let place = |text: &str| text.to_owned();
        assert_eq!(shares, [(place("10.0.0.7:8080"), 0), (place("10.0.0.8:8080"), 1), (place("10.0.0.7:9090"), 2)]);
    }
}
