//! Services as targets of gRPC's xDS client.

use std::collections::{BTreeMap, HashMap};

use weft_model::config::{AppProtocol, HttpRoute, Key, ParentRef, Service};

use super::{
    Built, Kind, Resource, World,
    action::{self, Client},
    endpoints, listeners, names, order, routes, wire,
    wire::Typed,
};

/// A listener for each name of each service port, and the routes that they share.
pub(super) fn build(world: &World<'_>, built: &mut Built) {
    let bound = bound(world);
    let mut aliases: BTreeMap<String, String> = BTreeMap::new();
    let mut short: Vec<(String, String)> = Vec::new();
    for service in world.config.services.iter().filter(|service| !world.protected.contains(&service.key)) {
        let mut http = service.ports.iter().filter(|port| port.protocol != AppProtocol::Tcp).peekable();
        if endpoints::by_name(service) {
            if http.peek().is_some() {
                let why = "an endpoint is a name, which gRPC's client does not resolve: write or register addresses";
                built.leave_out(format!("Service {} as xds:///{}", service.key, service.key.name), why);
            }
            continue;
        }
        for port in http.map(|port| port.port) {
            if !built.resources.contains_key(&(Kind::Cluster, names::cluster(&service.key, port))) {
                continue;
            }
            let routes = names::service_routes(&service.key, port);
            let on_port = bound.get(&service.key).into_iter().flatten();
            let on_port = on_port.filter(|(only, _)| only.is_none_or(|only| only == port)).map(|(_, route)| *route);
            let configuration = configuration(world, &service.key, port, on_port.collect());
            built.resources.insert((Kind::Routes, routes.clone()), Resource::by_name(&configuration));
            let (full, in_default) = called(service, port);
            aliases.extend(full.into_iter().map(|name| (name, routes.clone())));
            short.extend(in_default.into_iter().map(|name| (name, routes.clone())));
        }
    }
    // `web.default` is web in default, whatever is called `web.default`.
    for (name, routes) in short {
        aliases.entry(name).or_insert(routes);
    }
    for (name, routes) in aliases {
        let api = wire::ApiListener { api_listener: Some(listeners::manager(&routes).any()) };
        let listener = wire::Listener { name: name.clone(), api_listener: Some(api), ..wire::Listener::default() };
        built.resources.insert((Kind::Listener, name), Resource::by_name(&listener));
    }
}

/// What a service port is called with its namespace, and without.
fn called(service: &Service, port: u16) -> (Vec<String>, Vec<String>) {
    let Key { namespace, name } = &service.key;
    let with_port = |name: String| match &*service.ports {
        [_] => vec![format!("{name}:{port}"), name],
        _ => vec![format!("{name}:{port}")],
    };
    let in_default = if &**namespace == "default" { with_port(name.to_string()) } else { Vec::new() };
    (with_port(format!("{name}.{namespace}")), in_default)
}

/// Routes by the services that they are bound to, each with the port that it is meant for, if it is meant for one. Only
/// those of the service's own namespace count: nobody else may lead its clients elsewhere.
fn bound<'c>(world: &World<'c>) -> HashMap<&'c Key, Vec<(Option<u16>, &'c HttpRoute)>> {
    let mut bound: HashMap<&Key, Vec<(Option<u16>, &HttpRoute)>> = HashMap::new();
    for route in &world.config.http_routes {
        for parent in &route.parents {
            if let ParentRef::Service { key, port } = parent
                && key.namespace == route.key.namespace
            {
                bound.entry(key).or_default().push((*port, route));
            }
        }
    }
    bound
}

fn configuration(world: &World<'_>, service: &Key, port: u16, bound: Vec<&HttpRoute>) -> wire::RouteConfiguration {
    let candidates: Vec<_> = bound.iter().flat_map(|route| order::candidates(route, None)).collect();
    // What a channel calls itself is not a hostname that a route could be for.
    let mut host = routes::virtual_host(world, None, &candidates, Client::Grpc);
    if bound.is_empty() {
        let everything = wire::PathSpecifier::Prefix("/".to_owned());
        host.routes.push(wire::Route {
            name: "implicit".to_owned(),
            matcher: Some(wire::RouteMatch { path: Some(everything), ..wire::RouteMatch::default() }),
            action: Some(wire::Action::Route(Box::new(action::implicit(world, service, port)))),
            ..wire::Route::default()
        });
    }
    routes::configuration(names::service_routes(service, port), vec![host])
}
