//! What a simulated worker trains: a hash in the place of weights, and of each shard a number in the place of
//! gradients, which depends on all that came before.

use bytes::Bytes;
use coordinator::Lease;

pub(crate) const SHARDS: u32 = 4;
pub(crate) const TOTAL_STEPS: u64 = 60;

/// The state after `step` steps. The same for the same step, whoever has made the steps, if each of them has summed each
/// shard once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) step: u64,
    pub(crate) hash: [u8; 32],
}

impl State {
    pub(crate) fn initial() -> State {
        State { step: 0, hash: *blake3::hash(b"initial").as_bytes() }
    }

    /// The state after `step` steps to which nothing happened.
    pub(crate) fn expected(step: u64) -> State {
        let whole = Lease { first_shard: 0, shard_count: SHARDS };
        (0..step).fold(State::initial(), |state, _| state.next(state.sum(whole)))
    }

    /// The part of the next step's sum that the holder of these shards contributes.
    pub(crate) fn sum(&self, lease: Lease) -> u64 {
        let shards = lease.first_shard..lease.first_shard + lease.shard_count;
        shards.map(|shard| self.contribution(shard)).fold(0, u64::wrapping_add)
    }

    fn contribution(&self, shard: u32) -> u64 {
        let hash = blake3::hash(&[&self.hash[..], &shard.to_le_bytes()].concat());
        u64::from_le_bytes(*hash.as_bytes().first_chunk().unwrap())
    }

    pub(crate) fn next(&self, sum: u64) -> State {
        let hash = blake3::hash(&[&self.hash[..], &sum.to_le_bytes()].concat());
        State { step: self.step + 1, hash: *hash.as_bytes() }
    }

    /// What stands in for the loss in the metrics, so that they tell of which state they are.
    pub(crate) fn loss(&self) -> f64 {
        f64::from(u32::from_le_bytes(*self.hash.first_chunk().unwrap())) / f64::from(u32::MAX)
    }

    pub(crate) fn files(&self) -> [(&'static str, Bytes); 2] {
        let model = [&self.step.to_le_bytes()[..], &self.hash].concat();
        [
            ("model.safetensors", Bytes::from(model)),
            ("progress.json", Bytes::from(format!("{{\"step\":{}}}", self.step))),
        ]
    }

    pub(crate) fn read(model: &[u8]) -> Option<State> {
        let (step, hash) = model.split_first_chunk()?;
        Some(State { step: u64::from_le_bytes(*step), hash: hash.try_into().ok()? })
    }
}
