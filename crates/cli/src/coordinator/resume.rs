//! Going on with a run that was begun before.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use coordinator::RunDirectory;
use recipe::Recipe;

use super::TrainArguments;
use crate::recipe_source::{difference, moved};
use crate::start;

/// Whether there is a run of this recipe's name.
pub(super) fn is_begun(arguments: &TrainArguments) -> Result<bool> {
    let name = arguments.recipe.run_name()?;
    Ok(arguments.out.join(name).join("recipe.toml").exists())
}

/// Opens the run to go on with. Its own recipe counts, but for where the images lie.
pub(super) fn resume(arguments: &TrainArguments, folder: Option<&Path>) -> Result<(RunDirectory, Recipe)> {
    ensure!(
        folder.is_none() || !arguments.recipe.name_is_given(),
        "--resume FOLDER says which run, and --name too: leave one of them out"
    );
    let path = match folder {
        Some(folder) => folder.to_path_buf(),
        None => arguments.out.join(arguments.recipe.run_name()?),
    };
    let directory = RunDirectory::open(&path)?;
    let saved = directory.recipe();
    if !arguments.recipe.are_given() {
        let recipe = saved.clone();
        return Ok((directory, recipe));
    }
    let mut asked = arguments.recipe.of_run(saved)?;
    if asked.start != saved.start {
        // The same file may hold other weights by now.
        start::read(&mut asked)?;
    }
    // They were made on its way, not asked for.
    asked.optimizer.learning_rate_changes.clone_from(&saved.optimizer.learning_rate_changes);
    let recipe = moved(saved, &asked);
    if let Some(difference) = difference(&recipe, &asked) {
        bail!(
            "the run in {} was begun with another recipe: {difference}; leave out --config and --set, or start a new run \
             with another --name",
            path.display()
        );
    }
    Ok((directory, recipe))
}
