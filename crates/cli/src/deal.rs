//! A recipe's images, opened and dealt to shards, with a bar where that takes a while.

use std::sync::Arc;

use anyhow::Result;
use dataset::{Deal, Images};
use recipe::Recipe;

use crate::cache::CacheArguments;
use crate::display::Screen;

/// The images, dealt to shards.
pub(crate) fn deal(recipe: &Recipe, cache: &CacheArguments, screen: &Screen) -> Result<Deal> {
    let folder = cache.folder();
    let mut progress = |done, total| {
        screen.position(done, total, "preparing images, once".to_string());
    };
    let images = Images::open_with_progress(&recipe.data, &folder, &mut progress);
    screen.finish();
    let images = images?;
    Ok(Deal::new(Arc::new(images), recipe.training.shards, &folder)?)
}

/// Pictures that were left out, for the person and the log.
pub(crate) fn warn_of_pictures(deal: &Deal) {
    for warning in deal.images().warnings() {
        tracing::warn!("{warning}");
    }
}
