//! What a run needs of its machine, as far as it follows from recipe and workers; and whether there is room for it.

use std::fs;
use std::path::Path;

use collective::subtrees;
use coordinator::{bytes_of_steps, lease};
use recipe::{BatchNorm, Recipe};
use simsiam::{BucketLayout, Layout, SimSiam};

/// Of a kNN evaluation: its card, and a picture twice, for people and for TensorBoard.
const EVALUATION_MB: f64 = 0.6;

/// Checkpoints that saving one takes in memory: 1.6 to 1.8 were measured (docs/performance.md).
const SAVING: f64 = 1.7;

/// What the worker with the most shards needs, and the run directory. MB are millions of bytes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Needs {
    pub(crate) parameters: usize,
    pub(crate) statistics: usize,
    /// Its shards.
    pub(crate) shards: u32,
    /// Images of a shard in a step.
    pub(crate) images: usize,
    /// Weights and momentum, and gradients for each shard that is computed at once.
    pub(crate) weights_mb: f64,
    pub(crate) bucket_mb: f64,
    pub(crate) buckets_held: u32,
    pub(crate) views_mb: f64,
    pub(crate) activations_mb: f64,
    /// What the workers add up together in a step, as it goes over TCP: the bucket, and BatchNorm's statistics where they
    /// are synchronised.
    pub(crate) summed_mb: f64,
    /// What it sends to the others in a step.
    pub(crate) sent_mb: f64,
    /// Weights, statistics and momentum.
    pub(crate) checkpoint_mb: f64,
    /// What the worker that saves holds meanwhile: a copy of its state, of that what is in its files already, and what is
    /// on its way to the coordinator.
    pub(crate) saving_mb: f64,
    /// The checkpoints that are kept, and the one that is being written.
    pub(crate) checkpoints: u32,
    /// Shards and workers of the run.
    run_shards: u32,
    workers: u32,
}

impl Needs {
    pub(crate) fn of(recipe: &Recipe, workers: u32) -> Needs {
        let layout = Layout::of(&recipe.model);
        let bucket = BucketLayout::new(&layout, recipe.model.projector_dim as usize, recipe.training.shards);
        let bucket_mb = megabytes(bucket.values());
        let leases = lease(recipe.training.shards, workers);
        let shards = leases.iter().map(|lease| lease.shard_count).max().unwrap_or(1);
        let sums = leases
            .iter()
            .map(|lease| subtrees(lease.first_shard..lease.first_shard + lease.shard_count).len())
            .max()
            .unwrap_or(1);
        // Side by side, each shard has its gradients and a bucket of its own.
        let at_once = match recipe.training.batch_norm {
            BatchNorm::Shard => 1,
            BatchNorm::Sync => shards,
        };
        let side = recipe.views.crop_px as usize;
        let images = recipe.shard_batch() as usize;
        let checkpoint_mb = megabytes(2 * layout.parameter_count() + layout.statistic_count());
        let exchanged = bucket.bytes_over_tcp(recipe.training.exchange_precision);
        let summed_mb = exchanged as f64 / 1e6 + statistics_mb(recipe, &layout);
        let buckets_sent = leases.iter().map(|lease| lease.buckets_sent(workers)).fold(0.0, f64::max);
        Needs {
            parameters: layout.parameter_count(),
            statistics: layout.statistic_count(),
            shards,
            images,
            weights_mb: megabytes((2 + at_once as usize) * layout.parameter_count()),
            bucket_mb,
            // The sums that are sent, one for each level below them while shards are added up, those of shards that are
            // computed beside the first, and the folded one, which who is alone has in its sum.
            buckets_held: sums as u32 + shards.ilog2() + (at_once - 1) + u32::from(workers > 1),
            // Those that wait for the step, one that is made, one that is in use.
            views_mb: megabytes(2 * images * 3 * side * side) * f64::from(shards + 2),
            activations_mb: megabytes(
                at_once as usize * SimSiam::activation_floats(&recipe.model, images, side),
            ),
            summed_mb,
            sent_mb: buckets_sent * summed_mb,
            checkpoint_mb,
            saving_mb: SAVING * checkpoint_mb,
            checkpoints: recipe.checkpoint.keep.saturating_add(1),
            run_shards: recipe.training.shards,
            workers,
        }
    }

    /// Memory of one worker.
    pub(crate) fn memory_mb(&self) -> f64 {
        let buckets_mb = self.bucket_mb * f64::from(self.buckets_held);
        self.weights_mb + buckets_mb + self.views_mb + self.activations_mb
    }

    /// Checkpoints, and what so many steps leave beside them.
    pub(crate) fn disk_mb(&self, steps: u64) -> f64 {
        self.checkpoint_mb * f64::from(self.checkpoints) + self.records_mb(steps)
    }

    /// Metrics, curves and traces.
    fn records_mb(&self, steps: u64) -> f64 {
        bytes_of_steps(steps, self.run_shards, self.workers) as f64 / 1e6
    }

