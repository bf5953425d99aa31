//! Evaluating a run while it goes on, here or on another machine that sees its folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use evaluation::{End, Published, Story};

use crate::display::Screen;

/// How often a folder, which may be another machine's, is looked at.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// Waits for `run` to begin, calls `evaluate` with the name of each checkpoint as they are published, and `keep` with what
/// that found, until the run has ended; between two looks at its folder, `pause`. A checkpoint that fails, because it was
/// deleted meanwhile, say, is told of and passed over.
///
/// # Errors
/// A run that has ended before its last step, or whose last checkpoint could not be evaluated.
pub(super) fn each_checkpoint<T>(
    run: &Path,
    screen: &Screen,
    mut pause: impl FnMut(),
    mut evaluate: impl FnMut(&str) -> Result<T>,
    mut keep: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let (mut seen, mut results, mut told) = (BTreeSet::new(), BTreeMap::new(), String::new());
    loop {
        let obstacle = match look(run) {
            Ok(Some((end, checkpoints))) => {
                for checkpoint in checkpoints.into_iter().filter(|checkpoint| seen.insert(checkpoint.clone()))
                {
                    let result = judge(run, &checkpoint, &mut evaluate, &mut keep);
                    if let Err(error) = &result {
                        tracing::warn!("{} is passed over: {error:#}", checkpoint.name());
                    }
                    results.insert(checkpoint.step, result);
                }
                if let Some(end) = end {
                    return conclude(&end, results);
                }
                String::new()
            }
            Ok(None) => format!("waits for a run to begin in {}", run.display()),
            Err(error) => format!("{error:#}; looks again"),
        };
        if obstacle != told && !obstacle.is_empty() {
            screen.line(&obstacle);
        }
        told = obstacle;
        pause();
    }
}

/// The run's end, if it has ended, and its checkpoints; `None` if it has not begun. The end is read first, so that the last
/// checkpoint is not missed.
fn look(run: &Path) -> Result<Option<(Option<End>, Vec<Published>)>> {
    let Some(story) = Story::read(run)? else { return Ok(None) };
    Ok(Some((story.end().cloned(), story.checkpoints(run)?)))
}

fn judge<T>(
    run: &Path,
    checkpoint: &Published,
    evaluate: &mut impl FnMut(&str) -> Result<T>,
    keep: &mut impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let found = evaluate(&checkpoint.name())?;
    // The run has removed what was found of these weights before. Nobody would remove what comes now.
    ensure!(
        !checkpoint.was_taken_back(run)?,
        "the run has gone back to before it, so what was found is dropped"
    );
    keep(found)
}

