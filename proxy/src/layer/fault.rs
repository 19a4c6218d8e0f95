//! Fault injection: waits for, and then refuses, a share of a route's requests, to see how their senders take it.
//! No upstream is touched, and no breaker hears of it.

use std::time::Duration;

use fastrand::Rng;
use http::{HeaderMap, StatusCode};
use weft_model::config::{self, FaultAbort};

use crate::{
    error::{Abort, Refusal},
    route::{
        RouteError,
        condition::{Compiler, HeaderCondition},
    },
};

/// `fault` of a policy, ready to use.
#[derive(Debug)]
pub struct Fault {
    delay: Option<(Duration, Share)>,
    abort: Option<(Abort, Share)>,
    header: Option<HeaderCondition>,
}

/// A share of all requests, as a bound on a random number.
#[derive(Debug, Clone, Copy)]
struct Share(f64);

impl Share {
    fn holds(self, rng: &mut Rng) -> bool {
        // Below 1, so that 100 % holds always and 0 % never.
        rng.f64() < self.0
    }
}

impl Fault {
    /// Compiles `fault`.
    ///
    /// # Errors
    /// When its header's name or expression is unusable.
    pub fn new(fault: &config::Fault) -> Result<Self, RouteError> {
        let share = |percent: f64| Share(percent / 100.0);
        let abort = |abort: FaultAbort| match abort {
            FaultAbort::Status(status) => {
                Abort::Status(StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE))
            }
            FaultAbort::Grpc(status) => Abort::Grpc(u8::try_from(status).unwrap_or(2)),
        };
        let header = fault.header.as_ref().map(|header| HeaderCondition::new(header, &mut Compiler::default()));
        Ok(Self {
            delay: fault.delay.map(|(delay, percent)| (delay, share(percent))),
            abort: fault.abort.map(|(status, percent)| (abort(status), share(percent))),
            header: header.transpose()?,
        })
    }

    /// What happens to a request: first the wait, then the refusal ([`Refusal::fault`]). Each is drawn by itself.
    pub fn decide(&self, headers: &HeaderMap, rng: &mut Rng) -> (Option<Duration>, Option<Refusal>) {
        if !self.applies(headers) {
            return (None, None);
        }
        let delay = self.delay.filter(|(_, share)| share.holds(rng)).map(|(delay, _)| delay);
        let abort = self.abort.filter(|(_, share)| share.holds(rng)).map(|(status, _)| Refusal::fault(status));
        (delay, abort)
    }

    /// Whether a request has the header that the fault is for.
    pub fn applies(&self, headers: &HeaderMap) -> bool {
        self.header.as_ref().is_none_or(|header| header.holds(headers))
    }

    /// The refusal of a request of which no other outcome is possible.
    pub fn certain(&self, headers: &HeaderMap) -> Option<Refusal> {
        let (status, _) = self.abort.filter(|(_, share)| share.0 >= 1.0)?;
        self.applies(headers).then(|| Refusal::fault(status))
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use http::HeaderValue;
    use proptest::prelude::*;
    use weft_model::config::{NamedMatch, ValueMatch};

    use super::*;
    use crate::error::Reason;

    const DELAY: Duration = Duration::from_millis(100);

    fn fault(delay: Option<f64>, abort: Option<f64>, header: Option<ValueMatch>) -> Fault {
        Fault::new(&config::Fault {
            delay: delay.map(|percent| (DELAY, percent)),
            abort: abort.map(|percent| (FaultAbort::Status(418), percent)),
            header: header.map(|value| NamedMatch { name: "x-fault".into(), value }),
        })
        .unwrap()
    }

    fn headers(value: Option<&'static str>) -> HeaderMap {
        value.map(|value| ("x-fault".parse().unwrap(), HeaderValue::from_static(value))).into_iter().collect()
    }

    #[test]
    fn only_requests_with_the_header_are_touched() {
        let exact = || Some(ValueMatch::Exact("yes".into()));
        let regex = || Some(ValueMatch::Regex("y.*".into()));
        let mut rng = Rng::with_seed(1);
        for (gate, value, touched) in [
            (None, None, true),
            (exact(), None, false),
            (exact(), Some("yes"), true),
            (exact(), Some("yes!"), false),
            (regex(), Some("yes!"), true),
            (regex(), Some("oh yes"), false),
        ] {
            let (delay, abort) = fault(Some(100.0), Some(100.0), gate).decide(&headers(value), &mut rng);
            assert_eq!((delay.is_some(), abort.is_some()), (touched, touched), "{value:?}");
        }
    }

    #[test]
    fn only_all_is_certain() {
        let exact = Some(ValueMatch::Exact("yes".into()));
        for (percent, gate, value, certain) in [
            (Some(100.0), None, None, true),
            (Some(99.9), None, None, false),
            (None, None, None, false),
            (Some(100.0), exact.clone(), Some("no"), false),
            (Some(100.0), exact, Some("yes"), true),
        ] {
            assert_eq!(fault(None, percent, gate).certain(&headers(value)).is_some(), certain, "{percent:?} {value:?}");
        }
    }

    #[test]
    fn an_abort_has_the_status_that_was_configured() {
        let table =
            [(FaultAbort::Status(503), 503, 14), (FaultAbort::Status(418), 418, 2), (FaultAbort::Grpc(8), 429, 8)];
        for (abort, http, grpc) in table {
            let fault = Fault::new(&config::Fault { delay: None, abort: Some((abort, 100.0)), header: None }).unwrap();
            let (delay, refusal) = fault.decide(&HeaderMap::new(), &mut Rng::with_seed(1));
            let refusal = refusal.unwrap();
            assert_eq!((delay, refusal.reason), (None, Reason::FaultInjected));
            assert_eq!((refusal.http_status().as_u16(), refusal.grpc_status()), (http, grpc));
        }
    }

    #[test]
    fn a_bad_expression_is_an_error() {
        let header = NamedMatch { name: "a".into(), value: ValueMatch::Regex("(".into()) };
        assert!(Fault::new(&config::Fault { delay: None, abort: None, header: Some(header) }).is_err());
    }

    proptest! {
        #[test]
        fn each_share_is_its_own(delay in 0.0f64..=100.0, abort in 0.0f64..=100.0, seed: u64) {
            let (fault, none) = (fault(Some(delay), Some(abort), None), HeaderMap::new());
            let mut rng = Rng::with_seed(seed);
            let drawn: Vec<_> = (0..2_000).map(|_| fault.decide(&none, &mut rng)).collect();
            let share = |count: usize| count as f64 / 20.0;
            let delayed = share(drawn.iter().filter(|(delay, _)| delay.is_some()).count());
            let aborted = share(drawn.iter().filter(|(_, abort)| abort.is_some()).count());
            let both = share(drawn.iter().filter(|(delay, abort)| delay.is_some() && abort.is_some()).count());
            prop_assert!((delayed - delay).abs() < 7.0 && (aborted - abort).abs() < 7.0, "{delayed} {aborted}");
            prop_assert!((both - delay * abort / 100.0).abs() < 7.0, "drawn independently: {both}");
            prop_assert!(delay > 0.0 || delayed == 0.0);
            prop_assert!(delay < 100.0 || delayed == 100.0);
        }
    }
}
