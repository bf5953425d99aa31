//! `evaluate embed`: the features of pictures as a table.

use std::path::PathBuf;

use anyhow::Result;
use evaluation::{DataSource, Embedded, Input, Progress, embed};
use recipe::{Data, Recipe};

use super::WeightsArguments;
use crate::cache::CacheArguments;
use crate::device::DeviceArguments;

#[derive(Debug, clap::Args)]
pub(super) struct EmbedArguments {
    /// The run's folder, or that of one of its checkpoints
    run: PathBuf,
    /// A folder of pictures, stl10:FOLDER or cifar10:FOLDER, or the word `recipe` for the images of the run's recipe
    images: String,
    /// The table to write: a name that ends in .parquet, .csv or .safetensors, which has paths and labels as the bytes of JSON
    /// arrays
    file: PathBuf,
    #[command(flatten)]
    weights: WeightsArguments,
    /// Leave images at their own size, instead of the training crop's
    #[arg(long)]
    native: bool,
    #[command(flatten)]
    device: DeviceArguments,
    #[command(flatten)]
    cache: CacheArguments,
}

impl EmbedArguments {
    pub(super) fn run(&self, progress: &mut Progress<'_>) -> Result<String> {
        let encoder = self.weights.open(&self.run)?;
        let data = data(&self.images, encoder.recipe());
        let input = if self.native { Input::Native } else { Input::Crop };
        let cache_dir = self.cache.folder();
        let device = self.device.open(&cache_dir)?;
        let place = (cache_dir.as_path(), &device);
        let Embedded { rows, columns } = embed(&encoder, &data, input, &self.file, place, progress)?;
        Ok(format!("{}: {rows} rows of {columns} features", self.file.display()))
    }
}

fn data(images: &str, recipe: &Recipe) -> Data {
    match (images, images.parse::<DataSource>()) {
        ("recipe", _) => recipe.data.clone(),
        (_, Ok(source)) => source.of(recipe),
        _ => DataSource::Folder(images.into()).of(recipe),
    }
}
