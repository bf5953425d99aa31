//! A recipe's images, opened and dealt to shards, with a bar where that takes a while.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use coordinator::journal::Dealt;
use dataset::{DatasetError, Deal, Images, Manifest};
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
    let images = images.map_err(|error| of_cache(error, &folder))?;
    let deal = Deal::new_with_progress(Arc::new(images), recipe.training.shards, &folder, &mut hashing);
    screen.finish();
    Ok(deal?)
}

/// The same as a run's journal tells it.
pub(crate) fn dealt(manifest: &Manifest) -> Dealt {
    Dealt { name: manifest.name.clone(), images: manifest.images, digest: manifest.digest().to_string() }
}

/// With what to do, if the cache cannot be used.
fn of_cache(error: DatasetError, folder: &Path) -> anyhow::Error {
    let is_of_cache = matches!(&error, DatasetError::Io { path, .. } if path.starts_with(folder));
    let error = anyhow::Error::new(error);
    if is_of_cache { error.context("use the cache (--cache-dir chooses another folder)") } else { error }
}

/// Pictures that were left out, for the person and the log.
pub(crate) fn warn_of_pictures(deal: &Deal) {
    for warning in deal.images().warnings() {
        tracing::warn!("{warning}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_write_the_cache_is_told_of_another() {
        let said = |path: &str| {
            let source = std::io::ErrorKind::PermissionDenied.into();
            let error = DatasetError::Io { action: "write", path: path.into(), source };
            format!("{:#}", of_cache(error, Path::new("/cache")))
        };
        assert!(
            said("/cache/a.rgb").contains("--cache-dir") && said("/cache/a.rgb").contains("/cache/a.rgb")
        );
        assert!(!said("/images/a.png").contains("--cache-dir"));
    }
}
