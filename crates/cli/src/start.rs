//! Runs whose step 0 is a file of weights.
//!
//! The state becomes the checkpoint `step-000000` of the run directory, so that workers get it as they get any
//! checkpoint, and a run that never trains can be evaluated.

use anyhow::{Context, Result, ensure};
use coordinator::RunDirectory;
use recipe::Recipe;
use simsiam::{Layout, State, checkpoint};

use crate::display::Screen;

/// What a file of weights made of step 0.
pub(crate) struct FirstState {
    state: State,
    /// What became of tensors that were not simply taken over, as sentences.
    pub(crate) notes: Vec<String>,
}

/// Reads the weights that a new run starts from, and completes its recipe with their hash; `None` if the seed
/// draws them.
pub(crate) fn read(recipe: &mut Recipe) -> Result<Option<FirstState>> {
    let Some(start) = &recipe.start else { return Ok(None) };
    ensure!(
        start.weights.to_str().is_some(),
        "{}: a recipe is text, so the path must be too; give the file a name in UTF-8",
        start.weights.display()
    );
    let imported = evaluation::import(recipe, start)?;
    let of_file = |note: &String| format!("{}: {note}", start.weights.display());
    let notes = imported.notes.iter().map(of_file).collect();
    recipe.start = Some(imported.start);
    Ok(Some(FirstState { state: imported.state, notes }))
}

/// The same for a run that was created before: its checkpoints go before its file, which is needed only if the
/// first of them is not there yet.
pub(crate) fn read_again(directory: &RunDirectory) -> Result<Option<FirstState>> {
    let mut recipe = directory.recipe().clone();
    if recipe.start.is_none() || directory.checkpoints().latest_valid()?.is_some() {
        return Ok(None);
    }
    read(&mut recipe)
}

/// Makes it the run's first checkpoint, and tells what became of the file.
pub(crate) fn publish(directory: &RunDirectory, first: &FirstState, screen: &Screen) -> Result<()> {
    for note in &first.notes {
        tracing::info!("{note}");
        screen.line(note);
    }
    let (state, recipe) = (&first.state, directory.recipe());
    let checkpoints = directory.checkpoints();
    let write = || {
        let mut partial = checkpoints.begin(state.step)?;
        for (name, content) in checkpoint::write(&Layout::of(&recipe.model), state.clone()) {
            partial.write(name, &content)?;
        }
        checkpoints.publish(partial)
    };
    write().context("save the weights to start from")?;
    Ok(())
}
