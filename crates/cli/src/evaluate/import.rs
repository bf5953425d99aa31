//! `evaluate import`: a run that consists of the weights of another program.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use coordinator::RunDirectory;
use recipe::{Heads, Start};

use crate::display::Screen;
use crate::recipe_source::RecipeArguments;
use crate::{PROGRAM_VERSION, start};

#[derive(Debug, clap::Args)]
pub(super) struct ImportArguments {
    /// The weights: safetensors or what torch.save wrote, named as torchvision's ResNet, the official SimSiam, solo-learn
    /// or lightly name them
    file: PathBuf,
    /// The run's folder to make; evaluate it, or train on with `coordinator --resume FOLDER`
    folder: PathBuf,
    /// Take the file's backbone alone, and draw projector and predictor from the seed
    #[arg(long)]
    backbone_only: bool,
    #[command(flatten)]
    recipe: RecipeArguments,
}

impl ImportArguments {
    pub(super) fn run(&self, screen: &Screen) -> Result<String> {
        ensure!(
            self.recipe.are_given(),
            "a file of weights does not say its network, its input and its data: give a recipe that does by --config"
        );
        let mut recipe = self.recipe.load()?;
        let heads = self.backbone_only.then_some(Heads::Random);
        recipe.start = Some(Start { weights: self.file.clone(), blake3: None, heads });
        RunDirectory::refuse_unless_free(&self.folder)?;
        let first_state = start::read(&mut recipe)?.context("a start was just set")?;
        let directory = RunDirectory::create(&self.folder, &recipe, PROGRAM_VERSION)?;
        start::publish(&directory, &first_state, screen)?;
        Ok(format!("{} as {}, step 0", name(&self.file), self.folder.display()))
    }
}

fn name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.display().to_string())
}
