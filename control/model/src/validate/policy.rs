//! `TrafficPolicy`: targets, and every leaf of its spec.

mod effect;
mod protect;

use std::collections::HashMap;

pub(super) use self::effect::{on_tcp, overruled};
use super::{
    At, Context, Document, Written, filters,
    service::{relative, service_ref},
    syntax, whereabouts,
};
use crate::{
    config::{Key, PolicyTarget, TrafficPolicy},
    effective,
    written::{self, GATEWAY_API, GrpcProbe, HashOn, Kind, TrafficPolicySpec},
};

pub(super) fn policy(at: At<'_>, key: &Key, written: &TrafficPolicySpec) -> TrafficPolicy {
    let mut targets = Vec::new();
    for (i, reference) in written.target_refs.iter().flatten().enumerate() {
        let at = at.field("targetRefs").item(i);
        let Some(target) = target(at, reference) else { continue };
        if targets.contains(&target) {
            at.error("conflict", "this target is listed twice", Some("remove one".into()));
        } else {
            targets.push(target);
        }
    }
    traffic(at, written);
    protect::protection(at, written);
    protect::limits(at, written);
    probes(at, written);
    effect::times(at, written);
    TrafficPolicy { key: key.clone(), targets, spec: TrafficPolicySpec { target_refs: None, ..written.clone() } }
}

fn target(at: At<'_>, written: &written::TargetRef) -> Option<PolicyTarget> {
    let name = written.name.as_deref()?;
    let kind = written.kind.as_deref()?;
    if written.section_name.is_some() {
        at.field("sectionName").unsupported("sectionName of a TrafficPolicy", "the policy covers the whole target");
    }
    let route = match (written.group.as_deref().unwrap_or(GATEWAY_API), kind) {
        (_, "Service") => {
            return service_ref(at, written.group.as_deref(), Some(kind), None, name).map(PolicyTarget::Service);
        }
        (GATEWAY_API, "HTTPRoute") => Kind::HttpRoute,
        (GATEWAY_API, "GRPCRoute") => Kind::GrpcRoute,
        (_, "HTTPRoute" | "GRPCRoute") => {
            at.field("group").unsupported(format!("a {kind} of this group"), "use group: gateway.networking.k8s.io");
            return None;
        }
        _ => {
            at.field("kind")
                .unsupported(format!("a TrafficPolicy on a {kind}"), "target a Service, an HTTPRoute or a GRPCRoute");
            return None;
        }
    };
    let key = at.key(None, name);
    let routes = &at.cx.index.routes;
    if at.cx.refs && !routes.contains(&(route, key.clone())) {
        let known: Vec<String> =
            routes.iter().filter(|(kind, _)| *kind == route).map(|(_, key)| relative(at, key)).collect();
        at.field("name").unresolved(kind, &relative(at, &key), &known);
    }
    Some(if route == Kind::HttpRoute { PolicyTarget::HttpRoute(key) } else { PolicyTarget::GrpcRoute(key) })
}

/// One policy per target: there is no order between two.
pub(super) fn conflicts(documents: &[Document], cx: &Context<'_>) {
    let mut owners: HashMap<(Kind, String, Key), &Document> = HashMap::new();
    for document in documents {
        let targets = match &document.written {
            Written::TrafficPolicy(spec) => &spec.target_refs,
            Written::BackendTlsPolicy(spec) => &spec.target_refs,
            _ => continue,
        };
        let at = At::new(cx, document).field("spec").field("targetRefs");
        for (i, target) in targets.iter().flatten().enumerate() {
            let (Some(kind), Some(name)) = (&target.kind, &target.name) else { continue };
            let section = target.section_name.as_deref().unwrap_or_default();
            let of = (document.kind, format!("{kind}#{section}"), at.key(None, name));
            match owners.insert(of, document) {
                Some(first) if !std::ptr::eq(first, document) => {
                    let hint = format!("{} {} at {} has it; merge the two", first.kind, first.key, whereabouts(first));
                    at.item(i).field("name").error(
                        "conflict",
                        format!("{kind} {name} has two {}s", document.kind.name().replace("Policy", "Policie")),
                        Some(hint),
                    );
                }
                _ => {}
            }
        }
    }
}

