//! Trace context: what arrives in headers, and what goes on to the upstream.
//!
//! W3C Trace Context level 2 (<https://www.w3.org/TR/trace-context-2/>) first, B3 (single and multi,
//! <https://github.com/openzipkin/b3-propagation>) when there is no `traceparent`. `baggage` is nobody's business here.
//!
//! A request that is not sampled keeps its headers as they came: Weft writes no span for it, so the caller's span stays
//! the right parent, and nothing is paid.

use std::num::NonZeroU64;

use http::{HeaderMap, HeaderName, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// `trace-flags`: the caller may have recorded trace data.
const SAMPLED: u8 = 0x01;
/// `trace-flags` of level 2: the low 56 bits of the trace id are random.
const RANDOM: u8 = 0x02;

/// Most members of a `tracestate` list (W3C, 3.3.1.1).
const MAX_STATE_MEMBERS: usize = 32;
/// Longest `tracestate` that is forwarded, all its fields together, in bytes. The specification asks for at least 512.
const MAX_STATE_BYTES: usize = 4096;

/// The form in which the context came: B3 is answered with B3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// `traceparent`, or nothing at all.
    #[default]
    W3c,
    /// One `b3` header.
    B3Single,
    /// `x-b3-*` headers.
    B3Multi,
}

/// A context that arrived with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Never zero.
    pub trace_id: u128,
    /// The caller's span.
    pub parent_span: Option<NonZeroU64>,
    /// The caller's decision; `None` when it left the decision to us (B3 only).
    pub sampled: Option<bool>,
    /// Whether the caller says that the trace id is random (level 2).
    pub random: bool,
    /// Where it was found.
    pub form: Form,
}

/// What the headers said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrived {
    /// A usable context.
    Context(TraceContext),
    /// No ids, but a decision about the trace that starts here (`b3: 0`, `x-b3-sampled: 1`).
    Decision(bool, Form),
    /// Nothing, or nothing valid.
    Nothing,
}

/// Reads the context of a request. An invalid `traceparent` counts as none (the trace starts anew).
pub fn extract(headers: &HeaderMap) -> Arrived {
    if !headers.keys().any(concerns_us) {
        return Arrived::Nothing;
    }
    if let Some(value) = headers.get(TRACEPARENT) {
        let mut all = headers.get_all(TRACEPARENT).iter();
        let single = all.next().is_some() && all.next().is_none();
        return match single.then(|| parse_traceparent(value.as_bytes())).flatten() {
            Some(context) => Arrived::Context(context),
            None => Arrived::Nothing,
        };
    }
    if let Some(value) = headers.get(B3) {
        return parse_b3(value.as_bytes());
    }
    extract_b3_multi(headers)
}

/// Whether a field may hold a context. Most requests have none, and one pass is cheaper than six look-ups.
fn concerns_us(name: &HeaderName) -> bool {
    let name = name.as_str();
    name == "traceparent" || name == "b3" || name.starts_with("x-b3-")
}

/// `traceparent`: `00-<32 hex>-<16 hex>-<2 hex>`. Versions after 00 may carry more behind another `-`.
pub fn parse_traceparent(value: &[u8]) -> Option<TraceContext> {
    let value = value.trim_ascii();
    if value.len() < 55 || value[2] != b'-' || value[35] != b'-' || value[52] != b'-' {
        return None;
    }
    let version = hex(&value[..2])?;
    let more_is_allowed = version != 0 && version != 0xff;
    let ends_well = value.len() == 55 || (more_is_allowed && value[55] == b'-');
    if version == 0xff || !ends_well {
        return None;
    }
    let trace_id = hex(&value[3..35]).filter(|&id| id != 0)?;
    let parent_span = NonZeroU64::new(hex(&value[36..52])? as u64)?;
    let flags = hex(&value[53..55])? as u8;
    Some(TraceContext {
        trace_id,
        parent_span: Some(parent_span),
        sampled: Some(flags & SAMPLED != 0),
        random: flags & RANDOM != 0,
        form: Form::W3c,
    })
}

