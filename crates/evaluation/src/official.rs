//! The official linear evaluation: a linear layer trained step by step on features of augmented images.
//!
//! What SimSiam's authors do (`main_lincls.py` of <https://github.com/facebookresearch/simsiam>, and MoCo's
//! before it): the backbone is frozen, BatchNorm in evaluation mode; each epoch sees every training image in a
//! new random resized crop, flipped or not; the learning rate follows half a cosine, epoch by epoch. Two
//! differences: the test set is looked at once, after the last epoch, where theirs reports the best epoch on
//! it; and its images are scaled to the input's side whole, without the margin that theirs cuts off.

use std::f64::consts::PI;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::card::{Card, Measurement, Seconds};
use crate::error::EvaluationError;
use crate::features::Extractor;
use crate::job::{Job, Parts, Phase, Progress};
use crate::probe::{Classifier, Descent, Optimizer, TRUST};
use crate::scores::Scores;
use crate::training_images::{Augmentation, TrainingImages};

/// How the linear layer is trained: all of the protocol. There is no weight decay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfficialSettings {
    /// The rule of the steps.
    pub optimizer: Optimizer,
    /// The learning rate of the first epoch at a batch of 256; `base_learning_rate * batch / 256` is used.
    pub base_learning_rate: f64,
    /// Images in a step. The last step of an epoch takes what is left; more than there are images is all.
    pub batch: usize,
    /// Passes over the training images.
    pub epochs: u64,
    /// Share of the last update that is kept.
    pub momentum: f64,
    /// How images are changed.
    pub augmentation: Augmentation,
    /// The first weights, the order of the images and their views are functions of this number.
    pub seed: u64,
}

/// How the training went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfficialFit {
    /// Images in each step but an epoch's last.
    pub images_per_step: usize,
    /// Steps of all epochs.
    pub steps: u64,
    /// The learning rate of the first epoch.
    pub learning_rate: f64,
    /// For each epoch, the mean over its images of the loss before their step.
    pub losses: Vec<f64>,
    /// BLAKE3 of the trained weights and biases, as f64 in little-endian order, in hexadecimal.
    pub classifier_blake3: String,
}

impl OfficialSettings {
    /// The authors' settings for ImageNet with each of their optimizers: LARS with batches of 4,096 and a rate
    /// of 0.1 (their code's; the 0.02 of the paper's text gives worse figures), or SGD with batches of 256 and
    /// a rate of 30 (MoCo's).
    pub fn usual(optimizer: Optimizer) -> OfficialSettings {
        let (base_learning_rate, batch) = match optimizer {
            Optimizer::Sgd => (30.0, 256),
            Optimizer::Lars => (0.1, 4096),
        };
        let augmentation = Augmentation::default();
        OfficialSettings {
            optimizer,
            base_learning_rate,
            batch,
            epochs: 90,
            momentum: 0.9,
            augmentation,
            seed: 0,
        }
    }

    fn check(&self) -> Result<(), EvaluationError> {
        let Self { base_learning_rate, batch, epochs, momentum, .. } = *self;
        if !(base_learning_rate.is_finite() && base_learning_rate > 0.0) {
            return Err(EvaluationError::setting("learning rate", "a number above 0", &base_learning_rate));
        }
        if batch == 0 {
            return Err(EvaluationError::setting("batch", "at least 1 image", &batch));
        }
        if epochs == 0 {
            return Err(EvaluationError::setting("epochs", "at least 1", &epochs));
        }
        if !(0.0..1.0).contains(&momentum) {
            return Err(EvaluationError::setting("momentum", "0 or more, below 1", &momentum));
        }
        self.augmentation.check()
    }

    /// LARS moves the weights by a share of their norm, so their logits grow by a factor at most: `e` to the sum
    /// of all rates, of which half a cosine leaves half, times the trust and what momentum makes of a step.
    fn reach_warning(&self, images: usize) -> Option<String> {
        /// A factor of 20, from weights of 0.01: about where the fit on CIFAR-10 begins to be one.
        const LEAST_REACH: f64 = 3.0;
        let rates = 0.5 * self.base_learning_rate * self.epochs as f64 * images as f64 / 256.0;
        let reach = rates * TRUST / (1.0 - self.momentum);
        (self.optimizer == Optimizer::Lars && reach < LEAST_REACH).then(|| {
            format!(
                "{} epochs of {images} images let LARS enlarge the weights by a factor of {:.1} at most, too \
                 little to fit them: use sgd, or a learning rate of {:.1} or more",
                self.epochs,
                reach.exp(),
                self.base_learning_rate * LEAST_REACH / reach
            )
        })
    }

