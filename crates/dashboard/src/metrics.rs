//! What `metrics.jsonl` says.

use coordinator::{Evaluated, StepSeconds};
use serde::{Deserialize, Deserializer, Serialize};

/// A committed step: a line of the file, to the last digit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Steps committed, this one included.
    pub step: u64,
    /// The pass over the data that it belongs to, from 1.
    pub epoch: u64,
    /// Mean over all shards of -cos(p, z), between -1 and 1. Like the others, no number where the step was skipped.
    #[serde(deserialize_with = "number_or_nothing")]
    pub loss: f64,
    /// Near 1 healthy, 0 collapsed.
    #[serde(deserialize_with = "number_or_nothing")]
    pub collapse_level: f64,
    /// That of the backbone.
    pub learning_rate: f64,
    /// Of the folded gradient.
    #[serde(deserialize_with = "number_or_nothing")]
    pub gradient_norm: f64,
    /// Whether the step was left out because something was not finite.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// Images of the batch over the seconds of the whole step; not a number where that took no time.
    #[serde(deserialize_with = "number_or_nothing")]
    pub images_per_second: f64,
    /// Where the first worker's time went.
    pub seconds: StepSeconds,
    /// The workers that made it.
    pub generation: u64,
}

/// JSON has no infinity, and writes null for it.
fn number_or_nothing<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// A line of the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Metric {
    Step(Step),
    Evaluated(Evaluated),
}

impl Metric {
    /// What `line` says; `None` if it is neither a step nor an evaluation.
    pub(crate) fn parse(line: &[u8]) -> Option<Metric> {
        serde_json::from_slice(line)
            .map(Metric::Step)
            .or_else(|_| serde_json::from_slice(line).map(Metric::Evaluated))
            .ok()
    }
}

#[cfg(test)]
pub(crate) fn step(step: u64) -> Step {
    let seconds =
        StepSeconds { data: 0.01, forward: 0.03, backward: 0.04, all_reduce: 0.01, update: 0.005, step: 0.1 };
    Step {
        step,
        epoch: (step - 1) / 10 + 1,
        loss: -0.001 * step as f64,
        collapse_level: 0.9,
        learning_rate: 0.1 / step as f64,
        gradient_norm: 0.4 + (step % 7) as f64,
        skipped: false,
        images_per_second: 1280.0,
        seconds,
        generation: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_steps_or_evaluations_or_passed_over() {
        let text = serde_json::to_string(&step(3)).unwrap();
        assert_eq!(Metric::parse(text.as_bytes()), Some(Metric::Step(step(3))));
        let evaluated = r#"{"evaluation":"knn","step":3,"figures":{"top1":0.5},"card":"a.json"}"#;
        let Some(Metric::Evaluated(evaluated)) = Metric::parse(evaluated.as_bytes()) else { panic!() };
        assert_eq!((evaluated.step, evaluated.figures["top1"]), (3, 0.5));
        for other in ["", "{}", "[1]", "{\"step\":1}", "\u{1}", &text[..40]] {
            assert_eq!(Metric::parse(other.as_bytes()), None, "{other:?}");
        }
        let skipped = text.replace("\"loss\":-0.003", "\"skipped\":true,\"loss\":null");
        let Some(Metric::Step(skipped)) = Metric::parse(skipped.as_bytes()) else { panic!("{skipped}") };
        assert!(skipped.skipped && skipped.loss.is_nan());
        let timeless = text.replace("1280.0", "null");
        let Some(Metric::Step(timeless)) = Metric::parse(timeless.as_bytes()) else { panic!() };
        assert!(timeless.images_per_second.is_nan());
    }

    proptest! {
        /// A value that is written and read is the same value.
        #[test]
        fn no_digit_is_lost(loss in any::<f64>().prop_filter("finite", |value| value.is_finite())) {
            let written = Step { loss, ..step(1) };
            let text = serde_json::to_vec(&written).unwrap();
            prop_assert_eq!(Metric::parse(&text), Some(Metric::Step(written)));
        }
    }
}
