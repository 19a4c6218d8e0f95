//! Drawing at random in proportion to weights, in constant time.

use fastrand::Rng;

use crate::endpoint::FULL_WEIGHT;

/// Draws positions `0..len`. Equal weights take the cheap way, others an alias table: A. J. Walker, "An Efficient Method
/// for Generating Discrete Random Variables with General Distributions" (1977), built as in M. D. Vose (1991).
#[derive(Debug)]
pub(crate) enum Sampler {
    /// All alike.
    Equal { len: u32, weight: u32 },
    /// Each has its own.
    Weighted(Box<Weighted>),
}

/// The state of [`Sampler::Weighted`].
#[derive(Debug)]
pub(crate) struct Weighted {
    weights: Box<[u32]>,
    least: u32,
    total: u64,
    cells: Box<[Cell]>,
}

/// Below `threshold` (of 2^32) the cell stands for its own position, otherwise for `alias`.
#[derive(Debug, Clone, Copy)]
struct Cell {
    threshold: u32,
    alias: u32,
}

impl Sampler {
    /// Every weight must be positive; [`super::Pool`] leaves the others out.
    pub(crate) fn new(weights: &[u32]) -> Self {
        let equal = weights.windows(2).all(|pair| pair[0] == pair[1]);
        if equal {
            return Self::Equal { len: weights.len() as u32, weight: weights.first().copied().unwrap_or(1) };
        }
        Self::Weighted(Box::new(Weighted {
            weights: weights.into(),
            least: weights.iter().copied().min().unwrap_or(1).max(1),
            total: weights.iter().map(|&w| u64::from(w)).sum(),
            cells: alias_table(weights),
        }))
    }

    pub(crate) fn len(&self) -> u32 {
        match self {
            Self::Equal { len, .. } => *len,
            Self::Weighted(weighted) => weighted.weights.len() as u32,
        }
    }

    /// Draws one position, in proportion to the weights. There must be at least one.
    #[inline]
    pub(crate) fn draw(&self, rng: &mut Rng) -> u32 {
        match self {
            Self::Equal { len, .. } => rng.u32(..(*len).max(1)),
            Self::Weighted(weighted) => weighted.draw(rng),
        }
    }

    /// Draws one that is not `position`; None if it had no luck.
    #[inline]
    pub(crate) fn draw_other(&self, position: u32, rng: &mut Rng) -> Option<u32> {
        match self {
            Self::Equal { len, .. } => {
                let other = rng.u32(..len.checked_sub(1).filter(|&others| others > 0)?);
                Some(other + u32::from(other >= position))
            }
            Self::Weighted(weighted) => Some(weighted.draw(rng)).filter(|&other| other != position),
        }
    }

    pub(crate) fn weight(&self, position: u32) -> u32 {
        match self {
            Self::Equal { weight, .. } => *weight,
            Self::Weighted(weighted) => weighted.weights.get(position as usize).copied().unwrap_or(0),
        }
    }

    /// The load of one unit of weight. An endpoint of weight *w* is treated like *w* / *least weight* equal endpoints
    /// that share its `load`; this is the load of one of them, drawn at random: 3 requests on 2 units are 1 or 2.
    ///
    /// Dividing by the weight instead would starve light endpoints while there is little in flight, and not dividing
    /// would overload them.
    #[inline]
    pub(crate) fn unit_load(&self, position: u32, load: u32, rng: &mut Rng) -> u32 {
        match self {
            Self::Equal { .. } => load,
            Self::Weighted(weighted) => {
                let weight = u64::from(self.weight(position).max(1));
                let units = u64::from(load) * u64::from(weighted.least);
                (units / weight) as u32 + u32::from(rng.u64(..weight) < units % weight)
            }
        }
    }

    /// Whether a rival that is slightly better may take over. Since the rival is never the first one again, heavy
    /// endpoints meet rivals more often than they are one; accepting fewer of them keeps the shares (the acceptance rule
    /// of Metropolis and Hastings).
    ///
    /// `percents` is how much of their weights counts now; that of all others is taken to count in full.
    #[inline]
    pub(crate) fn yields(&self, (mine, rival): (u32, u32), percents: (u32, u32), rng: &mut Rng) -> bool {
        let total = match self {
            Self::Equal { .. } if percents.0 == percents.1 => return true,
            Self::Equal { len, weight } => u64::from(*len) * u64::from(*weight),
            Self::Weighted(weighted) => weighted.total,
        };
        let (weight, rival_weight) = (u64::from(self.weight(mine)), u64::from(self.weight(rival)));
        let missing = |percent: u32| u64::from(FULL_WEIGHT.saturating_sub(percent));
        let full = u64::from(FULL_WEIGHT);
        let others = ((total - weight) * full).saturating_sub(rival_weight * missing(percents.1));
        let rivals_others = ((total - rival_weight) * full).saturating_sub(weight * missing(percents.0)).max(1);
        others >= rivals_others || rng.u64(..rivals_others) < others
    }
}

