//! Everything that a step changes.

use std::fmt;
use std::sync::Arc;

use crate::parameters::Layout;

/// Weights, running statistics, momentum and position of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Steps committed so far.
    pub step: u64,
    /// The last of them that were left out, in a row, because something in them was not finite.
    pub skipped_steps: u32,
    /// The parameters, flat, in the layout's order. The networks that are made of them on the CPU read them here; once
    /// those are gone, a step changes them in place.
    pub weights: Arc<[f32]>,
    /// Running means and variances, flat, in the layout's order.
    pub statistics: Vec<f32>,
    /// The momentum of every parameter.
    pub momentum: Vec<f32>,
}

/// BLAKE3 over a whole [`State`]: equal hashes mean equal runs, bit for bit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct StateHash(pub [u8; 32]);

impl State {
    /// The state at step 0: a function of the layout and the seed.
    pub fn initial(layout: &Layout, seed: u64) -> State {
        State {
            step: 0,
            skipped_steps: 0,
            weights: layout.initial_parameters(seed).into(),
            statistics: layout.initial_statistics(),
            momentum: vec![0.0; layout.parameter_count()],
        }
    }

    /// The hash over position, weights, statistics and momentum.
    pub fn hash(&self) -> StateHash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.step.to_le_bytes());
        for values in [&*self.weights, &self.statistics, &self.momentum] {
            hasher.update(bytemuck::cast_slice(values));
        }
        // Only where there is something to tell: the hashes of healthy runs are older than this number.
        if self.skipped_steps > 0 {
            hasher.update(&self.skipped_steps.to_le_bytes());
        }
        StateHash(hasher.finalize().into())
    }
}

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "StateHash({self})")
    }
}
