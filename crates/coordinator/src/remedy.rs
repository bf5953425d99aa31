//! What is done about a run of which nothing good can come as it is: a stop, or another course from where it was healthy.

use std::collections::BTreeMap;

use recipe::{LearningRateChange, OnCollapse};
use serde::Deserialize;

use crate::diagnosis::{Finding, was_healthy};
use crate::membership::Rollback;
use crate::run_directory::{RunDirectory, RunDirectoryError};

/// How often a run's learning rates may have been changed, by hand or by going back, before it is given up, and what they
/// are multiplied by: an eighth is left in the end, and what still collapses then has another cause.
const MOST_CHANGES: usize = 3;
const FACTOR: f64 = 0.5;

/// What is done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Remedy {
    Stop,
    Rollback(Rollback),
}

impl Remedy {
    /// What the recipe wants done about a finding, if anything.
    pub(crate) fn of(finding: &Finding, run: &RunDirectory) -> Result<Option<Remedy>, RunDirectoryError> {
        let changes = &run.recipe().optimizer.learning_rate_changes;
        let on_collapse = run.recipe().training.on_collapse;
        let is_to_go_back = on_collapse == OnCollapse::Rollback && finding.is_mended_by_smaller_steps;
        if on_collapse == OnCollapse::Warn {
            return Ok(None);
        }
        if !is_to_go_back {
            return Ok(finding.is_fatal.then_some(Remedy::Stop));
        }
        if changes.len() >= MOST_CHANGES {
            return Ok(Some(Remedy::Stop));
        }
        Ok(Some(last_healthy(run)?.map_or(Remedy::Stop, |(checkpoint, step)| {
            let change = LearningRateChange { after_step: step, factor: FACTOR };
            let learning_rate_changes = changes.iter().copied().chain([change]).collect();
            Remedy::Rollback(Rollback { checkpoint, step, learning_rate_changes })
        })))
    }
}

/// A line of `metrics.jsonl`, of a step.
#[derive(Deserialize)]
struct Step {
    step: u64,
    collapse_level: f64,
    monitors: Option<Monitors>,
}

#[derive(Deserialize)]
struct Monitors {
    effective_dimensions: f64,
}

/// The newest checkpoint after which the run was still healthy, and its step; the beginning if there is none, and
/// nothing if that is lost, because the run started from weights of elsewhere.
fn last_healthy(run: &RunDirectory) -> Result<Option<(Option<String>, u64)>, RunDirectoryError> {
    let steps: BTreeMap<u64, Step> =
        run.metrics::<Step>()?.into_iter().map(|step| (step.step, step)).collect();
    for saved in run.checkpoints().steps()? {
        let until = || steps.range(..=saved).map(|(_, step)| step);
        let levels: Vec<f64> = until().map(|step| step.collapse_level).collect();
        let monitors = until().rev().find_map(|step| step.monitors.as_ref());
        let dimensions = monitors.map(|monitors| monitors.effective_dimensions);
        if was_healthy(&levels, dimensions)
            && let Some(checkpoint) = run.checkpoints().find_valid(saved)?
        {
            return Ok(Some((Some(checkpoint.name()), saved)));
        }
    }
    Ok(run.recipe().start.is_none().then_some((None, 0)))
}

#[cfg(test)]
mod tests {
    use recipe::Recipe;

    use super::*;

    /// A run that has gone wrong after step 30, with checkpoints of these steps.
    fn run(folder: &tempfile::TempDir, set: &[&str], saved: &[u64]) -> RunDirectory {
        let set: Vec<String> = set.iter().map(|value| (*value).to_string()).collect();
        let recipe = Recipe::from_toml(recipe::QUICKSTART, &set).unwrap();
        let mut run = RunDirectory::create(&folder.path().join("run"), &recipe, "1").unwrap();
        for step in 1..=60u64 {
            let collapse_level = if step > 50 { 0.1 } else { 0.9 };
            let dimensions = if step > 30 { 1.6 } else { 9.0 };
            let monitors =
                (step % 10 == 0).then(|| serde_json::json!({ "effective_dimensions": dimensions }));
            let metric =
                serde_json::json!({ "step": step, "collapse_level": collapse_level, "monitors": monitors });
            run.metric(&metric);
        }
        for step in saved {
            let mut partial = run.checkpoints().begin(*step).unwrap();
            partial.write("progress.json", b"{}").unwrap();
            run.checkpoints().publish(partial).unwrap();
        }
        run
    }

    fn finding(is_fatal: bool, is_mended_by_smaller_steps: bool) -> Finding {
        Finding { sentence: "ill".to_string(), is_fatal, is_mended_by_smaller_steps }
    }

    #[test]
    fn a_run_goes_back_to_where_it_was_healthy() {
        let change = |after_step| LearningRateChange { after_step, factor: 0.5 };
        let name = Some("step-000020".to_string());
        for (saved, checkpoint, step) in [(&[20, 40, 60][..], name, 20), (&[40, 60], None, 0), (&[], None, 0)]
        {
            let folder = tempfile::tempdir().unwrap();
            let mut run = run(&folder, &["training.on_collapse=rollback"], saved);
            let rollback = Rollback { checkpoint, step, learning_rate_changes: vec![change(step)] };
            let found = Remedy::of(&finding(false, true), &run).unwrap();
            assert_eq!(found, Some(Remedy::Rollback(rollback)), "{saved:?}");
            run.roll_back(step, change(step)).unwrap();
            drop(run);

            let run = RunDirectory::open(&folder.path().join("run")).unwrap();
            assert_eq!(run.recipe().optimizer.learning_rate_changes, [change(step)]);
            assert_eq!(run.told().unwrap().last_step, step);
            assert_eq!(run.checkpoints().latest_valid().unwrap().map_or(0, |newest| newest.step()), step);
        }
    }

    #[test]
    fn what_smaller_steps_do_not_mend_stops_the_run_or_is_only_said() {
        let thrice = "optimizer.learning_rate_changes=[{after_step=1,factor=0.5},{after_step=1,factor=0.5},\
                      {after_step=1,factor=0.5}]";
        let start = "start.weights=a.pth";
        let stop = Some(Remedy::Stop);
        for (set, is_fatal, is_mended, expected) in [
            (&["training.on_collapse=warn"][..], true, true, None),
            (&["training.on_collapse=stop"], true, true, stop.clone()),
            (&["training.on_collapse=stop"], false, true, None),
            (&["training.on_collapse=rollback"], true, false, stop.clone()),
            (&["training.on_collapse=rollback"], false, false, None),
            (&["training.on_collapse=rollback", thrice], false, true, stop.clone()),
            (&["training.on_collapse=rollback", start], false, true, stop),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let found = Remedy::of(&finding(is_fatal, is_mended), &run(&folder, set, &[]));
            assert_eq!(found.unwrap(), expected, "{set:?}");
        }
    }
}
