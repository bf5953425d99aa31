//! How fast each worker is: in images, in the network's arithmetic, and in what it sends to the others.

use coordinator::{Lease, WorkerSight};
use serde::{Deserialize, Serialize};

use crate::status::Frame;

/// What rates are measured by, beside the recipe.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Yardsticks {
    /// Bytes of all that the workers add up together in a step, each of it once; `None` if that is not known.
    pub all_reduce_bytes: Option<f64>,
    /// What the device of each worker computes at most, in floating-point operations a second; `None` if nobody has said.
    pub peak_flops_per_second: Option<f64>,
}

/// How fast a worker was in its last steps, on average.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Images of its shards over the time of a step; each gives two views.
    pub images_per_second: f64,
    /// What its network has to compute for them ([`recipe::Recipe::flops_per_image`]) over the time of a step.
    pub model_flops_per_second: f64,
    /// The share that these are of what its device computes at most, from 0 to 1, if somebody has said what that is.
    pub peak_share: Option<f64>,
    /// Bytes that it sends to the others in a step, or that they read of its memory; none if it is alone.
    pub sent_bytes_per_step: Option<f64>,
    /// Those over the time that it spends in all-reduces, waiting for the slowest included.
    pub sent_bytes_per_second: Option<f64>,
}

impl Rates {
    /// Those of one of so many workers of a generation, once it has made a step.
    pub(crate) fn of(worker: &WorkerSight, workers: u32, frame: &Frame) -> Option<Rates> {
        let seconds = worker.pace.filter(|_| worker.shard_count > 0)?.seconds;
        let recipe = &frame.recipe;
        let images = f64::from(recipe.shard_batch()) * f64::from(worker.shard_count);
        let model_flops_per_second = over(images * recipe.flops_per_image(), seconds.step)?;
        let lease = Lease { first_shard: worker.first_shard, shard_count: worker.shard_count };
        let sent_bytes_per_step = frame
            .yardsticks
            .all_reduce_bytes
            .filter(|_| workers > 1)
            .map(|bytes| bytes * lease.buckets_sent(workers));
        let peak = frame.yardsticks.peak_flops_per_second;
        Some(Rates {
            images_per_second: over(images, seconds.step)?,
            model_flops_per_second,
            peak_share: peak.and_then(|peak| over(model_flops_per_second, peak)),
            sent_bytes_per_step,
            sent_bytes_per_second: sent_bytes_per_step.and_then(|bytes| over(bytes, seconds.all_reduce)),
        })
    }
}

/// So much in so long. Workers may report any time, and nothing is infinitely fast.
pub(crate) fn over(amount: f64, time: f64) -> Option<f64> {
    (time > 0.0).then(|| amount / time).filter(|rate| rate.is_finite())
}

#[cfg(test)]
mod tests {
    use coordinator::{Doing, Pace, StepSeconds};
    use recipe::{QUICKSTART, Recipe};

    use super::*;

    fn worker(first_shard: u32, shard_count: u32, step: f64, all_reduce: f64) -> WorkerSight {
        let seconds = StepSeconds { step, all_reduce, ..StepSeconds::default() };
        WorkerSight {
            worker: 1,
            rank: Some(0),
            description: String::new(),
            first_shard,
            shard_count,
            doing: Doing::Training,
            silent_ms: 0,
            pace: Some(Pace { step: 7, seconds }),
        }
    }

    #[test]
    fn a_worker_is_measured_by_its_own_shards_and_times() {
        let recipe = Recipe::from_toml(QUICKSTART, &[]).unwrap();
        let flops = recipe.flops_per_image();
        let mut frame = Frame::of_recipe(recipe);
        frame.yardsticks =
            Yardsticks { all_reduce_bytes: Some(8e6), peak_flops_per_second: Some(1024.0 * flops) };
        // Shards of 32 images, two or three of them: two sums, of which slices go to each of the others.
        for (worker, workers, images, sent) in [
            (worker(0, 2, 0.25, 0.125), 2, Some(256.0), Some((8e6, Some(64e6)))),
            (worker(0, 3, 0.25, 0.5), 2, Some(384.0), Some((12e6, Some(24e6)))),
            (worker(0, 4, 0.5, 0.0), 1, Some(256.0), None),
            // Nothing was waited for, so nothing can be said of its speed.
            (worker(2, 2, 0.25, 0.0), 2, Some(256.0), Some((8e6, None))),
            (worker(0, 0, 0.25, 0.1), 2, None, None),
            (worker(0, 2, 0.0, 0.0), 2, None, None),
            (worker(0, 2, f64::NAN, 0.1), 2, None, None),
            (worker(0, 2, 1e-320, 0.1), 2, None, None),
        ] {
            let found = Rates::of(&worker, workers, &frame);
            assert_eq!(found.map(|rates| rates.images_per_second), images, "{worker:?}");
            let Some(rates) = found else { continue };
            assert_eq!(rates.model_flops_per_second, flops * rates.images_per_second);
            assert_eq!(rates.peak_share, Some(rates.images_per_second / 1024.0));
            let per_step = rates.sent_bytes_per_step;
            assert_eq!(per_step.map(|bytes| (bytes, rates.sent_bytes_per_second)), sent, "{worker:?}");
        }
        frame.yardsticks = Yardsticks::default();
        let rates = Rates::of(&worker(0, 2, 0.25, 0.125), 2, &frame).unwrap();
        assert_eq!((rates.peak_share, rates.sent_bytes_per_step), (None, None));
    }
}
