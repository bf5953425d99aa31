//! `coordinator check`: what a run would be, before anything starts.

use anyhow::{Result, ensure};
use collective::subtrees;
use coordinator::{check_workers, lease};
use recipe::{Data, Recipe};
use simsiam::{BucketLayout, Layout, Schedule, SimSiam};

use super::CheckArguments;
use crate::exit::{Ending, answer};
use crate::start;

/// Validates the recipe and prints it, then its schedule, memory and communication.
pub(super) fn run(arguments: &CheckArguments) -> Result<Ending> {
    let mut recipe = arguments.recipe.load()?;
    let first_state = start::read(&mut recipe)?;
    check_workers(arguments.workers, recipe.training.shards)?;
    let images = count_images(&recipe, arguments)?;
    ensure!(
        recipe.total_steps(images) > 0,
        "{images} images do not fill one batch of {}; lower training.batch, or give more images",
        recipe.training.batch
    );
    answer(&recipe.to_toml());
    answer(&schedule(&recipe, images));
    answer(&costs(&recipe, arguments.workers));
    for note in first_state.iter().flat_map(|first| &first.notes) {
        answer(&format!("# {note}"));
    }
    Ok(Ending::Done)
}

/// Images that are drawn need not be there yet.
fn count_images(recipe: &Recipe, arguments: &CheckArguments) -> Result<u64> {
    match recipe.data {
        Data::Synthetic { images } => Ok(u64::from(images)),
        _ => Ok(dataset::Images::open(&recipe.data, &arguments.cache.folder())?.len()),
    }
}

fn schedule(recipe: &Recipe, images: u64) -> String {
    let schedule = Schedule::new(recipe, images);
    let total = schedule.total_steps();
    let mut lines = vec![format!(
        "# schedule: {images} images, {} steps an epoch, {total} steps in {} epochs",
        recipe.steps_per_epoch(images),
        recipe.training.epochs
    )];
    for (share, place) in [(0, "first"), (1, "quarter"), (2, "half"), (3, "three quarters"), (4, "last")] {
        let step = (total - 1) * share / 4;
        let rates = schedule.at(step);
        lines.push(format!(
            "#   {place:>14}: step {step:>8}  learning rate {:.6}  predictor {:.6}",
            rates.encoder, rates.predictor
        ));
    }
    lines.join("\n")
}

/// Memory and bytes that follow from parameters, shards and workers alone, of the worker that has most.
fn costs(recipe: &Recipe, workers: u32) -> String {
    let layout = Layout::of(&recipe.model);
    let bucket = BucketLayout::new(&layout, recipe.model.projector_dim as usize, recipe.training.shards);
    let bucket_mb = megabytes(bucket.values());
    let leases = lease(recipe.training.shards, workers);
    let shards = leases.iter().map(|lease| lease.shard_count).max().unwrap_or(1);
    let sums =
        leases.iter().map(|lease| subtrees(lease.first_shard..lease.first_shard + lease.shard_count).len());
    let sums = sums.max().unwrap_or(1);
    // The sums that are sent, one for each level below them while shards are added up, the next shard's bucket,
    // and the folded one.
    let buckets_held = sums as u32 + shards.ilog2() + 2;
    let side = recipe.views.crop_px as usize;
    let images = recipe.shard_batch() as usize;
    // Those that wait for the step, one that is made, one that is in use.
    let views_mb = megabytes(2 * images * 3 * side * side) * f64::from(shards + 2);
    let activations_mb = megabytes(SimSiam::activation_floats(&recipe.model, images, side));
    // Each worker folds one slice of the bucket: it sends the others' slices of its sums, then its own to each.
    let sent_mb = (sums + 1) as f64 * bucket_mb * f64::from(workers - 1) / f64::from(workers);
    format!(
        "# network: {} parameters, {} running statistics\n\
         # a worker: {shards} shards of {images} images; weights twice, gradients and momentum {:.1} MB, \
         {buckets_held} buckets of {bucket_mb:.1} MB, views {views_mb:.1} MB, activations {activations_mb:.1} MB\n\
         # a step: each of {workers} workers sends {sent_mb:.1} MB to the others, and about as much arrives",
        layout.parameter_count(),
        layout.statistic_count(),
        megabytes(4 * layout.parameter_count()),
    )
}

/// Floats as millions of bytes.
fn megabytes(floats: usize) -> f64 {
    (floats * size_of::<f32>()) as f64 / 1e6
}
