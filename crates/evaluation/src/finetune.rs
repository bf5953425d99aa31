//! Fine-tuning: the whole network trained with labels, from the weights of pre-training on.
//!
//! It tells how good a start the weights are, with all labels or with a few: the semi-supervised protocol of
//! SimCLR (Chen et al. 2020, arXiv 2002.05709) and its followers. Whoever wants to know what the frozen features
//! are worth needs the linear evaluation; its figures and these are not comparable.

use std::f64::consts::PI;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use simsiam::{FineTuner, State, TuningRates};

use crate::card::{Card, DataIdentity, Measurement, Seconds};
use crate::error::EvaluationError;
use crate::features::{Extractor, InputIdentity};
use crate::job::{Job, Phase, Progress};
use crate::labelled::identify;
use crate::scores::{Answer, Scores};
use crate::training_images::{Augmentation, TrainingImages};

/// How the network is fine-tuned: all of the protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneSettings {
    /// How many of each class's training images are learnt from, in percent.
    pub labels_percent: f64,
    /// Images in a step. What does not fill a step is left out of its epoch; more than there are images is all.
    pub batch: usize,
    /// Passes over these images.
    pub epochs: u64,
    /// The backbone's learning rate at the first step; it follows half a cosine, step by step.
    pub backbone_learning_rate: f64,
    /// The classifier's learning rate at the first step, likewise.
    pub classifier_learning_rate: f64,
    /// Share of the last update that is kept.
    pub momentum: f64,
    /// Pull of every parameter towards zero.
    pub weight_decay: f64,
    /// How images are changed.
    pub augmentation: Augmentation,
    /// Which images, the classifier's first weights, the order and the views are functions of this number.
    pub seed: u64,
}

/// How the training went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneFit {
    /// Images in each step.
    pub images_per_step: usize,
    /// Steps of all epochs.
    pub steps: u64,
    /// For each epoch, the mean over its steps of the loss before the step.
    pub losses: Vec<f64>,
    /// BLAKE3 of what came of it: position, weights, running statistics and momentum, in hexadecimal.
    pub tuned_state_blake3: String,
}

impl Default for FinetuneSettings {
    /// SwAV's rates for a tenth of the labels (Caron et al. 2020, arXiv 2006.09882), with batches that a few
    /// thousand images fill often enough.
    fn default() -> Self {
        FinetuneSettings {
            labels_percent: 100.0,
            batch: 64,
            epochs: 20,
            backbone_learning_rate: 0.01,
            classifier_learning_rate: 0.2,
            momentum: 0.9,
            weight_decay: 0.0,
            augmentation: Augmentation::default(),
            seed: 0,
        }
    }
}

/// BatchNorm has no variance of a single image.
const LEAST_BATCH: usize = 2;

impl FinetuneSettings {
    fn check(&self) -> Result<(), EvaluationError> {
        let refuse = |name, expected: &str, found: f64| Err(EvaluationError::setting(name, expected, &found));
        if !(self.labels_percent > 0.0 && self.labels_percent <= 100.0) {
            return refuse("labels", "a percentage above 0, up to 100", self.labels_percent);
        }
        if self.batch < LEAST_BATCH {
            return Err(EvaluationError::setting("batch", "at least 2 images, for BatchNorm", &self.batch));
        }
        if self.epochs == 0 {
            return Err(EvaluationError::setting("epochs", "at least 1", &self.epochs));
        }
        let rates = [
            ("learning rate", self.backbone_learning_rate),
            ("classifier learning rate", self.classifier_learning_rate),
        ];
        for (name, rate) in rates {
            if !(rate.is_finite() && rate > 0.0) {
                return refuse(name, "a number above 0", rate);
            }
        }
        if !(0.0..1.0).contains(&self.momentum) {
            return refuse("momentum", "0 or more, below 1", self.momentum);
        }
        if !(0.0..=1.0).contains(&self.weight_decay) {
            return refuse("weight decay", "0 to 1", self.weight_decay);
        }
        self.augmentation.check()
    }

