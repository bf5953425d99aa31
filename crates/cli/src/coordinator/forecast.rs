//! `coordinator check --forecast`: how long a run takes, here and with more workers, from steps that are made here.

use std::time::Instant;

use anyhow::Result;
use dashboard::scaled;
use dataset::Images;
use dataset::views::{Scratch, ViewMaker};
use recipe::{BatchNorm, Precision, Recipe};
use simsiam::{Device, DeviceBucket, LearningRates, Replica, State, Trainer, Views};

use crate::display::duration;
use crate::forecast::{GPU_LINKS, HOST_LINKS, Link, Measured, Way};

/// Steps of each kind that are measured, after one that is not. The quickest counts: others at work only add to it.
const REPETITIONS: usize = 4;

/// Shards in the longer kind of step.
const MORE_SHARDS: u32 = 4;

/// Worker counts that people ask for.
const WORKERS: [u32; 3] = [8, 64, 512];

/// Measures a shard of `recipe` on `device`, and says what follows.
pub(super) fn forecast(recipe: &Recipe, images: &Images, device: Device) -> Result<String> {
    let trainer = Trainer::new(recipe, images.len(), device);
    let measured = measure(recipe, images, &trainer)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let milliseconds = |seconds: f64| format!("{:.1} ms", 1e3 * seconds);
    let mut lines = vec![format!(
        "# forecast, from a shard of {} images measured here: forward and backward {}, update {}, its views {} of a core",
        recipe.shard_batch(),
        milliseconds(measured.shard),
        milliseconds(measured.update),
        milliseconds(measured.views)
    )];
    let (is_gpu, shards) = (trainer.trains_on_device(), recipe.training.shards);
    let here = match is_gpu {
        true => measured.step_seconds(shards, 0.0),
        false => measured.step_seconds_on_cores(shards, cores),
    };
    lines.push(format!(
        "# this run on {}: {} a step, {}, {} in all, evaluations and checkpoints apart",
        if is_gpu { "one such GPU" } else { "this machine" },
        milliseconds(here),
        scaled(recipe.flops_per_image() * f64::from(recipe.training.batch) / here, "FLOP/s"),
        duration(here * recipe.total_steps(images.len()) as f64)
    ));
    lines.push(format!(
        "# with a shard of {} images for each {}, {:.1} cores beside it to make its views, and between them:",
        recipe.shard_batch(),
        if is_gpu { "such GPU" } else { "machine like this" },
        measured.cores_for_views(1)
    ));
    lines.push(format!(
        "#   {:>7}  {:<18} {:>12} {:>12} {:>10}  {}",
        "workers", "link", "all-reduce", "step", "images/s", "of linear"
    ));
    let alone = measured.step_seconds(1, 0.0);
    for workers in WORKERS {
        for link in if is_gpu { GPU_LINKS } else { HOST_LINKS } {
            let all_reduce = all_reduce_seconds(recipe, &trainer, &link, workers);
            let step = measured.step_seconds(1, all_reduce);
            lines.push(format!(
                "#   {workers:>7}  {:<18} {:>12} {:>12} {:>10.0}  {:.2}",
                link.name,
                milliseconds(all_reduce),
                milliseconds(step),
                f64::from(workers * recipe.shard_batch()) / step,
                alone / step
            ));
        }
    }
    Ok(lines.join("\n"))
}

/// Of the gradients, and where BatchNorm is synchronised of its statistics, which meet forward and backward.
fn all_reduce_seconds(recipe: &Recipe, trainer: &Trainer, link: &Link, workers: u32) -> f64 {
    let precision = match link.way {
        Way::Slices => recipe.training.exchange_precision,
        // GPUs carry all bits.
        Way::Ring => Precision::F32,
    };
    let gradients = link.all_reduce_seconds(trainer.bucket().bytes_over_tcp(precision) as f64, workers);
    let statistics = size_of::<f32>() * trainer.longest_shard_sum();
    let meetings = match recipe.training.batch_norm {
        BatchNorm::Shard => 0,
        // Each BatchNorm has two statistics and two meetings.
        BatchNorm::Sync => trainer.layout().statistics.len(),
    };
    gradients + meetings as f64 * link.all_reduce_seconds(statistics as f64, workers)
}

fn measure(recipe: &Recipe, images: &Images, trainer: &Trainer) -> Result<Measured> {
    let (views, views_seconds) = views(recipe, images, trainer);
    let mut replica = trainer.place(State::initial(trainer.layout(), recipe.seed));
    step(trainer, &mut replica, &views, 1)?;
    let mut quickest = |shards| -> Result<f64> {
        let mut quickest = f64::INFINITY;
        for _ in 0..REPETITIONS {
            let begin = Instant::now();
            step(trainer, &mut replica, &views, shards)?;
            quickest = begin.elapsed().as_secs_f64().min(quickest);
        }
        Ok(quickest)
    };
    // What grows with the shards, and what does not: of a GPU only whole steps can be timed.
    let (one, more) = (quickest(1)?, quickest(MORE_SHARDS)?);
    let shard = ((more - one) / f64::from(MORE_SHARDS - 1)).clamp(0.0, one);
    Ok(Measured { shard, update: one - shard, views: views_seconds })
}

/// The views of one shard of a step, and how long one core takes for them.
fn views(recipe: &Recipe, images: &Images, trainer: &Trainer) -> (Views, f64) {
    let maker = ViewMaker::new(&recipe.views, images.geometry());
    let (length, mut scratch) = (maker.view_len(), Scratch::default());
    let mut values = vec![0.0; 2 * recipe.shard_batch() as usize * length];
    let begin = Instant::now();
    for (place, out) in (0..).zip(values.chunks_exact_mut(length)) {
        let record = images.record(place % images.len());
        maker.render(record, &maker.draw(recipe.seed, 0, place, 0), &mut scratch, out);
    }
    let seconds = begin.elapsed().as_secs_f64();
    (trainer.loader().load(values), seconds)
}

/// One step of as many shards, all of which see the same views. It leaves the weights as they are, so that each step is as
/// long as the one before.
fn step(trainer: &Trainer, replica: &mut Replica, views: &Views, shards: u32) -> Result<()> {
    const RATES: LearningRates = LearningRates { encoder: 0.0, predictor: 0.0 };
    let network = trainer.bind(replica);
    if trainer.trains_on_device() {
        let bucket = |_| trainer.forward_backward_on_device(&network, 0, views.clone(), false).0;
        let sum = (0..shards).map(bucket).reduce(DeviceBucket::plus).expect("there is a shard");
        drop(network);
        trainer.commit(replica, &trainer.bucket().read_on_device(sum)?, RATES)?;
        return Ok(());
    }
    let mut bucket = vec![0.0; trainer.bucket().values()];
    for _ in 0..shards {
        trainer.forward_backward(&network, 0, views.clone(), false, &mut bucket)?;
    }
    drop(network);
    trainer.commit(replica, &trainer.bucket().read(&bucket), RATES)?;
    Ok(())
}