/// `b3`: `<trace>-<span>[-<sampled>[-<parent>]]`, or only a decision.
fn parse_b3(value: &[u8]) -> Arrived {
    let value = value.trim_ascii();
    if let Some(sampled) = b3_decision(value) {
        return Arrived::Decision(sampled, Form::B3Single);
    }
    let mut parts = value.split(|&b| b == b'-');
    let (trace, span, decision, parent) = (parts.next(), parts.next(), parts.next(), parts.next());
    if parts.next().is_some() || parent.is_some_and(|p| p.len() != 16 || hex(p).is_none()) {
        return Arrived::Nothing;
    }
    let sampled = match decision {
        None => None,
        Some(text) => match b3_decision(text) {
            None => return Arrived::Nothing,
            known => known,
        },
    };
    b3_context(trace, span, sampled, Form::B3Single).map_or(Arrived::Nothing, Arrived::Context)
}

fn extract_b3_multi(headers: &HeaderMap) -> Arrived {
    let get = |name| headers.get(name).map(HeaderValue::as_bytes);
    let sampled = match (get(B3_FLAGS), get(B3_SAMPLED)) {
        (Some(b"1"), _) => Some(true),
        (_, Some(b"1" | b"true")) => Some(true),
        (_, Some(b"0" | b"false")) => Some(false),
        _ => None,
    };
    match (b3_context(get(B3_TRACE), get(B3_SPAN), sampled, Form::B3Multi), sampled) {
        (Some(context), _) => Arrived::Context(context),
        (None, Some(sampled)) => Arrived::Decision(sampled, Form::B3Multi),
        (None, None) => Arrived::Nothing,
    }
}

fn b3_decision(text: &[u8]) -> Option<bool> {
    match text {
        b"1" | b"d" => Some(true),
        b"0" => Some(false),
        _ => None,
    }
}

/// B3 ids: 16 or 32 digits for the trace, 16 for the span, lower case.
fn b3_context(trace: Option<&[u8]>, span: Option<&[u8]>, sampled: Option<bool>, form: Form) -> Option<TraceContext> {
    let (trace, span) = (trace?, span?);
    if !matches!(trace.len(), 16 | 32) || span.len() != 16 {
        return None;
    }
    let trace_id = hex(trace).filter(|&id| id != 0)?;
    let parent_span = NonZeroU64::new(hex(span)? as u64)?;
    Some(TraceContext { trace_id, parent_span: Some(parent_span), sampled, random: false, form })
}

/// At most 32 lower-case hexadecimal digits.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0u128, |value, &digit| {
        let nibble = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some((value << 4) | u128::from(nibble))
    })
}

/// Tracing of one request: what was decided at its start. Plain data, no allocation.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trace {
    /// 0: there is no trace.
    pub trace_id: u128,
    /// The caller's span, if it sent one.
    pub parent_span: Option<NonZeroU64>,
    /// Our SERVER span; 0 unless sampled.
    pub span_id: u64,
    /// Whether spans are recorded.
    pub sampled: bool,
    random: bool,
    /// A trace that the caller did not know: `tracestate` of an invalid context must not go on.
    fresh: bool,
    form: Form,
}

impl Trace {
    /// Nothing is traced, nothing is written.
    pub const OFF: Self = Self {
        trace_id: 0,
        parent_span: None,
        span_id: 0,
        sampled: false,
        random: false,
        fresh: false,
        form: Form::W3c,
    };

    /// Decides about a request: the caller's decision if there is one, else the sampler's.
    pub fn start(headers: &HeaderMap, sampler: &super::sampler::Sampler, rng: &mut fastrand::Rng) -> Self {
        let arrived = extract(headers);
        let (context, decision, form) = match arrived {
            Arrived::Context(context) => (Some(context), context.sampled, context.form),
            Arrived::Decision(sampled, form) => (None, Some(sampled), form),
            Arrived::Nothing if sampler.is_never() => return Self::OFF,
            Arrived::Nothing => (None, None, Form::W3c),
        };
        let trace_id = match context {
            Some(context) => context.trace_id,
            None => rng.u128(1..),
        };
        let sampled = decision.unwrap_or_else(|| sampler.decide(trace_id));
        if !sampled && context.is_none() {
            return Self::OFF;
        }
        Self {
            trace_id,
            parent_span: context.and_then(|context| context.parent_span),
            span_id: if sampled { new_span_id(rng) } else { 0 },
            sampled,
            random: context.is_none_or(|context| context.random),
            fresh: context.is_none(),
            form,
        }
    }

