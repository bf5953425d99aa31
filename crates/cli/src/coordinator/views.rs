//! `coordinator views`: the views that a recipe makes, as a picture.

use anyhow::{Context, Result};
use dataset::views::{ViewMaker, write_grid};

use super::ViewsArguments;
use crate::deal::{deal, warn_of_pictures};
use crate::display::Screen;
use crate::exit::{Ending, answer};
use crate::logging;

/// Draws the first images of shard 0 with their first pairs of views, as training will see them.
pub(super) fn run(arguments: &ViewsArguments) -> Result<Ending> {
    let screen = Screen::stderr();
    logging::start(&screen);
    let recipe = arguments.recipe.load()?;
    let deal = deal(&recipe, &arguments.cache, &screen)?;
    warn_of_pictures(&deal);
    let maker = ViewMaker::new(&recipe.views, deal.manifest().geometry);
    let count = arguments.images.min(deal.manifest().images_per_shard);
    let records =
        (0..count).map(|index| Ok((u64::from(index), deal.record(0, index)?))).collect::<Result<Vec<_>>>()?;
    write_grid(&arguments.picture, &maker, &records, 0..u64::from(arguments.pairs), recipe.seed)
        .context("draw the views")?;
    answer(&format!(
        "{}: {count} images of {}, each with {} pairs of views",
        arguments.picture.display(),
        deal.manifest().name,
        arguments.pairs
    ));
    Ok(Ending::Done)
}
