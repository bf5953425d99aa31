//! The views that a recipe makes, as a picture: for `coordinator views`, for TensorBoard and for the dashboard.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result};
use dashboard::Views;
use dataset::views::{ViewMaker, grid_png, write_grid};
use dataset::{DatasetError, Deal};
use recipe::Recipe;

use super::ViewsArguments;
use crate::deal::{deal, warn_of_pictures};
use crate::display::Screen;
use crate::exit::{Ending, answer};
use crate::logging;

/// Images on the dashboard, and the epochs whose views stand beside them, from the present one on.
const ON_PAGE: (u32, u64) = (4, 4);

/// Draws the first images of shard 0 with their first pairs of views, as training will see them.
pub(super) fn run(arguments: &ViewsArguments) -> Result<Ending> {
    let screen = Screen::stderr();
    logging::start(&screen);
    let recipe = arguments.recipe.load()?;
    let deal = deal(&recipe, &arguments.cache, &screen)?;
    warn_of_pictures(&deal);
    let maker = ViewMaker::new(&recipe.views, deal.manifest().geometry);
    let records = first_records(&deal, arguments.images)?;
    write_grid(&arguments.picture, &maker, &records, 0..u64::from(arguments.pairs), recipe.seed)
        .context("draw the views")?;
    let all = match (records.len() as u32) < arguments.images {
        true => ", all that shard 0 has",
        false => "",
    };
    answer(&format!(
        "{}: {} images of {}{all}, each with {} pairs of views",
        arguments.picture.display(),
        records.len(),
        deal.manifest().name,
        arguments.pairs
    ));
    Ok(Ending::Done)
}

/// The first images with their views of some epochs, as a PNG. What is wrong with an image, training says.
pub(super) fn png(recipe: &Recipe, deal: &Deal, images: u32, epochs: Range<u64>) -> Option<Vec<u8>> {
    let maker = ViewMaker::new(&recipe.views, deal.manifest().geometry);
    Some(grid_png(&maker, &first_records(deal, images).ok()?, epochs, recipe.seed))
}

/// The same by epoch, for the dashboard.
pub(super) fn by_epoch(recipe: &Recipe, deal: &Arc<Deal>) -> Views {
    let (recipe, deal, (images, epochs)) = (recipe.clone(), Arc::clone(deal), ON_PAGE);
    Views::new(move |epoch| png(&recipe, &deal, images, epoch..epoch.checked_add(epochs)?))
}

/// The first images of shard 0, with their places there.
fn first_records(deal: &Deal, images: u32) -> Result<Vec<(u64, &[u8])>, DatasetError> {
    let count = images.min(deal.manifest().images_per_shard);
    (0..count).map(|index| Ok((u64::from(index), deal.record(0, index)?))).collect()
}
