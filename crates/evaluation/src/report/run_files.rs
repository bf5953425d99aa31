//! What a run leaves behind, as far as a report shows it.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use recipe::{Data, Recipe};

use super::cards::{self, ResultCard};
use super::journal::{self, Journal};
use super::metrics::{self, Step};
use crate::data_source::present_place;
use crate::encoder::{RECIPE, read_recipe};
use crate::error::EvaluationError;
use crate::run::JOURNAL;

// The layout of a run directory, as the coordinator and the evaluations write it.
const METRICS: &str = "metrics.jsonl";
pub(super) const EVALUATIONS: &str = "evaluations";

/// A run's files.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RunFiles {
    /// The folder, as it was named.
    pub(super) folder: PathBuf,
    /// What the page calls the run; no two are called the same.
    pub(super) name: String,
    pub(super) recipe: Recipe,
    pub(super) steps: Vec<Step>,
    pub(super) journal: Journal,
    /// Oldest weights first.
    pub(super) cards: Vec<ResultCard>,
    /// A sentence for each file among them that is no card.
    pub(super) passed_over: Vec<String>,
}

impl RunFiles {
    /// Reads the runs in `folders`. Metrics, journal and cards that are not there yet are empty.
    ///
    /// # Errors
    /// A folder without a recipe, a damaged file, those of the disk.
    pub(super) fn read_all(folders: &[PathBuf]) -> Result<Vec<RunFiles>, EvaluationError> {
        let mut runs = folders.iter().map(|folder| Self::read(folder)).collect::<Result<Vec<_>, _>>()?;
        let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
        for run in &mut runs {
            if names.iter().filter(|name| **name == run.name).count() > 1 {
                run.name = run.folder.display().to_string();
            }
        }
        Ok(runs)
    }

    fn read(folder: &Path) -> Result<RunFiles, EvaluationError> {
        let recipe = read_recipe(&folder.join(RECIPE))?;
        let [metrics, journal] =
            [METRICS, JOURNAL].map(|name| Some(folder.join(name)).filter(|path| path.is_file()));
        let (cards, passed_over) = cards::read_all(&folder.join(EVALUATIONS))?;
        Ok(RunFiles {
            folder: folder.to_owned(),
            name: recipe.name.clone(),
            steps: metrics.map_or(Ok(Vec::new()), |path| metrics::read(&path))?,
            journal: journal.map_or(Ok(Journal::default()), |path| journal::read(&path))?,
            recipe,
            cards,
            passed_over,
        })
    }

    /// Steps in one pass over the data, once a second has begun.
    pub(super) fn steps_per_epoch(&self) -> Option<u64> {
        metrics::steps_per_epoch(&self.steps)
    }

    /// The images of a card, where they are now; `None` if this program does not know their kind.
    pub(super) fn images_of(&self, card: &ResultCard) -> Option<Data> {
        let source: Data = serde_json::from_value(card.source.clone()).ok()?;
        Some(present_place(&source, &self.recipe))
    }

    /// The card of the newest weights that stands for its kind: one on the run's own images rather than on others, then
    /// one that learned from more labels and for longer. A file's name, which is a hash, decides last.
    pub(super) fn newest(&self, kind: &str) -> Option<&ResultCard> {
        let rank = |card: &ResultCard| {
            let is_own = self.images_of(card).is_some_and(|images| images == *self.recipe.labelled_data());
            (card.step, is_own, card.effort())
        };
        let cards = self.cards.iter().filter(|card| card.kind == kind && card.checkpoint.is_some());
        cards.max_by(|a, b| rank(a).partial_cmp(&rank(b)).unwrap_or(Ordering::Equal))
    }

    /// The cards that can be compared with the newest of their kind, this one included.
    pub(super) fn comparable(&self, kind: &str) -> Vec<&ResultCard> {
        // With nothing but a baseline, that is the newest.
        let newest = self.newest(kind).or_else(|| self.cards.iter().rfind(|card| card.kind == kind));
        let same = |card: &&ResultCard| newest.is_some_and(|newest| card.compares_with(newest));
        self.cards.iter().filter(same).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::write_run;
    use std::fs;

    #[test]
    fn a_run_that_has_not_begun_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let run = write_run(folder.path(), &[]);
        let files = &RunFiles::read_all(&[run]).unwrap()[0];
        assert_eq!((files.name.as_str(), files.steps.len(), files.cards.len()), ("quickstart", 0, 0));
        assert_eq!((files.newest("knn"), files.steps_per_epoch()), (None, None));
        let error = RunFiles::read_all(&[folder.path().join("nowhere")]).unwrap_err().to_string();
        assert!(error.contains("recipe.toml") && error.contains("no such file"), "{error}");
    }

    #[test]
    fn a_kind_is_stood_for_by_the_newest_weights_on_own_images_with_most_labels() {
        let folder = tempfile::tempdir().unwrap();
        let run = write_run(folder.path(), &[]);
        let own = serde_json::to_value(crate::testing::quickstart().data).unwrap();
        let other = serde_json::json!({"source": "cifar10", "path": "elsewhere"});
        fs::create_dir_all(run.join(EVALUATIONS)).unwrap();
        // In each line, a card stands for the kind rather than those above.
        for (place, (step, source, labels_percent, epochs)) in [
            (8, &own, 100, 20),
            (16, &other, 100, 30),
            (16, &own, 1, 20),
            (16, &own, 10, 20),
            (16, &own, 10, 30),
        ]
        .into_iter()
        .enumerate()
        {
            let settings = serde_json::json!({"labels_percent": labels_percent, "epochs": epochs});
            let card = serde_json::json!({
                "weights": {"checkpoint": "x", "step": step}, "data": {"name": "drawn", "source": source},
                "measurement": {"evaluation": "finetune", "settings": settings},
            });
            // The later ones come first by name.
            let file = format!("{}.json", 9 - place);
            fs::write(run.join(EVALUATIONS).join(&file), card.to_string()).unwrap();
            let files = RunFiles::read_all(std::slice::from_ref(&run)).unwrap().remove(0);
            assert_eq!(files.newest("finetune").unwrap().file, file);
        }
    }

    #[test]
    fn runs_of_one_name_are_told_apart_by_their_folders() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let paths: Vec<PathBuf> = folders.iter().map(|folder| write_run(folder.path(), &[])).collect();
        let names: Vec<String> =
            RunFiles::read_all(&paths).unwrap().into_iter().map(|run| run.name).collect();
        assert_eq!(names, paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>());
        fs::write(paths[1].join("journal.jsonl"), "broken\n").unwrap();
        let error = RunFiles::read_all(&paths).unwrap_err().to_string();
        assert!(error.contains("journal.jsonl") && error.contains("line 1"), "{error}");
    }
}