    /// The rates after `step` of `steps` steps.
    fn rates(&self, step: u64, steps: u64) -> TuningRates {
        let share = 0.5 * (1.0 + (PI * step as f64 / steps as f64).cos());
        TuningRates {
            backbone: share * self.backbone_learning_rate,
            classifier: share * self.classifier_learning_rate,
        }
    }

    fn images_per_step(&self, images: usize) -> usize {
        self.batch.min(images)
    }

    /// Trains, and gives each epoch's mean loss. The pair is the indices of the images to learn from, and the
    /// labels of all images.
    fn tune(
        &self,
        tuner: &FineTuner,
        state: &mut State,
        images: &TrainingImages,
        (indices, labels): (&[u64], &[u8]),
        side_px: u32,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<f64>, EvaluationError> {
        let images_per_step = self.images_per_step(indices.len());
        let steps_per_epoch = (indices.len() / images_per_step) as u64;
        let steps = steps_per_epoch * self.epochs;
        let mut losses = Vec::new();
        for epoch in 0..self.epochs {
            let mut sum = 0.0;
            for (step, batch) in (1..).zip(images.order(epoch, indices).chunks_exact(images_per_step)) {
                let batch_labels: Vec<u8> = batch.iter().map(|index| labels[*index as usize]).collect();
                let (views, rates) = (images.render(epoch, batch), self.rates(state.step, steps));
                sum += tuner
                    .step(state, views, side_px as usize, &batch_labels, rates)
                    .map_err(|_| self.diverged(epoch + 1, step))?;
                let per_step = images_per_step as u64;
                progress(Phase::FineTuning, state.step * per_step, steps * per_step);
            }
            losses.push(sum / steps_per_epoch as f64);
        }
        Ok(losses)
    }

    fn diverged(&self, epoch: u64, step: u64) -> EvaluationError {
        let (backbone, classifier) = (self.backbone_learning_rate, self.classifier_learning_rate);
        let advice =
            format!("lower the learning rates, now {backbone} and, for the classifier, {classifier}");
        EvaluationError::Diverged { epoch, step, advice }
    }
}

impl Job<'_> {
    /// Fine-tunes the whole network on the training part, or some of it, and judges it once on the test part.
    ///
    /// # Errors
    /// Images that cannot be used, a share of labels that leaves a class without, settings out of range, a
    /// training that diverges.
    pub fn finetune(
        &self,
        settings: &FinetuneSettings,
        progress: &mut Progress<'_>,
    ) -> Result<Card, EvaluationError> {
        settings.check()?;
        let parts = self.open_parts()?;
        let labelled = parts.train.share(&parts.train_name(), settings.labels_percent, settings.seed)?;
        let views = &self.encoder.recipe().views;
        let input = InputIdentity::of(views, parts.train.images().geometry(), self.input);
        let classes = parts.train.class_names().len();
        let model = &self.encoder.recipe().model;
        let tuner = FineTuner::new(model, classes, settings.momentum, settings.weight_decay, self.device);

        let start = Instant::now();
        let images = TrainingImages::new(parts.train.images(), &input, &settings.augmentation, settings.seed);
        let mut state = tuner.initial(self.encoder.state(), settings.seed);
        let learnt_from = (&labelled[..], parts.train.labels());
        let losses = settings.tune(&tuner, &mut state, &images, learnt_from, input.side_px, progress)?;

        // The one look at the test set.
        let images = parts.test.images();
        let tuned = Extractor::of_tuned(views, (&state, tuner.frozen(&state)), images, self.input);
        let mut test_progress = |done| progress(Phase::TestAnswers, done, images.len());
        let looked = tuned.features("the test part", &parts.test.indices(), &mut test_progress);
        let (logits, frozen) = looked.map_err(|error| match error {
            EvaluationError::NotFinite { .. } => {
                settings.diverged(settings.epochs, state.step / settings.epochs)
            }
            other => other,
        })?;
        let truth = parts.test.labels();
        let answer = |(row, label): (usize, &u8)| {
            let logits: Vec<f64> = logits.row(row).iter().map(|logit| f64::from(*logit)).collect();
            Answer::from_scores(&logits, *label)
        };
        let answers: Vec<Answer> = truth.iter().enumerate().map(answer).collect();

        let images_per_step = settings.images_per_step(labelled.len());
        let tuned_state_blake3 = state.hash().to_string();
        let fit = FinetuneFit { images_per_step, steps: state.step, losses, tuned_state_blake3 };
        let scores = Scores::new(&answers, truth, parts.test.class_names());
        let measurement = Measurement::Finetune { settings: settings.clone(), fit, scores };
        let mut data: DataIdentity = parts.identity(self.data);
        data.parts.insert("train".to_owned(), identify(parts.train.images(), labelled.iter().copied()));
        let seconds = Seconds { features: 0.0, rest: start.elapsed().as_secs_f64() };
        let frozen = [("test".to_owned(), frozen)].into();
        Ok(self.card(data, tuned.input().clone(), frozen, measurement, seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scene;

    fn ignore(_: Phase, _: u64, _: u64) {}

    fn card(scene: &Scene, settings: &FinetuneSettings) -> (Card, FinetuneFit, Scores) {
        let card = scene.job().finetune(settings, &mut ignore).unwrap();
        let Measurement::Finetune { fit, scores, .. } = card.measurement.clone() else { panic!("{card:?}") };
        (card, fit, scores)
    }

    #[test]
    fn tuning_beats_chance_and_is_computed_again() {
        let scene = Scene::new();
        let settings = FinetuneSettings { epochs: 4, ..FinetuneSettings::default() };
        let (card, fit, scores) = card(&scene, &settings);
        assert_eq!((fit.images_per_step, fit.steps, fit.losses.len()), (64, 4 * 15, 4));
        assert!(fit.losses[3] < 0.9 * fit.losses[0], "{fit:?}");
        assert!(scores.top1.low_95 > 0.2 && scores.top1.of == 500, "{:?}", scores.top1);
        // What was judged is what came of the training, and not the weights that it began with.
        assert_eq!(card.frozen["test"].state_blake3_before, fit.tuned_state_blake3);
        assert_ne!(fit.tuned_state_blake3, card.weights.state_blake3);

        let path = card.write(&scene.folder.path().join("run/evaluations")).unwrap();
        assert!(path.to_str().unwrap().contains("finetune-step-000007"), "{path:?}");
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        alone.install(|| {
            assert_eq!(scene.job().verify(&Card::read(&path).unwrap(), &mut ignore).unwrap(), []);
        });
    }

    #[test]
    fn few_labels_are_one_batch_and_the_card_says_which() {
        let settings = FinetuneSettings { labels_percent: 1.0, epochs: 1, ..FinetuneSettings::default() };
        let (card, fit, _) = card(&Scene::new(), &settings);
        assert_eq!((fit.images_per_step, fit.steps), (10, 1));
        assert_eq!(card.data.parts["train"].images, 10);
    }

    #[test]
    fn what_cannot_be_trained_is_refused_with_a_sentence() {
        let scene = Scene::new();
        let default = FinetuneSettings::default;
        for (settings, phrase) in [
            (FinetuneSettings { labels_percent: 0.0, ..default() }, "labels: expected a percentage above 0"),
            (FinetuneSettings { labels_percent: 101.0, ..default() }, "found 101"),
            (FinetuneSettings { labels_percent: f64::NAN, ..default() }, "found NaN"),
            (FinetuneSettings { batch: 1, ..default() }, "batch: expected at least 2"),
            (FinetuneSettings { epochs: 0, ..default() }, "epochs: expected at least 1"),
            (FinetuneSettings { backbone_learning_rate: -1.0, ..default() }, "learning rate: expected"),
            (FinetuneSettings { classifier_learning_rate: 0.0, ..default() }, "classifier learning rate"),
            (FinetuneSettings { momentum: 1.0, ..default() }, "momentum: expected"),
            (
                FinetuneSettings { weight_decay: -0.1, ..default() },
                "weight decay: expected 0 to 1, found -0.1",
            ),
            (
                FinetuneSettings { backbone_learning_rate: 1e30, ..default() },
                "step 2 of epoch 1: the loss or its gradient is not finite; lower the learning rates, now 1",
            ),
        ] {
            let error = scene.job().finetune(&settings, &mut ignore).unwrap_err().to_string();
            assert!(error.contains(phrase), "{error:?} lacks {phrase:?}");
        }
    }
}
