//! Every mistake is reported at its place, with a hint.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use weft_model::{Diagnostic, Options, Problems, load_str};

const BASE: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: weft
  listeners:
  - {name: http, port: 80, protocol: HTTP, hostname: '*.shop.local'}
  - {name: raw, port: 81, protocol: TCP}
---
apiVersion: weft.dev/v1alpha1
kind: Service
metadata: {name: cart}
spec: {clusterIPs: [10.96.0.1], ports: [{port: 80}]}
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: cart}
spec: {targetRefs: [{kind: Service, name: cart}]}
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: web}
spec: {selector: {cgroup: web}}
---
apiVersion: v1
kind: Secret
metadata: {name: ca-only}
stringData: {ca.crt: '-----BEGIN CERTIFICATE-----'}
---
";

fn problems(text: &str) -> Problems {
    load_str("test.yaml", text, Options::default()).expect_err("it has mistakes")
}

/// The problems of a document that follows [`BASE`], with lines counted from the document.
fn after_base(document: &str) -> Vec<Diagnostic> {
    let text = format!("{BASE}{document}");
    let above = BASE.lines().count();
    let shift = |problem: &Diagnostic| {
        let mut problem = problem.clone();
        problem.line = problem.line.saturating_sub(above);
        problem
    };
    match load_str("test.yaml", &text, Options::default()) {
        Ok(checked) => checked.warnings.iter().filter(|warning| warning.line > above).map(shift).collect(),
        Err(problems) => problems.iter().map(shift).collect(),
    }
}

fn gateway(listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g}}\nspec:\n  gatewayClassName: weft\n  addresses: [{{value: 127.0.0.2}}]\n  listeners:\n  - {listeners}\n"
    )
}

fn route(parent: &str, rest: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec:\n  parentRefs: [{parent}]\n  {rest}\n"
    )
}

fn rule(rule: &str) -> String {
    route("{name: edge}", &format!("rules:\n  - {rule}"))
}

fn grpc(rule: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {{name: r}}\nspec:\n  parentRefs: [{{name: edge}}]\n  rules:\n  - {rule}\n"
    )
}

fn ours(kind: &str, spec: &str) -> String {
    format!("apiVersion: weft.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: x}}\nspec:\n  {spec}\n")
}

fn policy(fields: &str) -> String {
    ours("TrafficPolicy", &format!("targetRefs: [{{group: weft.dev, kind: Service, name: cart2}}]\n  {fields}"))
}

