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
    let mut preparing = |done, total| {
        screen.action(done, total, "preparing images, once".to_string());
    };
    let images = Images::open_with_progress(&recipe.data, &folder, &mut preparing);
    screen.finish();
    let mut hashing = |done, total| {
        screen.action(done, total, "reading and hashing all images, once".to_string());
    };
    let deal = Deal::new_with_progress(Arc::new(images?), recipe.training.shards, &folder, &mut hashing);
    screen.finish();
    Ok(deal?)
}

/// Pictures that were left out, for the person and the log.
pub(crate) fn warn_of_pictures(deal: &Deal) {
    for warning in deal.images().warnings() {
        tracing::warn!("{warning}");
    }
}
