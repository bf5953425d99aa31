//! `worker replay`: a step of a run, computed once more.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use coordinator::RunDirectory;
use dataset::views::{ViewMaker, write_grid};
use dataset::{BlockStore, Deal, Manifest};
use evaluation::Encoder;
use recipe::Recipe;
use simsiam::{Commit, arithmetic};
use worker::{Replayed, ReplayedShard};

use crate::cache::CacheArguments;
use crate::deal::{deal, dealt, warn_of_pictures};
use crate::device::DeviceArguments;
use crate::display::Screen;
use crate::exit::{Ending, answer};
use crate::logging;

/// Images of a shard that a picture shows: as many as fit a screen.
const PICTURED_IMAGES: usize = 16;

/// Computes the step after a checkpoint once more, with all shards in this process: what each gave, and from which
/// images. For a step that ended a run because something was not finite, and for whoever wants to see a batch.
#[derive(Debug, clap::Args)]
pub(crate) struct ReplayArguments {
    /// The run's folder
    run: PathBuf,
    /// The checkpoint before the step, such as step-000123 [default: the newest]
    #[arg(long, value_name = "NAME")]
    checkpoint: Option<String>,
    /// Write a picture of a shard's images with the views of this step
    #[arg(long, value_name = "FILE.png")]
    picture: Option<PathBuf>,
    /// Which shard the picture shows [default: the first in which something is not finite, else the first]
    #[arg(long, value_name = "SHARD", requires = "picture")]
    shard: Option<u32>,
    #[command(flatten)]
    device: DeviceArguments,
    #[command(flatten)]
    cache: CacheArguments,
}

pub(crate) fn run(arguments: &ReplayArguments) -> Result<Ending> {
    let screen = Screen::stderr();
    logging::start(&screen);
    let encoder = Encoder::open(&arguments.run, arguments.checkpoint.as_deref())?;
    let (recipe, state) = (encoder.recipe(), encoder.state().clone());
    let deal = Arc::new(deal(recipe, &arguments.cache, &screen)?);
    warn_of_pictures(&deal);
    refuse_other_images(&arguments.run, deal.manifest())?;
    let total_steps = recipe.total_steps(deal.manifest().images);
    ensure!(
        state.step < total_steps,
        "the checkpoint is that of the last step, {total_steps}: name an earlier one with --checkpoint"
    );
    let device = arguments.device.open(&arguments.cache.folder())?;
    let processor = arithmetic(&device);
    let step = state.step;
    let replayed = worker::replay(recipe, &local_store(&deal), device, state)?;

    answer(&format!("step {} of {total_steps}, from the state after {step} steps, on {processor}", step + 1));
    for shard in &replayed.shards {
        answer(&told(shard));
    }
    answer(&conclusion(&replayed));
    if let Some(picture) = &arguments.picture {
        let shard = pictured(arguments.shard, &replayed)?;
        let epoch = step / recipe.steps_per_epoch(deal.manifest().images);
        draw(picture, recipe, &deal, shard, epoch..epoch + 1)?;
        answer(&format!("{}: images of shard {} with their two views", picture.display(), shard.shard));
    }
    Ok(Ending::Done)
}

/// Refuses images that are not the run's: of others, what a replay tells is not what the run did.
fn refuse_other_images(run: &Path, manifest: &Manifest) -> Result<()> {
    let images = dealt(manifest);
    // What is named may also be the folder of one checkpoint.
    for folder in [run, &run.join("../..")] {
        if RunDirectory::confirms(folder, &images)? {
            return Ok(());
        }
    }
    tracing::warn!(
        "{}: no journal says with which images the run was begun: these may be others",
        run.display()
    );
    Ok(())
}

/// The images themselves. Of those that are not what they were when they were hashed, the deal says so.
fn local_store(deal: &Arc<Deal>) -> Arc<BlockStore> {
    let local = Some(Arc::clone(deal.images()));
    let (manifest, deal) = (Arc::clone(deal.manifest()), Arc::clone(deal));
    let fetch = move |shard: u32, block: u32| deal.block(shard, block).map_err(Into::into);
    Arc::new(BlockStore::new(manifest, None, local, Box::new(fetch)))
}

fn told(shard: &ReplayedShard) -> String {
    let ReplayedShard { shard, images, loss, gradient_norm, non_finite } = shard;
    let images: Vec<String> = images.iter().map(u64::to_string).collect();
    let trouble = match non_finite.as_slice() {
        [] => String::new(),
        [first] => format!("\n  not finite: {first}"),
        [first, rest @ ..] => format!("\n  not finite: {first} and {} more", rest.len()),
    };
    format!(
        "shard {shard}: loss {loss:+.4}, gradient norm {gradient_norm:.4}{trouble}\n  images {}",
        images.join(", ")
    )
}

fn conclusion(replayed: &Replayed) -> String {
    let Replayed { loss, collapse_level, gradient_norm, commit, state, .. } = replayed;
    let all = format!(
        "all shards: loss {loss:+.4}, collapse level {collapse_level:.2}, gradient norm {gradient_norm:.4}"
    );
    match commit {
        Ok(Commit::Applied) => format!("{all}\nit leads to state {}", state.hash()),
        Ok(Commit::Skipped(_)) => format!("{all}\nit is skipped, which leads to state {}", state.hash()),
        Err(found) => format!("{all}\n{found}: this ends the run"),
    }
}

/// The shard that a picture is wanted of.
fn pictured(asked: Option<u32>, replayed: &Replayed) -> Result<&ReplayedShard> {
    let sick = || replayed.shards.iter().find(|shard| !shard.non_finite.is_empty());
    let shard = match asked {
        Some(asked) => replayed.shards.iter().find(|shard| shard.shard == asked),
        None => sick().or(replayed.shards.first()),
    };
    match shard {
        Some(shard) => Ok(shard),
        None => bail!("expected a --shard below {}", replayed.shards.len()),
    }
}

fn draw(
    picture: &Path,
    recipe: &Recipe,
    deal: &Deal,
    shard: &ReplayedShard,
    epochs: Range<u64>,
) -> Result<()> {
    let manifest = deal.manifest();
    let first = u64::from(shard.shard) * u64::from(manifest.images_per_shard);
    let records: Vec<(u64, &[u8])> = shard
        .images
        .iter()
        .take(PICTURED_IMAGES)
        .map(|&image| Ok((image, deal.record(shard.shard, (image - first) as u32)?)))
        .collect::<Result<_>>()?;
    let maker = ViewMaker::new(&recipe.views, manifest.geometry);
    write_grid(picture, &maker, &records, epochs, recipe.seed).context("draw the views")
}