/// Document, line, column, message, hint. An empty hint is not compared.
fn check(cases: &[(String, usize, usize, &str, &str)]) {
    let mut wrong = String::new();
    for (document, line, column, message, hint) in cases {
        let found = after_base(document);
        let fits = found.iter().any(|problem| {
            (problem.line, problem.column, problem.message.as_str()) == (*line, *column, *message)
                && (hint.is_empty() || problem.hint.as_deref() == Some(hint))
        });
        if !fits {
            wrong.push_str(&format!(
                "wanted {line}:{column}: {message}\n  hint: {hint}\ngot {found:#?}\nfor\n{document}\n"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn many_mistakes_are_all_reported() {
    let text = include_str!("mistakes/many.yaml");
    let problems = problems(text);
    let expected = include_str!("mistakes/many.txt");
    assert_eq!(problems.to_string(), expected.trim_end());
    assert_eq!(problems.len(), problems.iter().count());
    assert!(problems.len() > 50);
}

#[test]
fn references_lead_somewhere() {
    check(&[
        (route("{name: egde}", "rules: []"), 5, 23, "there is no Gateway \"egde\"", "did you mean \"edge\"?"),
        (
            route("{name: edge, sectionName: htpp}", ""),
            5,
            42,
            "Gateway edge has no listener \"htpp\"",
            "did you mean \"http\"?",
        ),
        (
            route("{name: edge, port: 82}", ""),
            5,
            35,
            "Gateway edge has no listener on port 82",
            "its ports are: 80, 81",
        ),
        (
            route("{name: edge, sectionName: raw}", ""),
            5,
            16,
            "no listener chosen here carries an HTTPRoute",
            "name a listener with protocol: HTTP or HTTPS",
        ),
        (
            route("{name: edge}", "hostnames: [other.local]"),
            5,
            16,
            "no listener chosen here has a hostname in common with this route",
            "compare hostnames with the listener's hostname",
        ),
        (
            route("{name: edge}", "")
                .replace("{name: r}", "{name: r, namespace: other}")
                .replace("{name: edge}", "{name: edge, namespace: default}"),
            5,
            16,
            "no listener chosen here accepts routes of namespace \"other\"",
            "",
        ),
        (route("{kind: Service, name: crat}", ""), 5, 38, "there is no Service \"crat\"", "did you mean \"cart\"?"),
        (
            rule("backendRefs: [{name: carts, port: 80}]"),
            7,
            26,
            "there is no Service \"carts\"",
            "did you mean \"cart\"?",
        ),
        (rule("backendRefs: [{name: cart, port: 81}]"), 7, 38, "Service cart has no port 81", "its ports are: 80"),
        (
            rule("backendRefs: [{group: apps, kind: Deployment, name: cart, port: 80}]"),
            7,
            39,
            "Deployment of group \"apps\" is not supported by Weft",
            "use a Service: {group: weft.dev, kind: Service, name: …}",
        ),
        (
            ours("TrafficPolicy", "targetRefs: [{kind: HTTPRoute, name: shop}]"),
            5,
            40,
            "there is no HTTPRoute \"shop\"",
            "add an HTTPRoute named \"shop\"",
        ),
        (
            ours("TrafficPolicy", "targetRefs: [{kind: Service, name: cart}]"),
            5,
            38,
            "Service cart has two TrafficPolicies",
            "TrafficPolicy cart at test.yaml:17 has it; merge the two",
        ),
        (
            ours("AccessPolicy", "targetRefs: [{kind: Service, name: cart}]\n  rules: [{from: [{workloads: [wbe]}]}]"),
            6,
            32,
            "there is no Workload \"wbe\"",
            "did you mean \"web\"?",
        ),
        (
            gateway("{name: tls, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: ca-only}]}}"),
            8,
            76,
            "Secret ca-only has no certificate with its key",
            "add tls.crt and tls.key to it",
        ),
        (
            gateway(
                "{name: tls, port: 443, protocol: HTTPS, tls: {certificateRefs: [{kind: Certificate, name: ca-only}]}}",
            ),
            8,
            95,
            "there is no Certificate \"ca-only\"",
            "add a Certificate named \"ca-only\"",
        ),
    ]);
}

#[test]
fn references_may_lead_nowhere_when_objects_come_one_by_one() {
    let options = Options { require_refs: false };
    let text = route("{name: nowhere}", "rules: [{backendRefs: [{name: nobody, port: 1}]}]");
    let checked = load_str("one.yaml", &text, options).unwrap();
    assert_eq!(checked.config.http_routes[0].rules[0].backends.len(), 1);
    assert!(load_str("one.yaml", &text, Options::default()).is_err());
}

#[test]
fn an_unreadable_document_hides_no_other_problem_and_makes_none() {
    let text = format!("{}---\na: [\n---\n{}", rule("backendRefs: [{name: lost, port: 80}]"), ours("Servcie", "{}"));
    let found = problems(&text);
    let codes: Vec<&str> = found.iter().map(|problem| problem.code).collect();
    // The route's references could be defined in the documents that cannot be read.
    assert_eq!(codes, ["yaml-syntax", "unknown-kind"]);
}

#[test]
fn a_broken_object_can_still_be_referred_to() {
    let text = format!(
        "{}---\n{}",
        ours("Service", "ports: [{port: 80, nmae: x}]").replace("{name: x}", "{name: lame}"),
        rule("backendRefs: [{name: lame, port: 81}]").replace("parentRefs: [{name: edge}]", "parentRefs: []")
    );
    let found = problems(&text);
    assert_eq!(found.len(), 1, "{found}");
    assert_eq!(found.iter().next().unwrap().message, "unknown field \"nmae\"; did you mean \"name\"?");
}

#[test]
fn gateways() {
    check(&[
        (
            gateway("{name: a, port: 80, protocol: HTTP}\n  - {name: b, port: 80, protocol: HTTP}"),
            9,
            21,
            "port 80 has two listeners for every hostname",
            "",
        ),
        (
            gateway(
                "{name: a, port: 90, protocol: HTTP, hostname: A.x}\n  - {name: b, port: 90, protocol: HTTP, hostname: a.x}",
            ),
            9,
            51,
            "port 90 has two listeners for \"a.x\"",
            "it clashes with listener \"a\" of the Gateway at test.yaml:32",
        ),
        (
            gateway("{name: a, port: 81, protocol: HTTP}"),
            8,
            35,
            "port 81 cannot speak both TCP and HTTP",
            "it clashes with listener \"raw\" of the Gateway at test.yaml:3",
        ),
        (
            gateway("{name: a, port: 90, protocol: TCP}\n  - {name: a, port: 90, protocol: TCP}"),
            9,
            21,
            "port 90 is bound twice for TCP",
            "",
        ),
        (
            gateway("{name: a, port: 90, protocol: TCP}\n  - {name: a, port: 91, protocol: TCP}"),
            9,
            12,
            "listener \"a\" is defined twice",
            "",
        ),
        (gateway("{name: a, port: 90, protocol: TCP, hostname: a.b}"), 8, 50, "a TCP listener has no hostname", ""),
        (gateway("{name: a, port: 90, protocol: HTTP, tls: {}}"), 8, 46, "only an HTTPS listener has tls", ""),
        (gateway("{name: a, port: 90, protocol: HTTPS}"), 8, 35, "an HTTPS listener needs tls.certificateRefs", ""),
        (
            gateway("{name: a, port: 90}"),
            8,
            5,
            "field \"protocol\" of \"listeners\" is missing",
            "protocol: What is spoken",
        ),
        (
            gateway("{name: a, port: 99999, protocol: TCP}"),
            8,
            21,
            "\"port\" is out of range: 99999",
            "between 1 and 65535",
        ),
        (
            gateway("{name: a, port: 90, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector}}}"),
            8,
            76,
            "from Selector is not supported by Weft",
            "use Same or All",
        ),
    ]);
}

/// It is only compared.
#[test]
fn a_fault_may_depend_on_a_header_of_the_connection() {
    let fault = "fault: {header: {name: Upgrade, value: websocket}, abort: {status: 503, percent: 1}}";
    let found = after_base(&policy(fault).replace("cart2", "cart").replace("name: x}", "name: cart}"));
    assert!(!found.iter().any(|problem| problem.message.contains("cannot be changed")), "{found:?}");
}

#[test]
fn rules() {
    check(&[
        (
            rule("matches: [{path: {value: /a/../b}}]"),
            7,
            30,
            "\"/a/../b\" is not a path: it contains /../",
            "for instance /cart",
        ),
        (
            rule("matches: [{headers: [{name: 'x y', value: a}]}]"),
            7,
            33,
            "\"x y\" is not a header name",
            "for instance x-user",
        ),
        (
            rule("matches: [{headers: [{name: x, value: 1}]}]"),
            7,
            43,
            "\"value\" has to be text, but this is a whole number",
            "put it in quotes: \"1\"",
        ),
        (
            rule("matches: [{headers: [{name: x, value: a}, {name: X, value: b}]}]"),
            7,
            54,
            "header \"X\" is matched twice",
            "only the first counts; remove one, or use a regular expression",
        ),
        (rule("filters: [{type: URLRewrite}]"), 7, 22, "URLRewrite needs urlRewrite", "add urlRewrite: {…}"),
        (
            rule("filters: [{type: URLRewrite, urlRewrite: {hostname: a.b}, requestRedirect: {}}]"),
            7,
            80,
            "requestRedirect does not belong to type URLRewrite",
            "set type: RequestRedirect, or remove requestRedirect",
        ),
        (
            rule(
                "filters: [{type: URLRewrite, urlRewrite: {hostname: a.b}}, {type: URLRewrite, urlRewrite: {hostname: a.c}}]",
            ),
            7,
            71,
            "URLRewrite can be used once",
            "merge the two filters",
        ),
        (
            rule(
                "matches: [{path: {type: Exact, value: /a}}]\n    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]",
            ),
            8,
            14,
            "ReplacePrefixMatch needs PathPrefix matches only",
            "use type: PathPrefix in every match of the rule, or ReplaceFullPath",
        ),
        (
            rule(
                "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: \"b\\nc\"}]}}]",
            ),
            7,
            92,
            "this cannot be the value of a header: it has a line break or another control character",
            "one line of text",
        ),
        (
            rule("filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [Content-Length]}}]"),
            7,
            78,
            "header \"content-length\" cannot be changed",
            "Weft frames messages itself; remove it",
        ),
        (
            rule("filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: TE, value: x}]}}]"),
            7,
            84,
            "header \"te\" cannot be changed",
            "Weft frames messages itself; remove it",
        ),
        (
            rule("matches: [{path: {value: /a/%2e%2E/b}}]"),
            7,
            30,
            "\"/a/%2e%2E/b\" is not a path: it contains an escaped . segment",
            "for instance /cart",
        ),
        (
            rule("matches: [{path: {type: RegularExpression, value: 'a)|(b'}}]"),
            7,
            55,
            "\"a)|(b\" is not a regular expression",
            "unopened group",
        ),
        (
            rule("matches: [{headers: [{type: RegularExpression, name: x, value: '(?x)a #b'}]}]"),
            7,
            68,
            "\"(?x)a #b\" is not a regular expression",
            "unclosed group",
        ),
        (
            rule(
                "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: cart, port: 80}, percent: 5, fraction: {numerator: 1}}}]",
            ),
            7,
            111,
            "percent and fraction cannot be used together",
            "remove one",
        ),
        (
            rule("filters: [{type: RequestRedirect, requestRedirect: {}}]\n    backendRefs: [{name: cart, port: 80}]"),
            8,
            18,
            "a rule that redirects has no backends",
            "remove backendRefs or the filter",
        ),
        (rule("name: a\n  - name: a"), 8, 11, "rule \"a\" is defined twice", "rename one"),
        (rule("retry: {codes: [200]}"), 7, 21, "an entry of \"codes\" is out of range: 200", "between 400 and 599"),
        (
            rule("timeouts: {request: 5}"),
            7,
            25,
            "\"request\" has to be a duration such as 250ms, but this is a whole number",
            "a duration needs a unit: 5s or 5ms",
        ),
        (
            rule("sessionPersistence: {}"),
            7,
            5,
            "field \"sessionPersistence\" is not supported by Weft",
            "use loadBalancer: {type: RingHash, hash: {cookie: NAME}} in a TrafficPolicy",
        ),
        (grpc("matches: [{method: {type: Exact}}]"), 7, 24, "a method match needs service, method or both", ""),
        (grpc("matches: [{method: {service: a/b}}]"), 7, 34, "\"a/b\" is not the name of a gRPC service", ""),
        (
            grpc("filters: [{type: RequestRedirect}]"),
            7,
            22,
            "type RequestRedirect is not supported by Weft",
            "a GRPCRoute cannot redirect",
        ),
    ]);
}

#[test]
fn services_and_others() {
    check(&[
        (ours("Service", "ports: [{port: 80}]\n  clusterIPs: [10.96.0.1]"), 6, 16, "10.96.0.1 belongs to another Service", "Service cart at test.yaml:12 has it"),
        (ours("Service", "ports: [{port: 80}, {port: 81}]"), 5, 11, "a port needs a name when there are several", "add name: http"),
        (ours("Service", "ports: [{port: 80, name: a}, {port: 80, name: b}]"), 5, 39, "port 80 is listed twice", "remove one"),
        (ours("Service", "ports: []"), 5, 10, "\"ports\" is empty; it needs at least one entry", ""),
        (ours("Service", "ports: [{port: 80}]\n  endpoints: [{address: 10.0.0.300, port: 1}]"), 6, 25, "\"10.0.0.300\" is neither an IP address nor a name: it has only digits and dots", ""),
        (ours("Service", "ports: [{port: 80, appProtocol: htpp}]"), 5, 35, "\"htpp\" is not a value of \"appProtocol\"; did you mean \"http\"?", ""),
        (ours("Service", "ports: [{port: 80, targetPort: 8080}]"), 5, 22, "field \"targetPort\" is not supported by Weft", "give the port with each endpoint"),
        (ours("Service", "ports: [{port: 80}]").replace("{name: x}", "{name: cart}"), 3, 18, "Service \"cart\" is defined twice", "the first is at test.yaml:12; remove one or rename it"),
        (ours("Service", "ports: [{port: 80}]").replace("weft.dev/v1alpha1", "v1"), 2, 7, "a core Service is not supported by Weft", "use apiVersion: weft.dev/v1alpha1, whose Service lists its ports and endpoints"),
        (ours("Service", "ports: [{port: 80}]").replace("v1alpha1", "v1"), 1, 13, "\"weft.dev/v1\" is not a value of \"apiVersion\"; did you mean \"weft.dev/v1alpha1\"?", "values: weft.dev/v1alpha1"),
        (ours("Service", "ports: [{port: 80}]").replace("metadata: {name: x}", "metadata: {}"), 3, 11, "field \"name\" of \"metadata\" is missing", "name: Unique per kind and namespace"),
        (ours("TLSRoute", "{}"), 2, 7, "TLSRoute is not supported by Weft", ""),
        (ours("Workload", "selector: {cgroup: ../x}"), 5, 22, "\"../x\" is not a cgroup path", ""),
        (ours("AccessPolicy", "targetRefs: [{kind: Service, name: cart}]\n  rules: [{from: [{ipBlocks: [10.0.0.1/8]}]}]"), 6, 31, "\"10.0.0.1/8\" is not an IP block: it has bits beyond the prefix; 10.0.0.0/8 is the block", ""),
        (ours("AccessPolicy", "targetRefs: [{kind: Service, name: cart}]\n  rules: [{from: [{}]}]"), 6, 19, "a source says nothing about who it is", ""),
        (ours("Certificate", "certFile: a.pem"), 5, 3, "certFile needs keyFile", "add keyFile"),
        ("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ntype: kubernetes.io/tls\ndata: {tls.crt: '***', tls.key: LS0tLS1CRUdJTiA=}\n".into(), 5, 17, "tls.crt is not base64 of PEM text", "encode the file with base64 -w0, or put it into stringData"),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: b}\n".into(), 3, 18, "a ConfigMap needs ca.crt in its data", ""),
        (ours("TelemetryPolicy", "accessLog: {when: status = 500}"), 5, 28, "a comparison is missing after status", "one of == != < <= > >= =~ !~"),
        (
            "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: b}\nspec:\n  targetRefs: [{kind: Service, name: cart, sectionName: htp}]\n  validation: {hostname: '*.a'}\n".into(),
            6, 15, "validation says nothing about whom to trust", "add wellKnownCACertificates: System, or caCertificateRefs",
        ),
    ]);
}

#[test]
fn policies() {
    check(&[
        (policy("retires: {}"), 6, 3, "unknown field \"retires\"; did you mean \"retry\"?", ""),
        (
            policy("rateLimit: [{requests: 1, per: 1s, scope: Cluster}]"),
            6,
            45,
            "scope Cluster is not supported by Weft",
            "limits count on each node for now: use scope: Node and divide by the number of nodes",
        ),
        (policy("rateLimit: [{requests: 0, per: 1s}]"), 6, 26, "\"requests\" is out of range: 0", "at least 1"),
        (policy("rateLimit: [{requests: -1, per: 1s}]"), 6, 26, "\"requests\" is out of range: -1", ""),
        (policy("rateLimit: [{requests: 1, per: 1s, burst: 0}]"), 6, 45, "\"burst\" is out of range: 0", ""),
        (
            policy("rateLimit: [{requests: 1, per: 0s}]"),
            6,
            34,
            "per cannot be zero",
            "for instance 250ms, 10s or 1m30s",
        ),
        (
            policy("rateLimit: [{requests: 1, per: -1s}]"),
            6,
            34,
            "\"-1s\" is not a duration: a duration cannot be negative",
            "for instance 250ms, 10s or 1m30s",
        ),
        (policy("rateLimit: [{per: 1s}]"), 6, 15, "field \"requests\" of \"rateLimit\" is missing", ""),
        (
            policy("rateLimit: [{requests: 1, per: 1s, onBreakerOpen: {factor: 1.5}}]"),
            6,
            62,
            "\"factor\" is out of range: 1.5",
            "",
        ),
        (
            policy("concurrency: {adaptive: {min: 10, max: 5}}"),
            6,
            42,
            "max is less than min",
            "make it at least as large",
        ),
        (policy("concurrency: {}"), 6, 16, "field \"adaptive\" of \"concurrency\" is missing", ""),
        (policy("fault: {abort: {percent: 5}}"), 6, 18, "abort needs status or grpcStatus", "for instance status: 503"),
        (policy("fault: {abort: {grpcStatus: NOPE}}"), 6, 31, "this is not a gRPC status", ""),
        (policy("healthCheck: {interval: 1s}"), 6, 16, "a healthCheck needs path, grpc or tcp", ""),
        (
            policy("loadBalancer: {zoneAware: yes}"),
            6,
            29,
            "\"zoneAware\" has to be true or false, but this is text",
            "write true",
        ),
        (policy("loadBalancer: {hash: [x]}"), 6, 24, "\"hash\" has to be text or a mapping, but this is a list", ""),
        (policy("timeouts: 5s"), 6, 13, "\"timeouts\" has to be a mapping, but this is text", ""),
        (
            policy("rateLimit: {requests: 1}"),
            6,
            14,
            "\"rateLimit\" has to be a list, but this is a mapping",
            "start each entry with \"- \", or write [a, b]",
        ),
    ]);
}

#[test]
fn policies_that_contradict_themselves() {
    let longer = "make it shorter, raise timeouts.request, or";
    check(&[
        (policy("retryBudget: {percent: 140}"), 6, 26, "\"percent\" is out of range: 140", "between 0 and 100"),
        (policy("rateLimit: [{requests: 1, per: 1s, burst: 0}]"), 6, 45, "\"burst\" is out of range: 0", "at least 1"),
        (policy("priority: 8"), 6, 13, "\"priority\" is out of range: 8", "between 0 and 7"),
        (policy("connectionPool: {maxRetries: -1}"), 6, 32, "\"maxRetries\" is out of range: -1", "at least 0"),
        (
            policy("retry: {perTryTimeout: -1s}"),
            6,
            26,
            "\"-1s\" is not a duration: a duration cannot be negative",
            "for instance 250ms, 10s or 1m30s",
        ),
        (
            policy("circuitBreaker: {failureRate: {window: 0s}}"),
            6,
            42,
            "window cannot be zero",
            "for instance 250ms, 10s or 1m30s",
        ),
        (
            policy("circuitBreaker: {failureRate: {minimumRequests: 0}}"),
            6,
            51,
            "\"minimumRequests\" is out of range: 0",
            "at least 1",
        ),
        (
            policy("circuitBreaker: {failureRate: {percent: 0}}"),
            6,
            43,
            "a rate of 0 % is reached by every request, and would keep the circuit open",
            "give more than 0; 100 with a large minimumRequests hardly ever opens it",
        ),
        (
            policy("circuitBreaker: {slowCalls: {threshold: 1s, percent: 0}}"),
            6,
            56,
            "a share of 0 % is reached by every request, and would keep the circuit open",
            "give more than 0; 100 with a large minimumRequests hardly ever opens it",
        ),
        (
            policy("circuitBreaker: {halfOpenRequests: 101}"),
            6,
            38,
            "\"halfOpenRequests\" is out of range: 101",
            "between 1 and 100",
        ),
        (
            policy("rateLimit: [{requests: 1, per: 1s, onBreakerOpen: {recoverPercentPerMinute: 0}}]"),
            6,
            79,
            "at 0 % per minute the limit would stay lowered for ever",
            "give more than 0; 100 is back to all of it within a minute",
        ),
        (
            policy("rateLimit: [{requests: 1, per: 90000h, burst: 4}]"),
            6,
            34,
            "at this rate the burst takes more than 36 years to fill up",
            "make per or burst smaller, or requests larger",
        ),
        (
            policy("circuitBreaker: {baseEjectionTime: 10s, maxEjectionTime: 5s}"),
            6,
            60,
            "maxEjectionTime is shorter than baseEjectionTime",
            "make it at least as long",
        ),
        (
            policy("retry: {perTryTimeout: 3s}\n  timeouts: {request: 2s}"),
            6,
            26,
            "perTryTimeout is longer than timeouts.request, which is 2s",
            &format!("{longer} leave it out"),
        ),
        (
            policy("hedge: {after: 2s1ms}\n  timeouts: {request: 2s}"),
            6,
            18,
            "hedge.after is longer than timeouts.request, which is 2s",
            &format!("{longer} use a quantile such as p95"),
        ),
    ]);
}

const ROUTE_BREAKER: &str = "\
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: y}
spec:
  targetRefs: [{kind: HTTPRoute, name: r}]
  circuitBreaker: {}
---
apiVersion: weft.dev/v1alpha1
kind: Service
metadata: {name: other}
spec: {ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{name: edge}]
  rules:
  - backendRefs: [{name: cart, port: 80}, {name: other, port: 80}]
  - matches: [{path: {value: /x}}]
    backendRefs: [{name: cart, port: 80}]
";

fn warnings(text: &str) -> Vec<String> {
    let checked = load_str("test.yaml", text, Options::default()).unwrap_or_else(|problems| panic!("{problems}"));
    let warned = checked.warnings.iter().filter(|warning| warning.code == "contradictory");
    let hint = |warning: &Diagnostic| warning.hint.clone().unwrap_or_default();
    warned
        .map(|warning| format!("{}:{}: {} ({})", warning.line, warning.column, warning.message, hint(warning)))
        .collect()
}

#[test]
fn a_breaker_that_cannot_count_is_told() {
    assert_eq!(warnings(&format!("{BASE}{ROUTE_BREAKER}")), Vec::<String>::new(), "the service has none");
    let own = BASE.replace("name: cart}]}\n---", "name: cart}], circuitBreaker: {}}\n---");
    assert_ne!(own, BASE);
    let line = BASE.lines().count() + 6;
    let hint = "TrafficPolicy cart at test.yaml:17 decides for it; merge the two";
    let expected = format!("{line}:19: circuitBreaker has no effect on Service cart ({hint})");
    assert_eq!(warnings(&format!("{own}{ROUTE_BREAKER}")), [expected], "once, and not for the other service");
}

#[test]
fn of_two_routes_breakers_the_first_one_counts() {
    let second = ROUTE_BREAKER.replace("name: r}", "name: q}").replace("{name: y}", "{name: z}");
    let second: Vec<&str> = second.split("---\n").filter(|document| !document.contains("kind: Service\nm")).collect();
    let text = format!("{BASE}{ROUTE_BREAKER}---\n{}", second.join("---\n"));
    let line = BASE.lines().count() + 6;
    let told = |service: &str| {
        let at = line + ROUTE_BREAKER.lines().count() - 2;
        format!(
            "{line}:19: circuitBreaker has no effect on Service {service} (TrafficPolicy z at test.yaml:{at} decides for it; merge the two)"
        )
    };
    assert_eq!(warnings(&text), [told("cart"), told("other")]);
}

#[test]
fn pointless_fields_are_told() {
    let slow =
        policy("circuitBreaker: {slowCalls: {threshold: 3s}}\n  timeouts: {request: 2s}").replace("cart2", "cart");
    let budget = policy("retryBudget: {percent: 0, minPerSecond: 0}").replace("cart2", "cart");
    let rare = policy("retryBudget: {minPerSecond: 1, ttl: 500ms}").replace("cart2", "cart");
    let brief = policy("retryBudget: {ttl: 99ms}").replace("cart2", "cart");
    let base: String =
        BASE.split("---\n").filter(|document| !document.contains("TrafficPolicy")).collect::<Vec<_>>().join("---\n");
    let above = base.lines().count();
    for (document, column, expected) in [
        (
            slow,
            43,
            "no call takes as long as this threshold: timeouts.request is 2s (make it shorter, or raise timeouts.request)",
        ),
        (
            rare,
            16,
            "1 per second come to less than one retry in a ttl of 500ms, and allow none (make ttl 1s or longer, or minPerSecond larger)",
        ),
        (
            brief,
            16,
            "10 per second come to less than one retry in a ttl of 99ms, and allow none (make ttl 100ms or longer, or minPerSecond larger)",
        ),
        (
            budget,
            16,
            "a budget of 0 % and 0 per second allows no retry (raise percent or minPerSecond, or leave out retry)",
        ),
    ] {
        assert_eq!(warnings(&format!("{base}{document}")), [format!("{}:{column}: {expected}", above + 6)]);
    }
}

#[test]
fn a_limit_by_identity_admits_everybody_so_far() {
    let document = "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: x}\nspec:\n  targetRefs: [{kind: Service, name: a}]\n  rateLimit:\n";
    for (key, warned) in
        [("identity", true), ("{identity: {}}", true), ("sourceIP", false), ("{header: x-user}", false)]
    {
        let text = format!("{document}  - {{requests: 1, per: 1s, key: {key}}}\n");
        let checked = load_str("test.yaml", &text, Options { require_refs: false }).unwrap();
        let found: Vec<_> =
            checked.warnings.iter().map(|warning| (warning.code, warning.line, warning.message.as_str())).collect();
        let message = "only captured connections of a Workload with a serviceAccount have an identity: this limit \
                       admits everybody else";
        assert_eq!(found, if warned { vec![("no-identity", 7, message)] } else { Vec::new() }, "{key}");
    }
}

#[test]
fn yaml_itself() {
    for (text, line, column, code, message) in [
        ("", 0, 0, "empty", "there is no document in this file"),
        ("# nothing\n---\n# here\n", 0, 0, "empty", "there is no document in this file"),
        ("[]", 1, 1, "wrong-type", "a document has to be a mapping, but this is a list"),
        ("kind: Service\nkind: Service\n", 2, 1, "duplicate-field", "field \"kind\" is written twice"),
        ("a: *b\n", 1, 4, "yaml-syntax", "this is not valid YAML: while parsing node, found unknown anchor"),
        ("a: !secret b\n", 1, 12, "yaml-syntax", "YAML tags (!name) are not supported"),
        ("{a: 1}: b\n", 1, 1, "yaml-syntax", "a mapping's key has to be text"),
        ("é: ü\nkind: 5\n", 2, 7, "wrong-type", "kind has to be text, but this is a whole number"),
    ] {
        let problems = problems(text);
        let found =
            problems.iter().find(|problem| problem.code == code).unwrap_or_else(|| panic!("{text:?}: {problems}"));
        assert_eq!((found.line, found.column, found.message.as_str()), (line, column, message), "{text:?}");
    }
}

#[test]
fn bombs_do_not_go_off() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..40 {
        text.push_str(&format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", ")));
    }
    let found = problems(&text);
    assert_eq!(found.iter().map(|problem| problem.code).collect::<Vec<_>>(), ["yaml-too-large"]);
    for text in ["[".repeat(100_000), "- ".repeat(100_000), "{a: ".repeat(100_000)] {
        let found = problems(&text);
        assert_eq!(found.len(), 1, "{found}");
    }
    // A chain of anchors is deep although each line is not.
    let mut text = String::from("a0: &a0 [x]\n");
    for i in 1..200 {
        text.push_str(&format!("a{i}: &a{i} [*a{}]\n", i - 1));
    }
    assert_eq!(problems(&text).iter().map(|problem| problem.code).collect::<Vec<_>>(), ["yaml-too-deep"]);
}

#[test]
fn a_flood_of_problems_is_cut_off() {
    let text = format!("{}spec: {{}}\n", (0..5000).map(|i| format!("x{i}: 1\n")).collect::<String>());
    let found = problems(&format!("apiVersion: weft.dev/v1alpha1\nkind: Service\nmetadata: {{name: a}}\n{text}"));
    assert_eq!(found.iter().count(), 1000);
    assert_eq!(found.len(), 5001);
    assert!(found.to_string().ends_with("… and 4001 more"), "{}", found.len());
}

#[test]
fn lists_do_not_grow_without_end() {
    let listeners: Vec<String> = (1..=65).map(|i| format!("{{name: l{i}, port: {i}, protocol: TCP}}")).collect();
    let found = problems(&gateway(&listeners.join("\n  - ")));
    assert_eq!(found.iter().next().unwrap().message, "\"listeners\" has 65 entries; 64 are the most");
    let text = ours("Service", "ports: [{port: 80}]\n  endpoints: [{address: A.b, port: 1}, {address: a.b, port: 1}]");
    let found = problems(&text);
    assert_eq!(found.iter().next().unwrap().message, "endpoint a.b port 1 is listed twice");
}

#[test]
fn a_flood_of_broken_documents_ends_soon() {
    let found = problems(&"---\na: [\n".repeat(500_000));
    assert_eq!(found.iter().count(), 1000);
}

#[test]
fn anchors_and_merge_keys_are_understood() {
    let text = ours("Service", "ports: [&p {port: 80, name: a}, {<<: *p, port: 81, name: b}]");
    let checked = load_str("a.yaml", &text, Options::default()).unwrap();
    let ports: Vec<_> = checked.config.services[0].ports.iter().map(|port| (&*port.name, port.port)).collect();
    assert_eq!(ports, [("a", 80), ("b", 81)]);
}

#[test]
fn a_list_holds_documents() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: weft.dev/v1alpha1\n  kind: Service\n  metadata: {name: a}\n  spec: {ports: [{port: 80}]}\n";
    assert_eq!(load_str("a.yaml", text, Options::default()).unwrap().config.services.len(), 1);
}

