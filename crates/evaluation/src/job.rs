//! The evaluations from beginning to end: images in, card out.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use dataset::{Images, Split};
use recipe::{Data, Votes};
use serde::{Deserialize, Serialize};
use simsiam::Device;

use crate::card::{
    Card, DataIdentity, Difference, FoldResult, Measurement, Seconds, VotesScores, differences,
};
use crate::data_source::DataSource;
use crate::encoder::Encoder;
use crate::error::EvaluationError;
use crate::features::{Extractor, Frozen, Input, InputIdentity};
use crate::findings::Findings;
use crate::folds::{Folds, mean_and_std};
use crate::knn::{self, Neighbours};
use crate::labelled::{Labelled, identify, spread};
use crate::matrix::Matrix;
use crate::neighbour_picture;
use crate::probe::{self, ProbeSettings};
use crate::quality::Quality;
use crate::scores::{Answer, Scores};

/// What is evaluated on what, and where.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// The weights.
    pub encoder: &'a Encoder,
    /// The images; those of the recipe, or others.
    pub data: &'a Data,
    /// At which size they enter the network.
    pub input: Input,
    /// Where pictures of folders are packed and synthetic ones are drawn.
    pub cache_dir: &'a Path,
    /// Where the network computes.
    pub device: &'a Device,
}

/// What a job is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Features of the labelled images that a classifier learns from; counts images.
    TrainFeatures,
    /// Features of the images that it is judged on; counts images.
    TestFeatures,
    /// The search for neighbours; counts queries.
    Neighbours,
    /// The fits of the probe; counts fits.
    Probe,
    /// Features of images whose labels nobody asks for; counts images.
    Features,
    /// Features of two views of each image; counts images.
    ViewFeatures,
    /// The training of a linear layer on features of augmented images; counts images, over all epochs.
    LinearTraining,
    /// The training of the whole network with labels; counts images, over all epochs.
    FineTuning,
    /// The answers of the tuned network on the test part; counts images.
    TestAnswers,
}

/// Told of the phase, and how much of how much is done.
pub type Progress<'a> = dyn FnMut(Phase, u64, u64) + 'a;

/// How label-free quality is measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QualitySettings {
    /// How many images to look at, evenly spread over the data; all of them if there are fewer.
    pub most_images: u64,
    /// The views are a function of this number and the recipe.
    pub seed: u64,
}

impl Default for QualitySettings {
    /// RankMe needs more images than features, and with 4,096 the other figures hold to the third digit.
    fn default() -> Self {
        QualitySettings { most_images: 4096, seed: 0 }
    }
}