    /// The rate of an epoch, counted from 0, in which a step has that many images.
    fn learning_rate(&self, images_per_step: usize, epoch: u64) -> f64 {
        let first = self.base_learning_rate * images_per_step as f64 / 256.0;
        first * 0.5 * (1.0 + (PI * epoch as f64 / self.epochs as f64).cos())
    }
}

impl Job<'_> {
    /// Classifies the test part by a linear layer that was trained as the authors of SimSiam do it.
    ///
    /// # Errors
    /// Images that cannot be used, settings out of range, a training that diverges.
    pub fn linear_official(
        &self,
        settings: &OfficialSettings,
        progress: &mut Progress<'_>,
    ) -> Result<Card, EvaluationError> {
        settings.check()?;
        let parts = self.open_parts()?;
        if let Some(warning) = settings.reach_warning(parts.train.labels().len()) {
            tracing::warn!("{warning}");
        }
        let start = Instant::now();
        let mut step_seconds = 0.0;
        let extractor = Extractor::new(self.encoder, parts.train.images(), self.input, self.device);
        let before = extractor.before(&parts.train.indices());
        let (classifier, fit) = train(settings, &extractor, &parts, &mut step_seconds, progress)?;
        let train_frozen = extractor.unmoved(&before)?;

        // The one look at the test set.
        let images = parts.test.images();
        let extractor = Extractor::new(self.encoder, images, self.input, self.device);
        let mut test_progress = |done| progress(Phase::TestFeatures, done, images.len());
        let (test, test_frozen) =
            extractor.features("the test part", &parts.test.indices(), &mut test_progress)?;
        let truth = parts.test.labels();
        let scores = Scores::new(&classifier.answers(&test, truth), truth, parts.test.class_names());

        let measurement = Measurement::LinearOfficial { settings: settings.clone(), fit, scores };
        let frozen = [("train".to_owned(), train_frozen), ("test".to_owned(), test_frozen)].into();
        let features = start.elapsed().as_secs_f64() - step_seconds;
        let seconds = Seconds { features, rest: step_seconds };
        Ok(self.card(parts.identity(self.data), extractor.input().clone(), frozen, measurement, seconds))
    }
}