#[test]
fn what_the_api_server_adds_is_ignored() {
    let text = ours("Service", "ports: [{port: 80}]\nstatus: {a: [1]}").replace(
        "{name: x}",
        "{name: x, namespace: n, labels: {a: b}, annotations: {}, uid: u, resourceVersion: '1', generation: 1, creationTimestamp: 2026-01-01T00:00:00Z, managedFields: [{a: 1}]}",
    );
    let checked = load_str("a.yaml", &text, Options::default()).unwrap();
    assert_eq!(checked.config.services[0].key.to_string(), "n/x");
    assert_eq!(checked.warnings, []);
}

#[test]
fn problems_are_shown_with_their_source() {
    let found = problems("apiVersion: weft.dev/v1alpha1\nkind: Servic\n");
    let shown = format!("{:?}", found.report());
    for part in [
        "the configuration has 1 problem",
        "test.yaml:2:7",
        "kind: Servic",
        "did you mean \"Service\"?",
        "help: kinds:",
    ] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json[0]["line"], 2);
    assert_eq!(json[0]["column"], 7);
    assert_eq!(json[0]["file"], "test.yaml");
    assert_eq!(json[0]["code"], "unknown-kind");
}

#[test]
fn host_can_be_set_but_not_added_or_removed() {
    let route = |modifier: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec:\n  rules:\n  \
             - filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{{modifier}}}}}]\n"
        )
    };
    let check =
        |modifier: &str| weft_model::load_str("r.yaml", &route(modifier), weft_model::Options { require_refs: false });
    assert!(check("set: [{name: Host, value: x.local}]").is_ok());
    for modifier in ["add: [{name: Host, value: x.local}]", "remove: [host]"] {
        let problems = check(modifier).unwrap_err().to_string();
        assert!(problems.contains("exactly one Host"), "{modifier}: {problems}");
    }
}