    /// How large a run of so many steps is, in a line.
    pub(crate) fn size(&self, steps: u64) -> String {
        format!(
            "about {:.0} MB of memory for each worker, {:.0} more for the one that saves, and up to {:.0} MB of disk: {} \
             checkpoints of {:.1} MB with the one being written, {:.1} MB of metrics, curves and traces, {:.1} for each evaluation",
            self.memory_mb(),
            self.saving_mb,
            self.disk_mb(steps),
            self.checkpoints,
            self.checkpoint_mb,
            self.records_mb(steps),
            EVALUATION_MB
        )
    }
}

/// What the shards' statistics come to that are added up forward and backward where BatchNorm is synchronised: of each of its
/// two statistics once, with as many numbers each time as the longest has for both views.
fn statistics_mb(recipe: &Recipe, layout: &Layout) -> f64 {
    match recipe.training.batch_norm {
        BatchNorm::Shard => 0.0,
        BatchNorm::Sync => {
            let channels = layout.statistics.iter().map(|entry| entry.range.len()).max().unwrap_or(0);
            megabytes(layout.statistics.len() * 2 * 2 * channels)
        }
    }
}

/// What there is too little of for `steps` of `recipe` with `local_workers` on the CPU of this machine, and the run in
/// `folder`: a sentence for each. What cannot be found out is taken to suffice.
pub(crate) fn shortages(recipe: &Recipe, steps: u64, local_workers: u32, folder: &Path) -> Vec<String> {
    let needs = Needs::of(recipe, local_workers.max(1));
    let memory = shortage(
        "memory",
        needs.memory_mb() * f64::from(local_workers) + needs.saving_mb,
        available_memory_mb(),
        "lower training.batch, or raise training.shards, which makes each part of a batch smaller",
    );
    let disk = shortage(
        "disk space",
        needs.disk_mb(steps),
        free_disk_mb(folder),
        "make room, lower checkpoint.keep, or choose another --out",
    );
    memory.into_iter().chain(disk).collect()
}

fn shortage(what: &str, needed_mb: f64, free_mb: Option<f64>, advice: &str) -> Option<String> {
    let free_mb = free_mb.filter(|free_mb| *free_mb < needed_mb)?;
    Some(format!("this run needs about {needed_mb:.0} MB of {what}, and {free_mb:.0} MB are free: {advice}"))
}

/// Memory that the system would give to a new process, within what this one's container or job may use.
fn available_memory_mb() -> Option<f64> {
    let of_machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| parse_available(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let allowed = allowed_memory_mb(Path::new("/sys/fs/cgroup"), &groups);
    of_machine.into_iter().chain(allowed).reduce(f64::min)
}

/// What is left of the least that a control group of `groups`, or one above it, may use; files that can be dropped count as
/// left. As the kernel's `cgroup-v2` documentation says.
fn allowed_memory_mb(root: &Path, groups: &str) -> Option<f64> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let left = |group: &Path| {
        let number = |name| fs::read_to_string(group.join(name)).ok()?.trim().parse::<f64>().ok();
        let droppable = fs::read_to_string(group.join("memory.stat")).ok().and_then(|stat| {
            stat.lines().find_map(|line| line.strip_prefix("inactive_file "))?.parse::<f64>().ok()
        });
        Some((number("memory.max")? - number("memory.current")? + droppable.unwrap_or(0.0)) / 1e6)
    };
    let group = root.join(own);
    group.ancestors().take_while(|group| group.starts_with(root)).filter_map(left).reduce(f64::min)
}

fn parse_available(meminfo: &str) -> Option<f64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0 / 1e6)
}

/// Of the file system that `folder` lies on, or will.
fn free_disk_mb(folder: &Path) -> Option<f64> {
    let there = folder.ancestors().find(|path| path.exists()).filter(|path| *path != Path::new(""));
    let found = rustix::fs::statvfs(there.unwrap_or(Path::new("."))).ok()?;
    Some(found.f_bavail as f64 * found.f_frsize as f64 / 1e6)
}

