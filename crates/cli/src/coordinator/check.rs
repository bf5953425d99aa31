//! `coordinator check`: what a run would be, before anything starts.

use anyhow::{Result, ensure};
use coordinator::check_workers;
use recipe::{Data, Recipe};
use simsiam::{BucketLayout, Layout, Schedule};

use super::CheckArguments;
use crate::exit::Ending;

/// Validates the recipe and prints it, then its schedule, memory and communication.
pub(super) fn run(arguments: &CheckArguments) -> Result<Ending> {
    let recipe = arguments.recipe.load()?;
    check_workers(arguments.workers, recipe.training.shards)?;
    let images = count_images(&recipe, arguments)?;
    ensure!(
        recipe.total_steps(images) > 0,
        "{images} images do not fill one batch of {}; lower training.batch, or give more images",
        recipe.training.batch
    );
    println!("{}", recipe.to_toml());
    println!("{}", schedule(&recipe, images));
    println!("{}", costs(&recipe, arguments.workers));
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

/// Memory and bytes that follow from the numbers of parameters, shards and workers alone.
fn costs(recipe: &Recipe, workers: u32) -> String {
    let layout = Layout::of(&recipe.model);
    let bucket = BucketLayout::new(&layout, recipe.model.projector_dim as usize, recipe.training.shards);
    let bucket_mb = megabytes(bucket.values());
    let shards_per_worker = recipe.training.shards.div_ceil(workers);
    // What `SubtreeSums` holds for an aligned lease, and the folded one.
    let buckets_held = 2 + shards_per_worker.next_power_of_two().ilog2() + 1;
    let side = recipe.views.crop_px as usize;
    let batch = recipe.training.batch as usize / recipe.training.shards as usize;
    let views_mb = megabytes(2 * batch * 3 * side * side) * f64::from(shards_per_worker + 1);
    // Each worker folds one slice: it sends the others' slices of its sums, and its folded slice to each.
    let sent_mb = 2.0 * bucket_mb * f64::from(workers - 1) / f64::from(workers);
    format!(
        "# network: {} parameters, {} running statistics\n\
         # a worker: {shards_per_worker} shards of {batch} images, weights and momentum {:.1} MB, \
         {buckets_held} buckets of {bucket_mb:.1} MB, views {views_mb:.1} MB, and one shard's activations\n\
         # a step: each of {workers} workers sends {sent_mb:.1} MB to the others, and as much arrives",
        layout.parameter_count(),
        layout.statistic_count(),
        megabytes(2 * layout.parameter_count()),
    )
}

/// Floats as millions of bytes.
fn megabytes(floats: usize) -> f64 {
    (floats * size_of::<f32>()) as f64 / 1e6
}
