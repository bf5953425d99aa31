//! How long a step takes, as a function of what one shard takes and of the links between the workers.
//!
//! ```text
//! step        = shards of a worker * shard + all-reduce + update
//! all-reduce  = phases * latency + sent / the lower of what the link and what the worker's sockets carry
//! ```
//! Views are made, and blocks fetched, during the step before; where enough cores make them they cost nothing. A fold
//! begins when the backward pass has ended. `docs/performance.md` has this beside measurements.

/// What was measured on one worker, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Measured {
    /// Forward and backward of one shard.
    pub(crate) shard: f64,
    /// All else of a step: the weights for the network, the update.
    pub(crate) update: f64,
    /// A core's time for all views of one shard.
    pub(crate) views: f64,
}

/// What lies between the workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Link {
    pub(crate) name: &'static str,
    /// That a worker sends while it receives as many.
    pub(crate) bytes_per_second: f64,
    /// One way.
    pub(crate) latency: f64,
    /// By which way the sums go.
    pub(crate) way: Way,
}

/// How the buckets of all workers become their sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Each folds a slice, which all others send it, and sends it to them: TCP between hosts, in two phases.
    Slices,
    /// Around a ring, as NCCL does between GPUs: each step of it is a phase.
    Ring,
}

/// At which a worker's share of the CPU takes bytes through its sockets, checks and adds them: what TCP reaches between
/// processes of one host.
const HOST_BYTES_PER_SECOND: f64 = 3.5e9;

/// Between GPUs of one host, and between hosts, of which each has eight of them and one card for all; NCCL reaches about
/// nine tenths of what a link is named for.
pub(crate) const GPU_LINKS: [Link; 4] = [
    Link { name: "NVLink, 450 GB/s", bytes_per_second: 360e9, latency: 2e-6, way: Way::Ring },
    Link { name: "100 GbE", bytes_per_second: 11.3e9, latency: 10e-6, way: Way::Ring },
    Link { name: "25 GbE", bytes_per_second: 2.8e9, latency: 15e-6, way: Way::Ring },
    Link { name: "10 GbE", bytes_per_second: 1.13e9, latency: 20e-6, way: Way::Ring },
];

/// Between hosts with a worker each.
pub(crate) const HOST_LINKS: [Link; 4] = [
    Link { name: "100 GbE", bytes_per_second: 11.8e9, latency: 30e-6, way: Way::Slices },
    Link { name: "25 GbE", bytes_per_second: 2.95e9, latency: 30e-6, way: Way::Slices },
    Link { name: "10 GbE", bytes_per_second: 1.18e9, latency: 30e-6, way: Way::Slices },
    Link { name: "1 GbE", bytes_per_second: 118e6, latency: 50e-6, way: Way::Slices },
];

impl Link {
    /// The sum of buckets of `bucket_bytes`, of which each worker has reduced its own to one.
    pub(crate) fn all_reduce_seconds(&self, bucket_bytes: f64, workers: u32) -> f64 {
        let others = f64::from(workers - 1);
        // Every slice but one's own leaves once as a part of a sum, and once as the sum.
        let sent = 2.0 * bucket_bytes * others / f64::from(workers);
        let (phases, bytes_per_second) = match self.way {
            // Chunks are added up and passed on while others are under way.
            Way::Slices => (2.0_f64.min(2.0 * others), self.bytes_per_second.min(HOST_BYTES_PER_SECOND)),
            Way::Ring => (2.0 * others, self.bytes_per_second),
        };
        phases * self.latency + sent / bytes_per_second
    }
}

impl Measured {
    /// A step in which every worker has `shards` shards, and their sums take `all_reduce` seconds.
    pub(crate) fn step_seconds(&self, shards: u32, all_reduce: f64) -> f64 {
        f64::from(shards) * self.shard + all_reduce + self.update
    }

    /// A step of `shards` shards on `cores` cores of one machine, whoever leases what: views and networks share them.
    pub(crate) fn step_seconds_on_cores(&self, shards: u32, cores: usize) -> f64 {
        self.step_seconds(shards, 0.0) + f64::from(shards) * self.views / cores as f64
    }

    /// Cores that make a worker's views while it takes the step before.
    pub(crate) fn cores_for_views(&self, shards: u32) -> f64 {
        f64::from(shards) * self.views / self.step_seconds(shards, 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKET: f64 = 75e6;

    #[test]
    fn who_is_alone_sends_nothing_and_more_workers_send_up_to_two_buckets() {
        for link in HOST_LINKS.iter().chain(&GPU_LINKS) {
            assert_eq!(link.all_reduce_seconds(BUCKET, 1), 0.0, "{}", link.name);
            let of = |workers| link.all_reduce_seconds(BUCKET, workers);
            assert!(of(2) < of(8) && of(8) < of(64) && of(64) < of(512), "{}", link.name);
        }
        // 131 MB each way at a gigabit.
        let slow = HOST_LINKS[3].all_reduce_seconds(BUCKET, 8);
        assert!((1.1..1.2).contains(&slow), "{slow}");
        // Two workers on one host over TCP: 20 ms were measured.
        let here = Link { bytes_per_second: f64::INFINITY, latency: 0.0, ..HOST_LINKS[0] };
        let seconds = here.all_reduce_seconds(BUCKET, 2);
        assert!((0.015..0.03).contains(&seconds), "{seconds}");
    }

    #[test]
    fn a_step_is_its_shards_the_sum_and_the_update() {
        let measured = Measured { shard: 0.1, update: 0.01, views: 0.02 };
        assert!((measured.step_seconds(4, 0.05) - 0.46).abs() < 1e-12);
        assert!((measured.step_seconds_on_cores(4, 2) - 0.45).abs() < 1e-12);
        assert!((measured.cores_for_views(4) - 0.08 / 0.41).abs() < 1e-12);
    }
}
