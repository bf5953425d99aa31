//! `coordinator check`: what a run would be, before anything starts.

use anyhow::{Result, ensure};
use coordinator::check_workers;
use dashboard::scaled;
use recipe::{Data, Recipe};
use simsiam::Schedule;

use super::CheckArguments;
use super::forecast::forecast;
use crate::exit::{Ending, answer};
use crate::needs::{Needs, shortages};
use crate::start;

/// Validates the recipe and prints it, then its schedule, memory and communication.
pub(super) fn run(arguments: &CheckArguments) -> Result<Ending> {
    let mut recipe = arguments.recipe.load()?;
    let first_state = start::read(&mut recipe)?;
    check_workers(arguments.workers, recipe.training.shards)?;
    let images = count_images(&recipe, arguments)?;
    let steps = recipe.total_steps(images);
    ensure!(
        steps > 0,
        "{images} images do not fill one batch of {}; lower training.batch, or give more images",
        recipe.training.batch
    );
    answer(&recipe.to_toml());
    answer(&schedule(&recipe, images));
    answer(&costs(&recipe, arguments.workers, steps));
    if arguments.forecast {
        let cache_dir = arguments.cache.folder();
        let images = dataset::Images::open(&recipe.data, &cache_dir)?;
        answer(&forecast(&recipe, &images, arguments.device.open(&cache_dir)?)?);
    }
    for shortage in shortages(&recipe, steps, arguments.workers, &arguments.out) {
        answer(&format!("# warning: {shortage}"));
    }
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

/// Arithmetic, memory and bytes that follow from parameters, shards, workers and steps alone, of the worker that has most.
fn costs(recipe: &Recipe, workers: u32, steps: u64) -> String {
    let needs = Needs::of(recipe, workers);
    format!(
        "# network: {} parameters, {} running statistics; a checkpoint has {:.1} MB\n\
         # a worker: {} shards of {} images; weights twice, gradients and momentum {:.1} MB, {} buckets of {:.1} MB, views \
         {:.1} MB, activations {:.1} MB\n\
         # a step: each of {workers} workers sends {:.1} MB to the others, and about as much arrives\n\
         # all workers: {} a step, in convolutions and linear layers, forward and backward\n\
         # all steps: {}",
        needs.parameters,
        needs.statistics,
        needs.checkpoint_mb,
        needs.shards,
        needs.images,
        needs.weights_mb,
        needs.buckets_held,
        needs.bucket_mb,
        needs.views_mb,
        needs.activations_mb,
        needs.sent_mb,
        scaled(recipe.flops_per_image() * f64::from(recipe.training.batch), "FLOP"),
        needs.size(steps)
    )
}