    /// The arriving trace id alone, for the access log of a node that does not trace.
    pub fn pass_through(headers: &HeaderMap) -> Self {
        match extract(headers) {
            Arrived::Context(context) => {
                Self { trace_id: context.trace_id, parent_span: context.parent_span, form: context.form, ..Self::OFF }
            }
            _ => Self::OFF,
        }
    }

    /// Makes `span_id` (the attempt's CLIENT span) the parent of what the upstream does. Changes nothing unless sampled.
    pub fn inject(&self, headers: &mut HeaderMap, span_id: u64) {
        if !self.sampled {
            return;
        }
        let flags = SAMPLED | if self.random { RANDOM } else { 0 };
        if self.fresh {
            headers.remove(TRACESTATE);
        } else {
            check_tracestate(headers);
        }
        inject(headers, self.trace_id, span_id, flags);
        match self.form {
            Form::W3c => {}
            Form::B3Single => set(headers, B3, &b3_single(self.trace_id, span_id)),
            Form::B3Multi => {
                set(headers, B3_TRACE, &digits::<32>(self.trace_id));
                set(headers, B3_SPAN, &digits::<16>(u128::from(span_id)));
                headers.remove(B3_PARENT);
                if !headers.contains_key(B3_FLAGS) {
                    headers.insert(B3_SAMPLED, HeaderValue::from_static("1"));
                }
            }
        }
    }
}

/// A span id: random, never 0.
pub fn new_span_id(rng: &mut fastrand::Rng) -> u64 {
    rng.u64(1..)
}

/// Writes `traceparent`: one allocation of 55 bytes. Whatever version arrived, version 00 goes on.
pub fn inject(headers: &mut HeaderMap, trace_id: u128, span_id: u64, flags: u8) {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    write_digits(&mut text[3..35], trace_id);
    write_digits(&mut text[36..52], u128::from(span_id));
    write_digits(&mut text[53..55], u128::from(flags));
    set(headers, TRACEPARENT, &text);
}

fn b3_single(trace_id: u128, span_id: u64) -> [u8; 51] {
    let mut text = [b'-'; 51];
    write_digits(&mut text[..32], trace_id);
    write_digits(&mut text[33..49], u128::from(span_id));
    text[50] = b'1';
    text
}

fn set(headers: &mut HeaderMap, name: HeaderName, text: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(text) {
        headers.insert(name, value);
    }
}

/// `value` in lower-case hexadecimal digits, as many as there is room for.
pub(crate) fn digits<const N: usize>(value: u128) -> [u8; N] {
    let mut text = [b'0'; N];
    write_digits(&mut text, value);
    text
}

fn write_digits(out: &mut [u8], mut value: u128) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 0xf) as usize];
        value >>= 4;
    }
}

/// Drops a `tracestate` that is too long, has too many members, or is not a list of `key=value`.
fn check_tracestate(headers: &mut HeaderMap) {
    if !headers.contains_key(TRACESTATE) {
        return;
    }
    let (mut members, mut bytes, mut valid) = (0, 0, true);
    for value in headers.get_all(TRACESTATE) {
        bytes += value.len();
        for member in value.as_bytes().split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|m| !m.is_empty()) {
            members += 1;
            valid &= is_state_member(member);
        }
    }
    if !valid || members > MAX_STATE_MEMBERS || bytes > MAX_STATE_BYTES {
        headers.remove(TRACESTATE);
    }
}

/// One list member of `tracestate`, by the grammar of level 2, section 3.3.1.3.
fn is_state_member(member: &[u8]) -> bool {
    let Some(equals) = memchr::memchr(b'=', member) else { return false };
    let (key, value) = (&member[..equals], &member[equals + 1..]);
    let key_ok = (1..=256).contains(&key.len())
        && matches!(key[0], b'a'..=b'z' | b'0'..=b'9')
        && key.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/' | b'@'));
    let value_ok = (1..=256).contains(&value.len()) && value.iter().all(|b| matches!(b, 0x20..=0x7e) && *b != b'=');
    key_ok && value_ok
}

#[cfg(test)]
mod tests;
