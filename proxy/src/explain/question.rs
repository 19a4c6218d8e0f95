//! What is asked of `/explain`: one request, described in a query string.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};
use percent_encoding::percent_decode_str;

use crate::{layer::target::Source, route::path::host_of, route::rewrite::Scheme};

/// A request that nobody has sent.
#[derive(Debug)]
pub struct Question {
    pub(super) scheme: Scheme,
    /// Of the URL, if it names one.
    pub(super) port: Option<u16>,
    /// Where it goes, if the URL says so by an address.
    pub(super) address: Option<SocketAddr>,
    /// Whose request it is, for keys that depend on that.
    pub(super) client: Option<IpAddr>,
    pub(super) request: Request<()>,
    pub(super) source: Source,
}

impl Question {
    /// Reads `method=GET&url=…&header=name:value&header=…&client=ADDRESS`, form-encoded. Everything but `url` may be left
    /// out; `header` may be repeated, and a `host` among them replaces the URL's, as with curl.
    ///
    /// # Errors
    /// Whatever is wrong, for the person who asked: also a host or path that every request would be refused for.
    pub fn parse(query: &str) -> Result<Self, String> {
        const KNOWN: &str = "known are method, url, header, client";
        let (mut method, mut url, mut client) = (Method::GET, None, None);
        let mut headers = HeaderMap::new();
        let mut seen = HashSet::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(|| format!("{pair}: expected name=value; {KNOWN}"))?;
            let value = value.replace('+', " ");
            let value = percent_decode_str(&value).decode_utf8().map_err(|_| format!("{name} is not UTF-8"))?;
            if name != "header" && !seen.insert(name) {
                return Err(format!("{name} is given twice"));
            }
            match name {
                "method" => {
                    method = value.parse().map_err(|_| format!("`{value}` is not a method"))?;
                }
                "url" => url = Some(value.into_owned()),
                "header" => {
                    let (name, value) = field(&value)?;
                    headers.append(name, value);
                }
                "client" => {
                    client = Some(value.parse().map_err(|_| format!("client `{value}` is not an IP address"))?);
                }
                _ => return Err(format!("unknown parameter {name}; {KNOWN}")),
            }
        }
        let url = url.ok_or("url is missing, as in /explain?method=GET&url=http%3A%2F%2Fshop.local%2Fcart")?;
        Self::new(method, &url, headers, client)
    }

    fn new(method: Method, url: &str, mut headers: HeaderMap, client: Option<IpAddr>) -> Result<Self, String> {
        let bad = |why: &dyn std::fmt::Display| format!("`{url}` is not a URL of a request: {why}");
        let Some((scheme, _)) = url.split_once("://") else {
            return Err(bad(&format_args!("it has no scheme; write http://{}", url.trim_start_matches('/'))));
        };
        let scheme = match scheme {
            scheme if scheme.eq_ignore_ascii_case("http") => Scheme::Http,
            scheme if scheme.eq_ignore_ascii_case("https") => Scheme::Https,
            other => return Err(bad(&format_args!("{other} is neither http nor https"))),
        };
        if url.contains('#') {
            return Err(bad(&"no client sends what follows a #"));
        }
        let uri: Uri = url.parse().map_err(|error| bad(&error))?;
        let authority = uri.authority().ok_or_else(|| bad(&"it has no host"))?;
        let (_, port) = host_of(authority.as_str()).map_err(|error| bad(&error))?;
        let literal = authority.host().trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        let address = literal.map(|ip| SocketAddr::new(ip.to_canonical(), port.unwrap_or(scheme.well_known_port())));
        if !headers.contains_key(header::HOST) {
            let host = HeaderValue::from_str(authority.as_str()).map_err(|error| bad(&error))?;
            headers.insert(header::HOST, host);
        }
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let mut request = Request::new(());
        *request.uri_mut() = target.parse().map_err(|error| bad(&error))?;
        *request.method_mut() = method;
        *request.headers_mut() = headers;
        let source = Source::of(&request).map_err(|refusal| refusal.to_string())?;
        source.asked(request.method()).map_err(|refusal| bad(&refusal.detail))?;
        Ok(Self { scheme, port, address, client, request, source })
    }
}

fn field(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let bad = |why: &str| format!("header `{text}`: {why}");
    let (name, value) = text.split_once(':').ok_or_else(|| bad("expected name:value"))?;
    let name = name.parse().map_err(|_| bad("this is no header name"))?;
    let value = HeaderValue::from_str(value.trim()).map_err(|_| bad("a value cannot contain control characters"))?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_request_is_read() {
        let question = Question::parse(
            "method=POST&url=https%3A%2F%2FShop.local%3A8443%2Fa%2F..%2Fcart%3Fq%3D1&header=X-User%3A+1&header=a:b:c&client=10.0.0.1",
        )
        .unwrap();
        assert_eq!((question.scheme, question.port), (Scheme::Https, Some(8443)));
        assert_eq!(question.client, Some([10, 0, 0, 1].into()));
        assert_eq!(
            (question.request.method(), question.request.headers()["x-user"].as_bytes()),
            (&Method::POST, &b"1"[..])
        );
        assert_eq!(question.request.headers()["a"], "b:c");
        let asked = question.source.asked(&Method::POST).unwrap();
        assert_eq!((asked.host(), asked.path()), ("shop.local", "/cart"));
    }

    #[test]
    fn a_host_among_the_headers_replaces_that_of_the_url() {
        let question = Question::parse("url=http://127.0.0.1:8080&header=host:shop.local").unwrap();
        let asked = question.source.asked(&Method::GET).unwrap();
        assert_eq!((asked.host(), asked.path(), question.port), ("shop.local", "/", Some(8080)));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (query, expected) in [
            ("", "url is missing"),
            ("url=http://a&url=http://b", "url is given twice"),
            ("url=http://a&ulr=b", "unknown parameter ulr; known are method, url"),
            ("url", "url: expected name=value"),
            ("url=shop.local/cart", "it has no scheme; write http://shop.local/cart"),
            ("url=ftp://a/", "ftp is neither http nor https"),
            ("url=http://", "is not a URL"),
            ("url=http:///x", "is not a URL"),
            ("url=http://a/%23x", "no client sends what follows a #"),
            ("url=http://a:99999/", "the port is not a port number"),
            ("url=http://u@a/", "the host contains user information"),
            ("url=http://a_b..c/", "empty label"),
            ("url=http://a/%252e%252e/", "the path climbs above the root"),
            ("url=http://a/b c", "is not a URL"),
            ("url=http://a/%25zz", "broken percent-encoding"),
            ("url=http://a/%FF", "url is not UTF-8"),
            ("method=G ET&url=http://a/", "`G ET` is not a method"),
            ("url=http://a/&header=x", "expected name:value"),
            ("url=http://a/&header=x y:1", "no header name"),
            ("url=http://a/&header=x:a%0Ab", "control characters"),
            ("url=http://a/&header=host:a&header=host:b", "Host is repeated"),
            ("url=http://a/&client=nobody", "not an IP address"),
        ] {
            let error = Question::parse(query).unwrap_err();
            assert!(error.contains(expected), "{query}: {error}");
        }
    }
}