/// Trains the layer. `step_seconds` grows by the time of the steps themselves.
fn train(
    settings: &OfficialSettings,
    extractor: &Extractor,
    parts: &Parts,
    step_seconds: &mut f64,
    progress: &mut Progress<'_>,
) -> Result<(Classifier, OfficialFit), EvaluationError> {
    let (labels, indices) = (parts.train.labels(), parts.train.indices());
    let images =
        TrainingImages::new(parts.train.images(), extractor.input(), &settings.augmentation, settings.seed);
    let images_per_step = settings.batch.min(indices.len());
    let (mut descent, mut losses, mut steps) = (None, Vec::new(), 0);
    for epoch in 0..settings.epochs {
        let rate = settings.learning_rate(images_per_step, epoch);
        let mut sum = 0.0;
        for (step, batch) in images.order(epoch, &indices).chunks(images_per_step).enumerate() {
            let x = extractor.training_features(&images, epoch, batch)?;
            let batch_labels: Vec<u8> = batch.iter().map(|index| labels[*index as usize]).collect();

            let start = Instant::now();
            // The length of the features is known now.
            let descent = descent.get_or_insert_with(|| {
                let first = Classifier::random(parts.test.class_names().len(), x.columns(), settings.seed);
                Descent::new(first, settings.optimizer, settings.momentum)
            });
            let loss = descent.step(&x, &batch_labels, rate);
            *step_seconds += start.elapsed().as_secs_f64();
            if !loss.is_finite() {
                let advice = format!("lower the learning rate, now {}", settings.base_learning_rate);
                return Err(EvaluationError::Diverged { epoch: epoch + 1, step: step as u64 + 1, advice });
            }
            sum += loss * batch.len() as f64;
            steps += 1;
            let done = epoch * indices.len() as u64 + (step * images_per_step + batch.len()) as u64;
            progress(Phase::LinearTraining, done, settings.epochs * indices.len() as u64);
        }
        losses.push(sum / indices.len() as f64);
    }
    let classifier = descent.expect("there is an epoch, and an image in it").into_classifier();
    let bytes: Vec<u8> = classifier.parameters().iter().flat_map(|value| value.to_le_bytes()).collect();
    let fit = OfficialFit {
        images_per_step,
        steps,
        learning_rate: settings.learning_rate(images_per_step, 0),
        losses,
        classifier_blake3: blake3::hash(&bytes).to_string(),
    };
    Ok((classifier, fit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scene;

    fn ignore(_: Phase, _: u64, _: u64) {}

    fn settings() -> OfficialSettings {
        OfficialSettings { epochs: 3, base_learning_rate: 1.0, ..OfficialSettings::usual(Optimizer::Sgd) }
    }

    #[test]
    fn the_layer_is_trained_once_and_computed_again() {
        let scene = Scene::new();
        let mut phases = Vec::new();
        let mut progress = |phase, done, of| {
            if done == of {
                phases.push((phase, of));
            }
        };
        let card = scene.job().linear_official(&settings(), &mut progress).unwrap();
        // The test part is looked at after the last epoch, and not before.
        assert_eq!(phases, [(Phase::LinearTraining, 3000), (Phase::TestFeatures, 500)]);
        let Measurement::LinearOfficial { fit, scores, .. } = &card.measurement else { panic!("{card:?}") };
        assert_eq!((fit.images_per_step, fit.steps, fit.losses.len()), (256, 12, 3));
        assert!(fit.losses[2] < fit.losses[0], "{fit:?}");
        assert_eq!(scores.top1.of, 500);
        assert_eq!(card.frozen["train"].first_features_change, 0.0);
        assert_eq!(card.frozen["train"].state_blake3_after, card.weights.state_blake3);

        let path = card.write(&scene.folder.path().join("run/evaluations")).unwrap();
        assert!(path.to_str().unwrap().contains("linear-official-step-000007"), "{path:?}");
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        alone.install(|| {
            assert_eq!(scene.job().verify(&Card::read(&path).unwrap(), &mut ignore).unwrap(), []);
        });
        let other = OfficialSettings { seed: 1, ..settings() };
        assert_ne!(scene.job().linear_official(&other, &mut ignore).unwrap().measurement, card.measurement);
    }

    #[test]
    fn a_batch_of_more_than_all_images_is_all_of_them() {
        let settings = OfficialSettings { epochs: 1, ..OfficialSettings::usual(Optimizer::Lars) };
        let card = Scene::new().job().linear_official(&settings, &mut ignore).unwrap();
        let Measurement::LinearOfficial { fit, .. } = &card.measurement else { panic!("{card:?}") };
        assert_eq!((fit.images_per_step, fit.steps), (1000, 1));
        assert_eq!(fit.learning_rate, 0.1 * 1000.0 / 256.0);
    }

    #[test]
    fn the_rate_is_half_a_cosine_over_the_epochs() {
        let settings = OfficialSettings::usual(Optimizer::Lars);
        for (epoch, expected) in [(0, 1.6), (45, 0.8), (89, 1.6 * 0.000_304_6)] {
            let rate = settings.learning_rate(4096, epoch);
            assert!((rate - expected).abs() < 1e-6, "{epoch}: {rate}");
        }
    }

    #[test]
    fn lars_on_too_few_images_is_warned_of() {
        let lars = OfficialSettings::usual(Optimizer::Lars);
        let warning = lars.reach_warning(1000).unwrap();
        assert!(warning.contains("a factor of 1.2 at most") && warning.contains("rate of 1.7"), "{warning}");
        assert!(lars.reach_warning(5000).is_some(), "STL-10");
        assert_eq!(lars.reach_warning(50_000), None, "CIFAR-10");
        assert_eq!(OfficialSettings::usual(Optimizer::Sgd).reach_warning(1000), None);
    }

    #[test]
    fn what_cannot_be_trained_is_refused_with_a_sentence() {
        let scene = Scene::new();
        let refuse = |settings: OfficialSettings, phrase: &str| {
            let error = scene.job().linear_official(&settings, &mut ignore).unwrap_err().to_string();
            assert!(error.contains(phrase), "{error:?} lacks {phrase:?}");
        };
        refuse(
            OfficialSettings { base_learning_rate: 0.0, ..settings() },
            "learning rate: expected a number above 0",
        );
        refuse(OfficialSettings { base_learning_rate: f64::NAN, ..settings() }, "found NaN");
        refuse(OfficialSettings { batch: 0, ..settings() }, "batch: expected at least 1 image");
        refuse(OfficialSettings { epochs: 0, ..settings() }, "epochs: expected at least 1");
        refuse(OfficialSettings { momentum: 1.0, ..settings() }, "momentum: expected 0 or more, below 1");
        let broken = OfficialSettings { base_learning_rate: 1e308, ..settings() };
        refuse(broken, "of epoch 1: the loss or its gradient is not finite; lower the learning rate, now 1");
    }
}
