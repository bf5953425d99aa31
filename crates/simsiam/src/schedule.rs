//! The learning rate of every step: linear warmup, then half a cosine over the rest of the run.

use std::f64::consts::PI;

use recipe::LearningRateChange;

/// Learning rates as a function of the step. Covers the whole run: at the last step the cosine has all but
/// reached zero, and never before.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    peak: f64,
    warmup_steps: u64,
    total_steps: u64,
    fixed_predictor: bool,
    pub(crate) changes: Vec<LearningRateChange>,
}

/// The learning rates of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRates {
    /// For backbone and projector.
    pub encoder: f64,
    /// For the predictor: constant if the recipe says so.
    pub predictor: f64,
}

impl Schedule {
    /// The schedule of a run over `images` images.
    pub fn new(recipe: &recipe::Recipe, images: u64) -> Self {
        let steps_per_epoch = recipe.steps_per_epoch(images);
        Schedule {
            // The linear scaling rule (Goyal et al. 2017).
            peak: recipe.optimizer.base_learning_rate * f64::from(recipe.training.batch) / 256.0,
            warmup_steps: (recipe.optimizer.warmup_epochs * steps_per_epoch as f64).round() as u64,
            total_steps: recipe.total_steps(images),
            fixed_predictor: recipe.optimizer.fixed_predictor_learning_rate,
            changes: recipe.optimizer.learning_rate_changes.clone(),
        }
    }

    /// Steps in the whole run.
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// The rates for the update that follows `step` finished steps.
    pub fn at(&self, step: u64) -> LearningRates {
        let encoder = if step < self.warmup_steps {
            self.peak * (step + 1) as f64 / self.warmup_steps as f64
        } else {
            let length = (self.total_steps - self.warmup_steps.min(self.total_steps)).max(1);
            let progress = ((step - self.warmup_steps) as f64 / length as f64).min(1.0);
            self.peak * 0.5 * (1.0 + (PI * progress).cos())
        };
        let predictor = if self.fixed_predictor { self.peak } else { encoder };
        let changes = self.changes.iter().filter(|change| change.after_step <= step);
        let factor: f64 = changes.map(|change| change.factor).product();
        LearningRates { encoder: encoder * factor, predictor: predictor * factor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(warmup_epochs: f64, fixed: bool) -> Schedule {
        let set = [
            "data.images=1024".to_string(),
            "training.batch=128".into(),
            "training.epochs=10".into(),
            "optimizer.base_learning_rate=0.2".into(),
            format!("optimizer.warmup_epochs={warmup_epochs:?}"),
            format!("optimizer.fixed_predictor_learning_rate={fixed}"),
        ];
        Schedule::new(&recipe::Recipe::from_toml(recipe::QUICKSTART, &set).unwrap(), 1024)
    }

    #[test]
    fn the_cosine_spans_the_whole_run() {
        let s = schedule(0.0, false);
        assert_eq!(s.total_steps(), 80);
        for (step, expected) in [(0, 0.1), (40, 0.05), (20, 0.085_355), (79, 0.1 * 0.000_385_5)] {
            assert!((s.at(step).encoder - expected).abs() < 1e-6, "{step}: {:?}", s.at(step));
        }
        assert!((0..80).all(|step| s.at(step).encoder > 0.0 && s.at(step).predictor == s.at(step).encoder));
    }

    #[test]
    fn warmup_rises_to_the_peak_and_the_predictor_stays() {
        let s = schedule(2.0, true);
        for (step, expected) in [(0, 0.1 / 16.0), (7, 0.05), (15, 0.1), (16, 0.1), (48, 0.05)] {
            assert!((s.at(step).encoder - expected).abs() < 1e-12, "{step}: {:?}", s.at(step));
            assert_eq!(s.at(step).predictor, 0.1);
        }
    }

    #[test]
    fn changes_hold_from_their_step_on() {
        let plain = schedule(2.0, true);
        let change = |after_step, factor| LearningRateChange { after_step, factor };
        let changed = Schedule { changes: vec![change(40, 0.5), change(60, 0.25)], ..plain.clone() };
        for (step, factor) in [(0, 1.0), (39, 1.0), (40, 0.5), (59, 0.5), (60, 0.125), (79, 0.125)] {
            let (plain, changed) = (plain.at(step), changed.at(step));
            assert_eq!(changed.encoder, plain.encoder * factor, "{step}");
            assert_eq!(changed.predictor, plain.predictor * factor, "{step}");
        }
    }
}