/// Floats as millions of bytes.
fn megabytes(floats: usize) -> f64 {
    (floats * size_of::<f32>()) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use coordinator::Lease;

    use super::*;

    #[test]
    fn what_is_short_is_said_with_both_numbers() {
        for (needed_mb, free_mb, expected) in [
            (500.0, Some(400.0), Some("needs about 500 MB of memory, and 400 MB are free: less")),
            (500.0, Some(500.0), None),
            (500.0, None, None),
        ] {
            let found = shortage("memory", needed_mb, free_mb, "less");
            assert_eq!(found.is_some(), expected.is_some(), "{found:?}");
            assert!(found.unwrap_or_default().contains(expected.unwrap_or_default()));
        }
        assert_eq!(parse_available("MemTotal: 9 kB\nMemAvailable:   2000000 kB\n"), Some(2048.0));
        assert_eq!(parse_available("MemTotal: 9 kB\n"), None);
    }

    #[test]
    fn a_container_has_the_memory_that_its_groups_leave() {
        let root = tempfile::tempdir().unwrap();
        let write = |group: &str, limit: &str, used: &str| {
            let group = root.path().join(group);
            fs::create_dir_all(&group).unwrap();
            for (name, text) in [
                ("memory.max", limit),
                ("memory.current", used),
                ("memory.stat", "file 9\ninactive_file 1000000\n"),
            ] {
                fs::write(group.join(name), text).unwrap();
            }
        };
        write("", "9000000000\n", "5000000000\n");
        write("job", "3000000000\n", "1000000000\n");
        write("job/step", "max\n", "1000000000\n");
        for (groups, expected) in [
            ("0::/\n", Some(4001.0)),
            ("0::/job/step\n", Some(2001.0)),
            ("1:memory:/old\n0::/job\n", Some(2001.0)),
            ("0::/elsewhere\n", Some(4001.0)),
            ("4:memory:/old\n", None),
        ] {
            assert_eq!(allowed_memory_mb(root.path(), groups), expected, "{groups:?}");
        }
    }

    fn recipe(set: &[&str]) -> Recipe {
        let set: Vec<String> = set.iter().map(|value| (*value).to_string()).collect();
        Recipe::from_toml(recipe::QUICKSTART, &set).unwrap()
    }

    /// The recipe counts a network's products without building it; here it is built.
    #[test]
    fn a_network_has_the_products_that_its_recipe_counts() {
        let presets = recipe::PRESETS.iter().map(|(_, text)| Recipe::from_toml(text, &[]).unwrap());
        let others = [
            recipe(&["model.backbone=resnet50", "model.stem=imagenet", "views.crop_px=90"]),
            recipe(&["model.backbone=resnet34", "model.stem=small", "model.projector_layers=3"]),
        ];
        for Recipe { model, views, .. } in presets.chain(others) {
            let products = model.products(views.crop_px);
            let weights: Vec<usize> = products.iter().map(|product| product.weights() as usize).collect();
            let layout = Layout::of(&model);
            let matrices = layout.parameters.iter().filter(|entry| entry.shape.len() > 1);
            let expected: Vec<usize> = matrices.map(|entry| entry.range.len()).collect();
            assert_eq!(weights, expected, "{model:?}");
            // What a convolution makes is normalised, which makes as much once more.
            let heads = model.projector_layers as usize + 2;
            let maps = products[..products.len() - heads].iter();
            let floats: u64 = maps.map(|product| 2 * product.outputs * product.places).sum();
            let side = views.crop_px as usize;
            assert_eq!(2 * floats as usize, SimSiam::activation_floats(&model, 1, side), "{model:?}");
        }
    }

    #[test]
    fn a_lease_brings_as_many_sums_as_the_fold_has_subtrees() {
        for first_shard in 0..40 {
            for shard_count in 0..40 {
                let sums = Lease { first_shard, shard_count }.sums() as usize;
                assert_eq!(sums, subtrees(first_shard..first_shard + shard_count).len());
            }
        }
    }

    #[test]
    fn a_run_says_how_large_it_is() {
        let kept = recipe(&["checkpoint.keep=2"]);
        let needs = Needs::of(&kept, 4);
        let size = needs.size(480);
        for phrase in ["MB of memory for each worker", "3 checkpoints of", "metrics, curves and traces"] {
            assert!(size.contains(phrase), "{size:?} lacks {phrase:?}");
        }
        assert!(needs.disk_mb(480) > 3.0 * needs.checkpoint_mb);
        for (shards, workers, buckets) in [(1, 1, 1), (4, 1, 3), (4, 4, 2), (8, 3, 4)] {
            let shared = recipe(&[&format!("training.shards={shards}")]);
            assert_eq!(
                Needs::of(&shared, workers).buckets_held,
                buckets,
                "{shards} shards, {workers} workers"
            );
        }
        // Two buckets, but for the slice of its own.
        assert!((needs.sent_mb - 1.5 * needs.bucket_mb).abs() < 1e-9, "{needs:?}");
        let synchronised = Needs::of(&recipe(&["training.batch_norm=sync"]), 4);
        assert!(synchronised.summed_mb > needs.summed_mb && needs.summed_mb == needs.bucket_mb);
        let rounded = Needs::of(&recipe(&["training.exchange_precision=bf16"]), 4);
        assert!((0.5..0.51).contains(&(rounded.sent_mb / needs.sent_mb)), "{rounded:?}");
    }

    #[test]
    fn the_quickstart_fits_and_a_monster_does_not() {
        let here = Path::new("no/such/folder");
        assert_eq!(shortages(&recipe(&[]), 480, 4, here), [""; 0]);
        let monster = recipe(&[
            "model.width=256",
            "checkpoint.keep=10000",
            "training.batch=1048576",
            "data.images=2000000",
        ]);
        let found = shortages(&monster, 30, 4, here);
        assert!(
            found.len() == 2 && found[0].contains("memory") && found[1].contains("disk space"),
            "{found:?}"
        );
    }
}
