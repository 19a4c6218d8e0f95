//! Random: an endpoint drawn in proportion to its weight. Every other algorithm that is not bound to a key starts from
//! such a draw, and falls back to the scan when luck runs out.

use fastrand::Rng;

use super::{Pool, Query};

/// How many draws may hit an endpoint that is not wanted before all are looked at. With half of the endpoints down,
/// one pick in 65,536 gets that far.
const TRIES: u32 = 16;

/// Draws a position in `pool` among those that `query` accepts; None if it accepts none.
#[inline]
pub(crate) fn draw(pool: &Pool, query: &Query<'_>, rng: &mut Rng) -> Option<u32> {
    match pool.sampler.len() {
        0 => return None,
        1 => return pool.endpoint(query, 0).filter(|only| query.wants(only)).map(|_| 0),
        _ => {}
    }
    let mut cold = None;
    for _ in 0..TRIES {
        let position = pool.sampler.draw(rng);
        let Some(endpoint) = pool.endpoint(query, position) else { continue };
        if query.wants(endpoint) {
            if query.warm(endpoint, rng) {
                return Some(position);
            }
            cold.get_or_insert(position);
        }
    }
    // When all are starting slowly, none has to give way to another.
    cold.or_else(|| scan(pool, query, rng))
}

/// Looks at all endpoints: the same distribution, in linear time.
fn scan(pool: &Pool, query: &Query<'_>, rng: &mut Rng) -> Option<u32> {
    let mut total = 0_u64;
    let mut chosen = None;
    for position in 0..pool.sampler.len() {
        if pool.endpoint(query, position).is_some_and(|endpoint| query.wants(endpoint)) {
            // Reservoir sampling: the one seen last replaces the others with probability weight / total.
            let weight = u64::from(pool.sampler.weight(position));
            total += weight;
            if rng.u64(..total.max(1)) < weight {
                chosen = Some(position);
            }
        }
    }
    chosen
}
