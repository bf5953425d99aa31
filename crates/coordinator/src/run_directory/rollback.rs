//! What a run that goes back takes with it.

use std::ffi::OsStr;
use std::fs;
use std::io;

use recipe::LearningRateChange;

use super::{RunDirectory, RunDirectoryError, failed};

/// Where evaluations put their cards, and pictures beside them.
const EVALUATIONS: &str = "evaluations";

impl RunDirectory {
    /// Goes back to the state after `step`: what came after it is removed, and then the recipe says how the run goes on. If
    /// that breaks off, what is left is still of the recipe that is there.
    pub(crate) fn roll_back(
        &mut self,
        step: u64,
        change: LearningRateChange,
    ) -> Result<(), RunDirectoryError> {
        self.checkpoints.forget_after(step)?;
        self.forget_evaluations_after(step)?;
        self.forget_metrics_after(step)?;
        let mut recipe = self.recipe.clone();
        recipe.optimizer.learning_rate_changes.push(change);
        self.keep_recipe(recipe)
    }

    /// What was found of states that are not the run's any more would be taken for what it has learned.
    fn forget_evaluations_after(&self, step: u64) -> Result<(), RunDirectoryError> {
        let folder = self.path.join(EVALUATIONS);
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(failed("list", &folder))?,
        };
        for entry in entries {
            let path = entry.map_err(failed("list", &folder))?.path();
            if path.file_name().and_then(evaluated_step).is_some_and(|evaluated| evaluated > step) {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// The step in a name such as `knn-step-000480-stl10-61bb36fb.json`; of other weights than a checkpoint's there is none.
fn evaluated_step(name: &OsStr) -> Option<u64> {
    let (_, rest) = name.to_str()?.split_once("-step-")?;
    rest.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use recipe::Recipe;

    use super::*;

    #[test]
    fn evaluations_of_what_was_taken_back_go_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = Recipe::from_toml(recipe::QUICKSTART, &[]).unwrap();
        let mut run = RunDirectory::create(&folder.path().join("run"), &recipe, "1").unwrap();
        let evaluations = run.path().join(EVALUATIONS);
        let change = || LearningRateChange { after_step: 400, factor: 0.5 };
        run.roll_back(400, change()).unwrap();
        fs::create_dir(&evaluations).unwrap();
        let stays =
            ["knn-step-000400-stl10-61bb36fb.json", "linear-resnet18-stl10-0c.json", "knn-step-x.json"];
        let goes = ["knn-step-000401-stl10-61bb36fb.json", "knn-step-1000000-stl10-61bb36fb.jpg"];
        for name in stays.iter().chain(&goes) {
            fs::write(evaluations.join(name), "").unwrap();
        }
        run.roll_back(400, change()).unwrap();
        let left = |name: &&str| evaluations.join(name).exists();
        assert!(stays.iter().all(left) && !goes.iter().any(left));
    }

    /// Whoever goes on after it finds the recipe that all which is left was made by.
    #[test]
    fn one_that_breaks_off_leaves_the_recipe_as_it_was() {
        type Obstacle = fn(&Path) -> io::Result<()>;
        let obstacles: [(Obstacle, &str); 3] = [
            (|run| fs::write(run.join("checkpoints/step-000500"), "no folder"), "step-000500"),
            (|run| fs::create_dir_all(run.join("evaluations/knn-step-000500-x.json")), "knn-step-000500"),
            (|run| fs::remove_file(run.join("metrics.jsonl")), "metrics.jsonl"),
        ];
        for (obstacle, expected) in obstacles {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("run");
            let recipe = Recipe::from_toml(recipe::QUICKSTART, &[]).unwrap();
            let mut run = RunDirectory::create(&path, &recipe, "1").unwrap();
            obstacle(&path).unwrap();
            let change = LearningRateChange { after_step: 400, factor: 0.5 };
            let error = run.roll_back(400, change).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert_eq!(run.recipe(), &recipe, "{expected}");
            drop(run);
            assert_eq!(RunDirectory::open(&path).unwrap().recipe(), &recipe, "{expected}");
        }
    }
}
