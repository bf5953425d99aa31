//! How much the steps of a run leave in its folder, known before the first one.

/// Bytes that a step leaves in the metrics and in the curves for TensorBoard, about: 400 and 430.
const STEP_BYTES: u64 = 830;

/// Bytes of a piece of a step in the flight recorder, about.
const SPAN_BYTES: u64 = 80;

/// The most that the flight recorder keeps, in two files.
const MOST_SPAN_BYTES: u64 = 16 << 20;

/// Bytes that so many steps leave in a run's folder, about, where checkpoints, evaluations and logs are left out:
/// metrics, curves, and the last pieces of steps.
pub fn bytes_of_steps(steps: u64, shards: u32, workers: u32) -> u64 {
    // Views, forward and backward of each shard; all-reduce and update of each worker.
    let spans = 3 * u64::from(shards) + 2 * u64::from(workers);
    let traced = steps.saturating_mul(SPAN_BYTES * spans).min(MOST_SPAN_BYTES);
    steps.saturating_mul(STEP_BYTES).saturating_add(traced)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use recipe::Recipe;

    use super::*;
    use crate::RunDirectory;
    use crate::flight_recorder::{Span, StepPhase, StepSpans};
    use crate::membership::{Monitors, Parts, StepReport, StepSeconds};
    use crate::progress::StepMetrics;

    #[test]
    fn steps_leave_about_as_much_as_is_said() {
        const STEPS: u64 = 1000;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let mut run =
            RunDirectory::create(&path, &Recipe::from_toml(recipe::QUICKSTART, &[]).unwrap(), "1.0.0")
                .unwrap();
        let mut curves = run.begin_curves(1).unwrap();
        let bytes = || -> u64 {
            let meant = ["metrics", "tensorboard", "spans"];
            let is_meant = |file: &&PathBuf| meant.iter().any(|name| file.to_string_lossy().contains(name));
            walk(&path).iter().filter(is_meant).map(|file| fs::metadata(file).unwrap().len()).sum()
        };
        let (shards, workers) = (4, 2);
        let before = bytes();
        for step in 1..=STEPS {
            let metrics = usual_step(step, run.recipe());
            run.metric(&metrics);
            curves.step(&metrics, Duration::from_millis(1_795_540_402_753 + step));
            for worker in 1..=workers {
                run.flight_recorder().note(&usual_spans(step, worker, shards / workers));
            }
        }
        let found = bytes() - before;
        let said = bytes_of_steps(STEPS, shards, workers);
        assert!((0.8..1.25).contains(&(said as f64 / found as f64)), "{said} bytes are said, {found} found");
        // However long a run is, no more of its pieces are kept.
        let year = 1 << 40;
        assert_eq!(bytes_of_steps(year, 4, 2), year * STEP_BYTES + MOST_SPAN_BYTES);
    }

    /// The files in a folder and in those within.
    fn walk(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
    }

    /// A step as workers report it, with all digits, whose health is looked at in every tenth.
    fn usual_step(step: u64, recipe: &Recipe) -> StepMetrics {
        let x = step as f64;
        let parts = || Parts { backbone: 0.31 / x, projector: 0.17 / x, predictor: 0.23 / x };
        let monitors = || Monitors {
            effective_dimensions: 7.0 + 1.0 / x,
            gradient_norms: parts(),
            update_ratios: parts(),
            statistics_change: 0.07 / x,
            without_gradient: Vec::new(),
        };
        let seconds = StepSeconds {
            data: 15_779e-9 + 1e-9 * x,
            forward: 0.210_733_578 / x,
            backward: 0.040_601_423 + 1e-9 * x,
            all_reduce: 0.015_153_757,
            update: 0.011_459_06,
            step: 0.119_317_759,
        };
        let report = StepReport {
            loss: -x.sqrt().sin() / 1.1,
            collapse_level: 1.0 - 1.0 / (x + 20.0),
            learning_rate: 0.1 / x,
            gradient_norm: 0.1 + x.cos().abs(),
            seconds,
            monitors: step.is_multiple_of(10).then(monitors),
            ..StepReport::usual(1, step)
        };
        StepMetrics::new(&report, recipe, 1000)
    }

    /// Where the time of a step of so many shards went.
    fn usual_spans(step: u64, worker: u32, shards: u32) -> StepSpans {
        let span = |phase, shard| Span { phase, shard, start_us: 100_000, duration_us: 40_123 };
        let of_shard = |shard| {
            [StepPhase::Data, StepPhase::Forward, StepPhase::Backward].map(|phase| span(phase, Some(shard)))
        };
        let of_worker = [StepPhase::AllReduce, StepPhase::Update].map(|phase| span(phase, None));
        let spans = (0..shards).flat_map(of_shard).chain(of_worker).collect();
        let began_unix_us = 1_795_540_402_753_123;
        StepSpans { worker: u64::from(worker), generation: 1, step, began_unix_us, spans }
    }
}