impl Job<'_> {
    /// Classifies the test part by its nearest neighbours in the training part, once for each of `votes`, and draws
    /// some of them.
    ///
    /// # Errors
    /// Images that cannot be used, fewer of them than neighbours, settings out of range.
    pub fn knn(&self, votes: &[Votes], progress: &mut Progress<'_>) -> Result<Findings, EvaluationError> {
        let parts = self.open_parts()?;
        let name = parts.train_name();
        votes.iter().try_for_each(|votes| knn::check(votes, parts.train.labels().len(), &name))?;
        let Some(k) = votes.iter().map(|votes| votes.k).max() else {
            let (expected, found) = ("at least one pair of k and temperature".into(), "none".into());
            return Err(EvaluationError::Setting { name: "votes", expected, found });
        };
        let mut features = self.part_features(&parts, progress)?;

        let start = Instant::now();
        features.matrices = features.matrices.map(Matrix::with_unit_rows);
        let [bank, queries] = &features.matrices;
        let of = queries.rows() as u64;
        let mut search_progress = |done| progress(Phase::Neighbours, done as u64, of);
        let neighbours = Neighbours::search(bank, queries, k, &mut search_progress);
        let (labels, truth, names) = (parts.train.labels(), parts.test.labels(), parts.test.class_names());
        let result = |votes: &Votes| {
            let answers = neighbours.answers(votes, labels, truth, names.len());
            VotesScores { votes: *votes, scores: Scores::new(&answers, truth, names) }
        };
        let measurement = Measurement::Knn { results: votes.iter().map(result).collect() };
        let views = &self.encoder.recipe().views;
        let picture = Some(neighbour_picture::draw(&parts.train, &parts.test, &neighbours, views));
        Ok(Findings { card: self.classifier_card(&parts, features, measurement, start), picture })
    }

    /// Classifies the test part by a logistic regression on the features of the training part.
    ///
    /// # Errors
    /// Images that cannot be used, too few of a class, settings out of range.
    pub fn linear(
        &self,
        settings: &ProbeSettings,
        progress: &mut Progress<'_>,
    ) -> Result<Card, EvaluationError> {
        let parts = self.open_parts()?;
        let (name, labels, names) = (parts.train_name(), parts.train.labels(), parts.test.class_names());
        // Refused now rather than after the features, which take most of the time.
        settings.check()?;
        settings.split(&name, labels, names.len())?;
        let features = self.part_features(&parts, progress)?;

        let start = Instant::now();
        let [train, test] = &features.matrices;
        let fits = settings.l2_grid.len() as u64 + 1;
        let mut fit_progress = |done| progress(Phase::Probe, done as u64, fits);
        let (probe, fit) = probe::fit(settings, &name, train, labels, names.len(), &mut fit_progress)?;
        // The one look at the test set.
        let scores = Scores::new(&probe.answers(test, parts.test.labels()), parts.test.labels(), names);
        let measurement = Measurement::Linear { settings: settings.clone(), fit, scores };
        Ok(self.classifier_card(&parts, features, measurement, start))
    }

    /// STL-10's official protocol: a probe for each of its ten folds of 1,000 training images, all judged on
    /// the whole test part.
    ///
    /// # Errors
    /// As [`Job::linear`]; data that is not STL-10, or whose folds cannot be used.
    pub fn linear_folds(
        &self,
        settings: &ProbeSettings,
        progress: &mut Progress<'_>,
    ) -> Result<Card, EvaluationError> {
        let Data::Stl10 { path, .. } = self.data else {
            let found = DataSource::naming(self.data);
            let found = found.map_or_else(|| "drawn images".to_owned(), |found| found.to_string());
            let expected = "STL-10, which has them, as stl10:FOLDER".into();
            return Err(EvaluationError::Setting { name: "folds", expected, found });
        };
        let parts = self.open_parts()?;
        let (name, classes, truth) =
            (parts.train_name(), parts.test.class_names().len(), parts.test.labels());
        let folds = Folds::read(path, parts.train.labels().len())?;
        let labels_of =
            |rows: &[usize]| -> Vec<u8> { rows.iter().map(|row| parts.train.labels()[*row]).collect() };
        settings.check()?;
        for rows in &folds.rows {
            settings.split(&name, &labels_of(rows), classes)?;
        }
        let features = self.part_features(&parts, progress)?;

        let start = Instant::now();
        let [train, test] = &features.matrices;
        let fits = settings.l2_grid.len() + 1;
        let mut results = Vec::with_capacity(folds.rows.len());
        for (number, rows) in folds.rows.iter().enumerate() {
            let (done_before, of) = (number * fits, (folds.rows.len() * fits) as u64);
            let mut fit_progress = |done| progress(Phase::Probe, (done_before + done) as u64, of);
            let (train, labels) = (train.select(rows), labels_of(rows));
            let (probe, fit) = probe::fit(settings, &name, &train, &labels, classes, &mut fit_progress)?;
            results.push(FoldResult { top1: Answer::top1(&probe.answers(test, truth)), fit });
        }
        let (mean, std) = mean_and_std(&results.iter().map(|fold| fold.top1.share).collect::<Vec<_>>());
        let (settings, folds_blake3) = (settings.clone(), folds.blake3);
        let measurement = Measurement::LinearFolds { settings, folds_blake3, folds: results, mean, std };
        Ok(self.classifier_card(&parts, features, measurement, start))
    }

    /// Judges the features of the unlabelled images without labels.
    ///
    /// # Errors
    /// Images that cannot be used, fewer than 2 of them.
    pub fn quality(
        &self,
        settings: &QualitySettings,
        progress: &mut Progress<'_>,
    ) -> Result<Card, EvaluationError> {
        let images = Images::open(self.data, self.cache_dir)?;
        let indices = spread(images.len(), settings.most_images);
        let count = indices.len() as u64;
        if count < 2 {
            let (expected, advice) = ("at least 2 images to compare", "give more images");
            return Err(EvaluationError::images(images.name(), expected, count.to_string(), advice));
        }
        let start = Instant::now();
        let extractor = Extractor::new(self.encoder, &images, self.input, self.device);
        let mut plain_progress = |done| progress(Phase::Features, done, count);
        let (features, frozen) = extractor.features(images.name(), &indices, &mut plain_progress)?;
        let mut view_progress = |done| progress(Phase::ViewFeatures, done, count);
        let views = extractor.view_features(&indices, settings.seed, &mut view_progress);
        let features_seconds = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let quality = Quality::of(&features, views);
        let views = self.encoder.recipe().views.clone();
        let measurement = Measurement::Quality { settings: settings.clone(), views, quality };
        let data = DataIdentity {
            source: self.data.clone(),
            name: images.name().to_owned(),
            parts: [("unlabelled".to_owned(), identify(&images, indices.into_iter()))].into(),
        };
        let frozen = [("unlabelled".to_owned(), frozen)].into();
        let seconds = Seconds { features: features_seconds, rest: start.elapsed().as_secs_f64() };
        Ok(self.card(data, extractor.input().clone(), frozen, measurement, seconds))
    }

    /// Computes a card again with this job's weights and data, and says where the results differ; no
    /// difference means equal. The size at which images enter is the card's. Times, the program's version and
    /// the place of the images are not compared. With other weights nothing is computed.
    ///
    /// # Errors
    /// Those of the evaluation.
    pub fn verify(
        &self,
        card: &Card,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<Difference>, EvaluationError> {
        if card.weights != *self.encoder.identity() {
            return Ok(differences("weights", &card.weights, self.encoder.identity()));
        }
        let job = Job { input: card.input.input, ..*self };
        let again = match &card.measurement {
            Measurement::Knn { results } => {
                let votes: Vec<Votes> = results.iter().map(|result| result.votes).collect();
                job.knn(&votes, progress).map(|findings| findings.card)
            }
            Measurement::Linear { settings, .. } => job.linear(settings, progress),
            Measurement::LinearFolds { settings, .. } => job.linear_folds(settings, progress),
            Measurement::LinearOfficial { settings, .. } => job.linear_official(settings, progress),
            Measurement::Finetune { settings, .. } => job.finetune(settings, progress),
            Measurement::Quality { settings, .. } => job.quality(settings, progress),
        }?;
        Ok(card.differences(&again))
    }

    pub(crate) fn open_parts(&self) -> Result<Parts, EvaluationError> {
        let train = Labelled::open(self.data, Split::Train, self.cache_dir)?;
        let test = Labelled::open(self.data, Split::Test, self.cache_dir)?;
        Ok(Parts { train, test })
    }

    fn part_features(&self, parts: &Parts, progress: &mut Progress<'_>) -> Result<Features, EvaluationError> {
        let start = Instant::now();
        let mut of = |part: &str, phase, labelled: &Labelled| {
            let images = labelled.images();
            let extractor = Extractor::new(self.encoder, images, self.input, self.device);
            let indices = labelled.indices();
            let mut progress = |done| progress(phase, done, images.len());
            let (matrix, frozen) = extractor.features(part, &indices, &mut progress)?;
            Ok::<_, EvaluationError>((matrix, frozen, extractor.input().clone()))
        };
        let (train, train_frozen, _) = of("the training part", Phase::TrainFeatures, &parts.train)?;
        let (test, test_frozen, input) = of("the test part", Phase::TestFeatures, &parts.test)?;
        Ok(Features {
            matrices: [train, test],
            frozen: [("train".to_owned(), train_frozen), ("test".to_owned(), test_frozen)].into(),
            input,
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    fn classifier_card(
        &self,
        parts: &Parts,
        features: Features,
        measurement: Measurement,
        start: Instant,
    ) -> Card {
        let Features { input, frozen, seconds, .. } = features;
        let seconds = Seconds { features: seconds, rest: start.elapsed().as_secs_f64() };
        self.card(parts.identity(self.data), input, frozen, measurement, seconds)
    }

    pub(crate) fn card(
        &self,
        data: DataIdentity,
        input: InputIdentity,
        frozen: BTreeMap<String, Frozen>,
        measurement: Measurement,
        seconds: Seconds,
    ) -> Card {
        Card {
            format: crate::card::FORMAT,
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            weights: self.encoder.identity().clone(),
            data,
            input,
            measurement,
            frozen,
            seconds,
        }
    }
}

/// The labelled parts of a data set.
pub(crate) struct Parts {
    pub(crate) train: Labelled,
    pub(crate) test: Labelled,
}

impl Parts {
    /// For errors.
    pub(crate) fn train_name(&self) -> String {
        format!("{} (train)", self.train.images().name())
    }

    pub(crate) fn identity(&self, source: &Data) -> DataIdentity {
        let of = |part: &Labelled| identify(part.images(), part.indices().into_iter());
        DataIdentity {
            source: source.clone(),
            name: self.test.images().name().to_owned(),
            parts: [("train".to_owned(), of(&self.train)), ("test".to_owned(), of(&self.test))].into(),
        }
    }
}

/// The features of training and test part.
struct Features {
    matrices: [Matrix; 2],
    frozen: BTreeMap<String, Frozen>,
    input: InputIdentity,
    seconds: f64,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::{Scene, quickstart};

    fn ignore(_: Phase, _: u64, _: u64) {}

    const VOTES: [Votes; 2] = Votes::USUAL;

    #[test]
    fn a_card_says_everything_and_is_computed_again() {
        let scene = Scene::new();
        let mut seen = Vec::new();
        let mut progress = |phase, done, of| {
            if done == of {
                seen.push((phase, of));
            }
        };
        let findings = scene.job().knn(&VOTES, &mut progress).unwrap();
        assert_eq!(
            seen,
            [(Phase::TrainFeatures, 1000), (Phase::TestFeatures, 500), (Phase::Neighbours, 500)]
        );
        let card = &findings.card;
        assert_eq!(card.weights.checkpoint.as_deref(), Some("step-000007"));
        assert_eq!((card.data.parts["train"].images, card.data.parts["test"].images), (1000, 500));
        assert_eq!((card.input.side_px, card.input.image_px), (32, 96));
        let Measurement::Knn { results } = &card.measurement else { panic!("{card:?}") };
        for (result, votes) in results.iter().zip(VOTES) {
            assert_eq!(result.votes, votes);
            // Even random features tell drawn figures apart better than chance.
            assert!(
                result.scores.top1.low_95 > 0.1 && result.scores.top5.is_some(),
                "{:?}",
                result.scores.top1
            );
        }

        let evaluations = scene.folder.path().join("run/evaluations");
        findings.write(&evaluations).unwrap();
        let summary = findings.summary(&evaluations);
        let read = Card::read(&summary.card).unwrap();
        assert_eq!(read, *card);
        let picture = summary.picture.unwrap();
        assert_eq!(picture, summary.card.with_extension("jpg"));
        assert_eq!(std::fs::read(picture).ok(), findings.picture);
        assert_eq!(scene.job().verify(&read, &mut ignore).unwrap(), []);
    }

    #[test]
    fn what_differs_is_named() {
        let scene = Scene::new();
        let mut card = scene.job().knn(&VOTES[1..], &mut ignore).unwrap().card;
        let Measurement::Knn { results } = &mut card.measurement else { panic!("{card:?}") };
        results[0].scores.top1.correct += 1;
        card.data.parts.get_mut("test").unwrap().blake3 = "00".into();
        card.seconds.features += 1.0;
        let differences = scene.job().verify(&card, &mut ignore).unwrap();
        let fields: Vec<&str> = differences.iter().map(|difference| difference.field.as_str()).collect();
        assert_eq!(fields, ["data.parts.test.blake3", "measurement.results.0.scores.top1.correct"]);

        let random = Encoder::random(&quickstart());
        let differences = Job { encoder: &random, ..scene.job() }.verify(&card, &mut ignore).unwrap();
        let fields: Vec<&str> = differences.iter().map(|difference| difference.field.as_str()).collect();
        assert_eq!(fields, ["weights.checkpoint", "weights.state_blake3", "weights.step"]);
        assert_eq!((&*differences[2].expected, &*differences[2].found), ("7", "0"));
    }

    #[test]
    fn the_probe_is_fitted_and_computed_again() {
        let scene = Scene::new();
        let settings = ProbeSettings { l2_grid: vec![1e-1, 1e-2, 1e-3], ..ProbeSettings::default() };
        let job = Job { input: Input::Native, ..scene.job() };
        let card = job.linear(&settings, &mut ignore).unwrap();
        assert_eq!(card.input.side_px, 96, "native size");
        let Measurement::Linear { fit, scores, .. } = &card.measurement else { panic!("{card:?}") };
        assert!(fit.converged && fit.validation.iter().all(|point| point.converged), "{fit:?}");
        assert_eq!(fit.validation[0].top1.of, 200);
        assert!(scores.top1.low_95 > 0.2, "{:?}", scores.top1);
        // The size is the card's, whatever the job's.
        assert_eq!(scene.job().verify(&card, &mut ignore).unwrap(), []);
    }

    /// The drawn images lie in STL-10's layout: with folds beside them they are a small STL-10.
    #[test]
    fn the_folds_are_averaged_and_computed_again() {
        let mut scene = Scene::new();
        Labelled::open(&scene.data, Split::Train, scene.folder.path()).unwrap();
        let path = scene.folder.path().join("synthetic-128-v2");
        scene.data = Data::Stl10 { path: path.clone(), include_train: false };
        let settings = ProbeSettings { l2_grid: vec![1e-2], ..ProbeSettings::default() };
        let error = scene.job().linear_folds(&settings, &mut ignore).unwrap_err().to_string();
        assert!(error.contains("fold_indices.txt"), "{error}");

        let fold = |first: usize| (first..1000).step_by(3).map(|row| format!("{row} ")).collect::<String>();
        std::fs::write(path.join("fold_indices.txt"), [fold(0), fold(1), fold(2)].join("\n")).unwrap();
        let card = scene.job().linear_folds(&settings, &mut ignore).unwrap();
        let Measurement::LinearFolds { folds, mean, std, .. } = &card.measurement else { panic!("{card:?}") };
        assert_eq!(folds.len(), 3);
        let sum: f64 = folds.iter().map(|fold| fold.top1.share).sum();
        assert!((mean - sum / 3.0).abs() < 1e-12 && *std < 0.1 && folds[0].top1.of == 500, "{mean} {std}");
        assert_eq!(scene.job().verify(&card, &mut ignore).unwrap(), []);
    }

    #[test]
    fn quality_needs_no_labels_and_is_computed_again() {
        let scene = Scene::new();
        let settings = QualitySettings { most_images: 100, ..QualitySettings::default() };
        let card = scene.job().quality(&settings, &mut ignore).unwrap();
        assert_eq!(card.data.parts["unlabelled"].images, 100);
        let Measurement::Quality { quality, .. } = &card.measurement else { panic!("{card:?}") };
        assert!(quality.effective_rank > 1.0 && quality.effective_rank < 128.0, "{quality:?}");
        assert!(quality.alignment > 0.0 && quality.uniformity < 0.0 && quality.spread > 0.0, "{quality:?}");
        assert_eq!(scene.job().verify(&card, &mut ignore).unwrap(), []);
    }

    #[test]
    fn what_cannot_be_evaluated_is_refused_before_any_feature() {
        let scene = Scene::new();
        let mut fail = |_, _, _| panic!("features were computed");
        let too_many = [Votes { k: 1001, temperature: 0.1 }];
        let every = ProbeSettings { validation_one_in: 101, ..ProbeSettings::default() };
        let none = QualitySettings { most_images: 1, seed: 0 };
        let card = |findings: Findings| findings.card;
        for (result, phrase) in [
            (scene.job().knn(&too_many, &mut fail).map(card), "at least k = 1001 labelled images"),
            (scene.job().knn(&[], &mut fail).map(card), "at least one pair of k and temperature"),
            (scene.job().linear(&every, &mut fail), "at least 101 images of each class, found 100"),
            (scene.job().quality(&none, &mut fail), "at least 2 images"),
            (
                scene.job().linear_folds(&ProbeSettings::default(), &mut fail),
                "folds: expected STL-10, which has them, as stl10:FOLDER, found drawn images",
            ),
        ] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(phrase), "{error:?} lacks {phrase:?}");
        }
        // A flat folder of pictures has no labels.
        let data = Data::Folder { path: scene.folder.path().to_owned(), image_px: 32 };
        let error = Job { data: &data, ..scene.job() }.knn(&VOTES, &mut fail).unwrap_err().to_string();
        assert!(
            error.contains("expected labelled pictures in train/CLASS/") && error.contains("quality"),
            "{error}"
        );
    }

    #[test]
    fn weights_that_are_not_finite_are_named() {
        let scene = Scene::new();
        let layout = scene.encoder.layout();
        let mut state = scene.encoder.state().clone();
        Arc::make_mut(&mut state.weights)[0] = f32::NAN;
        let run = scene.folder.path().join("run");
        crate::testing::write_checkpoint_of(layout, &run.join("checkpoints/step-000007"), &state, 7);
        let encoder = Encoder::open(&run, None).unwrap();
        let error =
            Job { encoder: &encoder, ..scene.job() }.knn(&VOTES, &mut ignore).unwrap_err().to_string();
        assert!(
            error.contains("image 0 of the training part are not finite") && error.contains("step 7"),
            "{error}"
        );
    }
}