fn traffic(at: At<'_>, spec: &TrafficPolicySpec) {
    if let Some(balancer) = &spec.load_balancer {
        let at = at.field("loadBalancer");
        at.duration("slowStart", balancer.slow_start.as_ref());
        if let Some(HashOn::Field(hash)) = &balancer.hash {
            let at = at.field("hash");
            let flags = [("sourceIP", &hash.source_ip), ("path", &hash.path)];
            key_field(at, &hash.header, &hash.cookie, &flags, "{header: x-user}, {cookie: session}, sourceIP or path");
        }
    }
    if let Some(pool) = &spec.connection_pool {
        at.field("connectionPool").positive("idleTimeout", pool.idle_timeout.as_ref());
    }
    if let Some(timeouts) = &spec.timeouts {
        let at = at.field("timeouts");
        at.duration("connect", timeouts.connect.as_ref());
        at.duration("request", timeouts.request.as_ref());
        at.duration("idle", timeouts.idle.as_ref());
    }
}

/// Exactly one of a header, a cookie and some flags.
fn key_field(
    at: At<'_>,
    header: &Option<String>,
    cookie: &Option<String>,
    flags: &[(&str, &Option<written::Chosen>)],
    hint: &str,
) {
    for (field, text) in [("header", header), ("cookie", cookie)] {
        let Some(text) = text else { continue };
        if !syntax::token(text) {
            at.field(field).invalid(format!("{text:?} is not the name of a {field}"), "for instance x-user");
        }
    }
    let chosen = flags.iter().filter(|(_, chosen)| chosen.as_ref().is_some_and(written::Chosen::is_chosen)).count();
    let count = usize::from(header.is_some()) + usize::from(cookie.is_some()) + chosen;
    if count != 1 && !at.lost_fields() {
        at.invalid("exactly one key is needed here", &format!("one of {hint}"));
    }
}

fn probes(at: At<'_>, spec: &TrafficPolicySpec) {
    if let Some(check) = &spec.health_check {
        let at = at.field("healthCheck");
        at.positive("interval", check.interval.as_ref());
        at.positive("timeout", check.timeout.as_ref());
        if let Some(path) = &check.path {
            // A probe's path may carry a query.
            if !path.starts_with('/') || path.bytes().any(|b| b <= b' ' || b >= 0x7f || b == b'#') {
                at.field("path").invalid(format!("{path:?} is not a path"), "for instance /healthz");
            }
        }
        if let Some(GrpcProbe::Name(name)) = &check.grpc
            && name.contains('/')
        {
            at.field("grpc")
                .invalid(format!("{name:?} is not the name of a gRPC service"), "for instance helloworld.Greeter");
        }
        let tcp = check.tcp.as_ref().is_some_and(written::Chosen::is_chosen);
        let count = usize::from(check.path.is_some()) + usize::from(check.grpc.is_some()) + usize::from(tcp);
        // A route's policy may change the interval of its service's check and leave the probe alone: none is fine.
        if count > 1 {
            at.invalid("only one of path, grpc and tcp can be probed", "remove the others");
        } else if count == 0 && !at.lost_fields() && at_service(spec) {
            at.error(
                "missing-field",
                "a healthCheck needs path, grpc or tcp",
                Some("for instance path: /healthz".into()),
            );
        }
    }
    if let Some(fault) = &spec.fault {
        let at = at.field("fault");
        if let Some(delay) = &fault.delay {
            at.field("delay").positive("fixed", delay.fixed.as_ref());
        }
        if let Some(abort) = &fault.abort {
            let at = at.field("abort");
            if abort.status.is_some() && abort.grpc_status.is_some() {
                at.field("grpcStatus").invalid("only one of status and grpcStatus can be given", "remove the other");
            }
            if abort.status.is_none() && abort.grpc_status.is_none() && !at.lost_fields() && at_service(spec) {
                at.error("missing-field", "abort needs status or grpcStatus", Some("for instance status: 503".into()));
            }
            if abort.grpc_status.as_ref().is_some_and(|status| effective::grpc_code(status).is_none()) {
                let hint = "a name such as UNAVAILABLE, or a number from 0 to 16";
                at.field("grpcStatus").invalid("this is not a gRPC status", hint);
            }
        }
        if let Some(header) = &fault.header {
            let at = at.field("header");
            if let Some(name) = &header.name {
                filters::header_name(at.field("name"), name);
            }
            if let (Some(written::ValueMatchType::RegularExpression), Some(value)) = (header.kind, &header.value) {
                at.field("value").regex(value);
            }
        }
    }
}

/// Whether the policy stands alone on a service, with nothing below it to merge with.
fn at_service(spec: &TrafficPolicySpec) -> bool {
    spec.target_refs.iter().flatten().any(|target| target.kind.as_deref() == Some("Service"))
}
