//! RequestMirror: a copy of a share of the requests. Whatever becomes of it, the client's own request is not touched.

use std::{rc::Rc, sync::Arc, time::Duration};

use http::{
    HeaderValue, Request, Uri, Version, header,
    request::Parts,
    uri::{Authority, Scheme},
};
use http_body_util::BodyExt;

use crate::{
    balance::Pick,
    body::RequestBody,
    conn::Conn,
    layer::access,
    snapshot::{Rule, Upstream},
    upstream::send::{self, Slot},
    worker::Worker,
};

/// Copies under way on one worker; beyond this, requests are not copied.
const MAX_COPIES: u32 = 256;
/// A copy may take this long, response included.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Sends the copies that the rule asks for; `body` is teed into them.
pub fn copies(conn: &Rc<Conn>, rule: &Rule, parts: &Parts, body: &mut RequestBody) {
    for mirror in &rule.mirrors {
        let chosen = conn.worker.rng.borrow_mut().u32(0..mirror.denominator) < mirror.numerator;
        let service = &mirror.upstream.service;
        let allowed = access::check(service, conn.peer.ip(), conn.captured.as_deref()).is_ok();
        if !chosen || !allowed || conn.worker.copies.get() >= MAX_COPIES {
            continue;
        }
        let mut request = Request::new(body.tee());
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = parts.uri.clone();
        *request.version_mut() = parts.version;
        *request.headers_mut() = parts.headers.clone();
        if !fit(&mut request, &mirror.upstream) {
            continue;
        }
        tokio::task::spawn_local(copy(conn.worker.clone(), mirror.upstream.clone(), request));
    }
}

/// The request was made ready for the rule's own backend, which may speak another version of HTTP. False when there is no
/// way to say the same to the mirror.
fn fit(request: &mut Request<RequestBody>, upstream: &Upstream) -> bool {
    let h2 = upstream.is_h2();
    let mut parts = request.uri().clone().into_parts();
    match (h2, parts.authority.take()) {
        (true, None) => {
            let host = request.headers_mut().remove(header::HOST);
            parts.authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
            parts.scheme = Some(if upstream.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP });
            *request.version_mut() = Version::HTTP_2;
        }
        (true, authority) => parts.authority = authority,
        (false, Some(authority)) => {
            let Ok(host) = HeaderValue::from_str(authority.as_str()) else { return false };
            request.headers_mut().insert(header::HOST, host);
            parts.scheme = None;
            *request.version_mut() = Version::HTTP_11;
        }
        (false, None) => return true,
    }
    let fitted = Uri::from_parts(parts);
    fitted.map(|uri| *request.uri_mut() = uri).is_ok()
}

/// Counts a copy under way.
struct Counted<'w>(&'w Worker);

impl<'w> Counted<'w> {
    fn new(worker: &'w Worker) -> Self {
        worker.copies.set(worker.copies.get() + 1);
        Self(worker)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.copies.set(self.0.copies.get() - 1);
    }
}

async fn copy(worker: Rc<Worker>, upstream: Arc<Upstream>, request: Request<RequestBody>) {
    let _counted = Counted::new(&worker);
    let now = worker.clock.now();
    let picked = upstream.pick_for_copy(worker.random(), now, &mut worker.rng.borrow_mut());
    let Ok(Pick { endpoint, .. }) = picked else { return };
    let exchange = async {
        let request = Slot::impatient(request);
        let sent = send::send(&worker, &upstream, &endpoint, &request, None).await;
        if let Ok((response, mut lease)) = sent {
            let mut body = response.into_body();
            while let Some(Ok(_)) = body.frame().await {}
            lease.finish();
        }
    };
    // Neither its answer nor its failure is anybody's business.
    let _ = tokio::time::timeout(TIMEOUT, exchange).await;
}