fn conclude(end: &End, mut results: BTreeMap<u64, Result<()>>) -> Result<()> {
    let End::Completed { step } = end else {
        bail!("the run has ended before its last step: watch it again when it goes on");
    };
    match results.remove(step) {
        Some(result) => result.context("evaluate the run's last checkpoint"),
        None => bail!(
            "the run is complete, but it has no checkpoint of its last step, {step}: evaluate another one"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::fs;
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex};

    use super::*;

    const OPENED: &str = r#"{"event":"opened","step":0}"#;
    const BACK: &str = r#"{"event":"rolled_back","generation":1,"checkpoint":null,"step":8}"#;
    const STOPPED: &str = r#"{"event":"ended","outcome":"stopped","step":24}"#;
    const COMPLETED: &str = r#"{"event":"ended","outcome":"completed","step":24,"state_hash":"00"}"#;

    /// A run, as far as a watch looks at it.
    struct Scene(tempfile::TempDir);

    impl Scene {
        fn new() -> Scene {
            Scene(tempfile::tempdir().unwrap())
        }

        fn run(&self) -> PathBuf {
            self.0.path().join("run")
        }

        fn journal(&self, lines: &[&str]) {
            fs::create_dir_all(self.run()).unwrap();
            fs::write(self.run().join("recipe.toml"), "").unwrap();
            fs::write(self.run().join("journal.jsonl"), lines.join("\n")).unwrap();
        }

        fn publish(&self, step: u64, weights: &str) {
            let path = self.run().join(format!("checkpoints/step-{step:06}"));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("manifest.json"), weights).unwrap();
        }

        fn remove(&self, step: u64) {
            fs::remove_dir_all(self.run().join(format!("checkpoints/step-{step:06}"))).unwrap();
        }

        /// Watches while in each pause the next thing happens, and `evaluate` says how an evaluation goes. Gives what was
        /// kept, what was said, and how it ended.
        fn watch(
            &self,
            happens: &[&dyn Fn()],
            evaluate: impl Fn(&str) -> Result<()>,
        ) -> (Vec<String>, Vec<String>, Result<()>) {
            let (kept, said) = (RefCell::new(Vec::new()), Arc::new(Mutex::new(Vec::new())));
            let sayings = said.clone();
            let screen = Screen::plain(move |line| sayings.lock().unwrap().push(line.to_owned()));
            let mut happens = happens.iter();
            let result = each_checkpoint(
                &self.run(),
                &screen,
                || happens.next().expect("the watch ends")(),
                |name| evaluate(name).map(|()| name.to_owned()),
                |name| {
                    kept.borrow_mut().push(name);
                    Ok(())
                },
            );
            (kept.into_inner(), said.lock().unwrap().clone(), result)
        }
    }

    #[test]
    fn a_run_is_waited_for_and_watched_to_its_end() {
        let scene = Scene::new();
        let journal = scene.run().join("journal.jsonl");
        let happens: [&dyn Fn(); 6] = [
            &|| {},
            &|| scene.journal(&[OPENED]),
            &|| scene.publish(16, "a"),
            &|| {
                // A folder is none that can be read.
                fs::remove_file(&journal).unwrap();
                fs::create_dir(&journal).unwrap();
            },
            &|| {},
            &|| {
                fs::remove_dir(&journal).unwrap();
                scene.publish(24, "a");
                scene.journal(&[OPENED, COMPLETED]);
            },
        ];
        let (kept, said, result) = scene.watch(&happens, |_| Ok(()));
        result.unwrap();
        assert_eq!(kept, ["step-000016", "step-000024"]);
        assert_eq!(said.len(), 2, "each thing is said once: {said:?}");
        assert!(said[0].starts_with("waits for a run to begin in "), "{said:?}");
        assert!(said[1].contains("cannot read") && said[1].ends_with("looks again"), "{said:?}");
    }

    #[test]
    fn what_is_made_again_after_a_rollback_is_evaluated_again() {
        let scene = Scene::new();
        scene.journal(&[OPENED]);
        for step in [16, 24] {
            scene.publish(step, "first");
        }
        let happens: [&dyn Fn(); 1] = [&|| {
            for step in [16, 24] {
                scene.publish(step, "second");
            }
            scene.journal(&[OPENED, BACK, COMPLETED]);
        }];
        let (kept, _, result) = scene.watch(&happens, |_| Ok(()));
        result.unwrap();
        assert_eq!(kept, ["step-000016", "step-000024", "step-000016", "step-000024"]);
    }

    #[test]
    fn what_was_found_of_weights_that_were_taken_back_is_dropped() {
        let scene = Scene::new();
        scene.journal(&[OPENED]);
        for step in [16, 24] {
            scene.publish(step, "first");
        }
        let goes_back = |name: &str| {
            match name {
                // One makes room for newer ones.
                "step-000016" => scene.remove(16),
                "step-000024" if fs::read_to_string(scene.run().join("journal.jsonl")).unwrap() == OPENED => {
                    scene.journal(&[OPENED, BACK]);
                    scene.remove(24);
                }
                _ => {}
            }
            Ok(())
        };
        let happens: [&dyn Fn(); 1] = [&|| {
            scene.publish(24, "second");
            scene.journal(&[OPENED, BACK, COMPLETED]);
        }];
        let (kept, _, result) = scene.watch(&happens, goes_back);
        result.unwrap();
        assert_eq!(kept, ["step-000016", "step-000024"]);
    }

    #[test]
    fn only_a_complete_run_whose_last_checkpoint_is_evaluated_is_a_success() {
        for (end, last_step, failing, phrase) in [
            (COMPLETED, 24, "step-000016", ""),
            (COMPLETED, 24, "step-000024", "last checkpoint: no labels"),
            (COMPLETED, 23, "", "no checkpoint of its last step, 24"),
            (STOPPED, 24, "", "watch it again when it goes on"),
        ] {
            let scene = Scene::new();
            scene.journal(&[OPENED, end]);
            for step in [16, last_step] {
                scene.publish(step, "a");
            }
            let evaluate = |name: &str| if name == failing { bail!("no labels") } else { Ok(()) };
            let (kept, _, result) = scene.watch(&[], evaluate);
            assert_eq!(kept.len(), if failing.is_empty() { 2 } else { 1 });
            match result {
                Ok(()) => assert_eq!(phrase, ""),
                Err(error) => {
                    assert!(!phrase.is_empty() && format!("{error:#}").contains(phrase), "{error:#}");
                }
            }
        }
    }
}
