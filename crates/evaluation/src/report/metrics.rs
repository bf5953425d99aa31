//! The steps of a run, read from its `metrics.jsonl`.

use std::path::Path;

use serde::Deserialize;

use super::lines::{self, Line};
use crate::error::EvaluationError;

/// A committed step, as the coordinator writes it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Step {
    /// Steps committed, this one included.
    pub(super) step: u64,
    /// The pass over the data, from 1.
    pub(super) epoch: u64,
    /// Mean of -cos(p, z), between -1 and 1.
    pub(super) loss: f64,
    /// Near 1 healthy, 0 collapsed.
    pub(super) collapse_level: f64,
    /// That of the backbone.
    pub(super) learning_rate: f64,
    /// Of the folded gradient.
    pub(super) gradient_norm: f64,
    /// Images over the seconds of the whole step.
    pub(super) images_per_second: f64,
    /// Where the first worker's time went.
    pub(super) seconds: Seconds,
}

/// Where the time of a step went, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub(super) struct Seconds {
    /// Waiting for images and views.
    pub(super) data: f64,
    /// Forward passes.
    pub(super) forward: f64,
    /// Backward passes.
    pub(super) backward: f64,
    /// The fold over all workers.
    pub(super) all_reduce: f64,
    /// The optimizer.
    pub(super) update: f64,
    /// The whole step.
    pub(super) step: f64,
}

impl Seconds {
    /// The names of the parts, in the order of [`Seconds::parts`].
    pub(super) const NAMES: [&'static str; 6] =
        ["data", "forward", "backward", "all-reduce", "update", "the rest"];

    /// What a step consists of.
    pub(super) fn parts(&self) -> [f64; 6] {
        let known = [self.data, self.forward, self.backward, self.all_reduce, self.update];
        let rest = (self.step - known.iter().sum::<f64>()).max(0.0);
        [known[0], known[1], known[2], known[3], known[4], rest]
    }
}

/// The steps in their order. Lines that tell of something else are passed over, and so is a last line that a
/// crash cut. Of a step that was made twice the later line counts.
///
/// # Errors
/// A file that cannot be read, or a line that is no step and says nothing else either.
pub(super) fn read(path: &Path) -> Result<Vec<Step>, EvaluationError> {
    let mut steps: Vec<Step> = Vec::new();
    for Line { number, value } in lines::read(path)? {
        // A step that was left out has no loss that could be drawn.
        if value.get("loss").is_none_or(|_| value["skipped"] == true) {
            continue;
        }
        let step: Step = serde_json::from_value(value).map_err(|error| {
            let found = format!("line {number}, which is not one: {error}");
            EvaluationError::content(path, "the metrics of a step in each line", found, lines::ADVICE)
        })?;
        while steps.last().is_some_and(|last| last.step >= step.step) {
            steps.pop();
        }
        steps.push(step);
    }
    Ok(steps)
}

/// How many steps make an epoch, where a second epoch has begun.
pub(super) fn steps_per_epoch(steps: &[Step]) -> Option<u64> {
    let later = steps.iter().find(|step| step.epoch > 1)?;
    let exact = later.step.checked_sub(1).filter(|before| before % (later.epoch - 1) == 0)?;
    Some(exact / (later.epoch - 1)).filter(|steps| *steps > 0)
}

/// A line's text for the tests of other files.
#[cfg(test)]
pub(super) fn line(step: u64, epoch: u64, loss: f64, collapse_level: f64) -> String {
    let value = serde_json::json!({
        "step": step, "epoch": epoch, "loss": loss, "collapse_level": collapse_level, "learning_rate": 0.05,
        "gradient_norm": 0.4, "images_per_second": 1000.0, "generation": 1, "seconds": {
            "data": 0.01, "forward": 0.04, "backward": 0.03, "all_reduce": 0.01, "update": 0.005, "step": 0.1
        }
    });
    format!("{value}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check_damaged;
    use std::fs;

    fn read_text(text: &[u8]) -> Result<Vec<Step>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        fs::write(&path, text).unwrap();
        read(&path).map_err(|error| error.to_string())
    }

    /// `tests/fixtures/metrics.jsonl` holds lines of a real run.
    #[test]
    fn lines_of_a_run_are_read() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/metrics.jsonl");
        let steps = read(&path).unwrap();
        assert_eq!((steps[0].step, steps[0].epoch, steps[0].loss), (1, 1, 0.009612826630473137));
        assert_eq!(steps[0].seconds.forward, 0.210733578);
        assert_eq!(steps_per_epoch(&steps), Some(16));
        for step in &steps {
            let sum: f64 = step.seconds.parts().iter().sum();
            assert!((sum - step.seconds.step).abs() < 1e-9, "{step:?}");
        }
    }

    #[test]
    fn what_is_no_step_is_passed_over() {
        let [one, two, again] = [line(1, 1, 0.5, 1.0), line(2, 1, 0.25, 1.0), line(2, 1, 0.125, 1.0)];
        let other = "{\"evaluation\":\"knn\",\"step\":1,\"top1\":0.5}\n";
        let skipped = "{\"step\":2,\"loss\":null,\"skipped\":true}\n";
        let torn = &two[..40];
        for (text, expected) in [
            (format!("{one}{two}"), vec![0.5, 0.25]),
            (format!("{one}{other}{two}"), vec![0.5, 0.25]),
            (format!("{one}{skipped}"), vec![0.5]),
            (format!("{one}{torn}"), vec![0.5]),
            (format!("{one}{two}{again}"), vec![0.5, 0.125]),
            (format!("{one}\n"), vec![0.5]),
            (String::new(), vec![]),
        ] {
            let losses: Vec<f64> = read_text(text.as_bytes()).unwrap().iter().map(|step| step.loss).collect();
            assert_eq!(losses, expected, "{text}");
        }
    }

    #[test]
    fn damage_is_named_by_its_line() {
        let one = line(1, 1, 0.5, 1.0);
        for (text, phrases) in [
            (format!("{one}broken\n{one}").into_bytes(), ["line 2", "expected"]),
            (format!("{one}{{\"loss\":1}}\n").into_bytes(), ["line 2", "missing field"]),
            ([one.as_bytes(), b"\xff\xfe\n", one.as_bytes()].concat(), ["line 2", "not JSON"]),
        ] {
            let error = read_text(&text).unwrap_err();
            for phrase in phrases.into_iter().chain(["metrics.jsonl"]) {
                assert!(error.contains(phrase), "{error:?} lacks {phrase:?}");
            }
        }
    }

    #[test]
    fn the_length_of_an_epoch_shows_in_the_second() {
        let steps = |epochs: &[u64]| -> Vec<Step> {
            let lines = epochs.iter().zip(1..).map(|(epoch, step)| line(step, *epoch, 0.0, 1.0));
            lines.map(|line| serde_json::from_str(&line).unwrap()).collect()
        };
        assert_eq!(steps_per_epoch(&steps(&[1, 1, 1, 2, 2])), Some(3));
        assert_eq!(steps_per_epoch(&steps(&[1, 1])), None);
        assert_eq!(steps_per_epoch(&steps(&[1, 1, 1, 2])[3..]), Some(3));
        assert_eq!(steps_per_epoch(&[]), None);
    }

    #[test]
    fn a_damaged_file_never_panics() {
        let content = include_bytes!("../../tests/fixtures/metrics.jsonl");
        check_damaged("metrics.jsonl", content, read);
    }
}