impl Weighted {
    #[inline]
    fn draw(&self, rng: &mut Rng) -> u32 {
        let random = rng.u64(..);
        // The high half chooses the cell, the low half one of its two positions.
        let position = (((random >> 32) * self.cells.len() as u64) >> 32) as u32;
        match self.cells.get(position as usize) {
            Some(cell) if random as u32 >= cell.threshold => cell.alias,
            _ => position,
        }
    }
}

/// The loads of two endpoints of which one has its weight lowered more than the other (`percents`): as in
/// [`Sampler::unit_load`], the other one is treated like several that share its load, and this is the load of one of
/// them.
#[cold]
pub(crate) fn lowered_loads(loads: (u32, u32), percents: (u32, u32), rng: &mut Rng) -> (u32, u32) {
    let least = u64::from(percents.0.min(percents.1));
    let mut unit = |load: u32, percent: u32| {
        let (units, percent) = (u64::from(load) * least, u64::from(percent.max(1)));
        (units / percent) as u32 + u32::from(rng.u64(..percent) < units % percent)
    };
    (unit(loads.0, percents.0), unit(loads.1, percents.1))
}

fn alias_table(weights: &[u32]) -> Box<[Cell]> {
    let n = weights.len() as u64;
    let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
    // In units of total / n: `total` is exactly one cell.
    let mut left: Vec<u64> = weights.iter().map(|&w| u64::from(w) * n).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..weights.len()).partition(|&i| left[i] < total);
    let mut cells: Vec<Cell> = (0..weights.len()).map(|i| Cell { threshold: u32::MAX, alias: i as u32 }).collect();
    while let (Some(poor), Some(&rich)) = (small.pop(), large.last()) {
        let threshold = (u128::from(left[poor]) << 32) / u128::from(total.max(1));
        cells[poor] = Cell { threshold: threshold.min(u128::from(u32::MAX)) as u32, alias: rich as u32 };
        left[rich] -= total - left[poor];
        if left[rich] < total {
            large.pop();
            small.push(rich);
        }
    }
    cells.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Rng;
    use super::*;

    #[test]
    fn equal_weights_need_no_table() {
        for weights in [&[][..], &[7], &[3, 3, 3]] {
            assert!(matches!(Sampler::new(weights), Sampler::Equal { len, .. } if len as usize == weights.len()));
        }
        assert!(matches!(Sampler::new(&[1, 2]), Sampler::Weighted(_)));
    }

    #[test]
    fn units_share_the_load() {
        let mut rng = Rng::with_seed(1);
        let sampler = Sampler::new(&[1, 2]);
        let loads: Vec<u32> = (0..1000).map(|_| sampler.unit_load(1, 3, &mut rng)).collect();
        assert!(loads.iter().all(|&load| load == 1 || load == 2));
        let sum: u32 = loads.iter().sum();
        assert!((1450..1550).contains(&sum), "{sum}");
        assert_eq!(sampler.unit_load(0, 3, &mut rng), 3);
    }

    proptest! {
        #[test]
        fn draws_follow_weights(weights in prop::collection::vec(1_u32..1000, 1..20), seed in any::<u64>()) {
            let sampler = Sampler::new(&weights);
            let mut rng = Rng::with_seed(seed);
            let mut counts = vec![0_u32; weights.len()];
            let draws = 50_000;
            for _ in 0..draws {
                counts[sampler.draw(&mut rng) as usize] += 1;
            }
            let total: u32 = weights.iter().sum();
            for (weight, count) in weights.iter().zip(&counts) {
                let (expect, got) = (f64::from(*weight) / f64::from(total), f64::from(*count) / f64::from(draws));
                prop_assert!((expect - got).abs() < 0.015, "{:?} gave {:?}", weights, counts);
            }
        }

        #[test]
        fn extreme_weights_do_not_overflow(weights in prop::collection::vec(1_u32..=u32::MAX, 1..2000)) {
            let sampler = Sampler::new(&weights);
            let mut rng = Rng::with_seed(1);
            for _ in 0..10 {
                let drawn = sampler.draw(&mut rng);
                prop_assert!((drawn as usize) < weights.len());
                sampler.unit_load(drawn, u32::MAX, &mut rng);
                if let Some(other) = sampler.draw_other(drawn, &mut rng) {
                    prop_assert!(other != drawn);
                    sampler.yields((drawn, other), (1, 100), &mut rng);
                }
            }
        }
    }
}
