//! The linear probe: a logistic regression on frozen features.
//!
//! How much the weights are held back decides the figure, so it is chosen from a stated grid on a validation
//! split of the training set; then the probe is fitted to the whole training set. Whoever calls [`fit`] has
//! not shown it the test set yet.

mod descent;
mod lbfgs;
mod logistic;

use serde::{Deserialize, Serialize};

pub use descent::Optimizer;
pub(crate) use descent::{Descent, TRUST};
pub use logistic::Classifier;

use crate::error::EvaluationError;
use crate::matrix::Matrix;
use crate::scores::{Answer, Proportion};
use logistic::Until;

/// How the probe is fitted: all of its protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeSettings {
    /// What is done to the features first.
    pub preparation: Preparation,
    /// The weights of `|W|² / 2` beside the mean loss to choose from. scikit-learn's `C` is `1 / (n · l2)`.
    pub l2_grid: Vec<f64>,
    /// One of this many images of each class of the training set is kept for choosing from the grid.
    pub validation_one_in: usize,
    /// Which ones is a function of this number.
    pub seed: u64,
    /// The fit has converged when no component of the gradient of the mean loss is greater.
    pub gradient_tolerance: f64,
    /// A fit that has not converged after so many steps ends, and the result says so.
    pub most_iterations: usize,
}

/// What is done to features before the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preparation {
    /// Each feature to mean 0 and standard deviation 1 over the images that are fitted to.
    Standardise,
    /// Each image's features to length 1.
    UnitLength,
}

/// What was chosen, and how the fits went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fit {
    /// The grid, the strongest first, with each one's performance on the validation split.
    pub validation: Vec<GridPoint>,
    /// The best there; of equals the strongest.
    pub l2: f64,
    /// It lies at an end of the grid, so that a wider one might do better.
    pub l2_at_end_of_grid: bool,
    /// Steps of the last fit, to the whole training set.
    pub iterations: usize,
    /// Whether that fit converged.
    pub converged: bool,
    /// What it minimised: the mean loss over the training set, with `l2 / 2 · |W|²`.
    pub objective: f64,
}

/// One value of the grid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridPoint {
    /// The value.
    pub l2: f64,
    /// Its top-1 on the validation split.
    pub top1: Proportion,
    /// Steps of its fit.
    pub iterations: usize,
    /// Whether it converged.
    pub converged: bool,
}

/// A fitted probe, with what it does to features first.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    prepared: Prepared,
    classifier: Classifier,
}

impl Default for ProbeSettings {
    fn default() -> Self {
        ProbeSettings::usual(Preparation::Standardise)
    }
}

impl ProbeSettings {
    /// The usual protocol: half powers of ten from far too strong to far too weak, a fifth of the training
    /// set for choosing, and a gradient a hundred times smaller than scikit-learn asks for.
    pub fn usual(preparation: Preparation) -> ProbeSettings {
        let strongest = match preparation {
            Preparation::Standardise => 1.0,
            // A standardised image has a squared length of about its number of features, often 512 to
            // 2,048. At length 1 the same logits take a `|W|²` that is greater by as much.
            Preparation::UnitLength => 1e-3,
        };
        let half_powers = [1e0, 3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5];
        ProbeSettings {
            preparation,
            l2_grid: half_powers.map(|power| strongest * power).to_vec(),
            validation_one_in: 5,
            seed: 0,
            gradient_tolerance: 1e-6,
            most_iterations: 2000,
        }
    }

    /// Refuses values out of range.
    pub(crate) fn check(&self) -> Result<(), EvaluationError> {
        let refuse = |name, expected: &str, found: String| {
            Err(EvaluationError::Setting { name, expected: expected.to_owned(), found })
        };
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if self.l2_grid.is_empty() || !self.l2_grid.iter().all(|l2| positive(*l2)) {
            return refuse("l2_grid", "one or more numbers above 0", format!("{:?}", self.l2_grid));
        }
        if self.validation_one_in < 2 {
            return refuse("validation_one_in", "at least 2", self.validation_one_in.to_string());
        }
        if !positive(self.gradient_tolerance) {
            return refuse("gradient_tolerance", "a number above 0", self.gradient_tolerance.to_string());
        }
        if self.most_iterations == 0 {
            return refuse("most_iterations", "at least 1", "0".to_owned());
        }
        Ok(())
    }

    /// Which images of the training set are for fitting and which for choosing: of each class every n-th, in
    /// an order that is a function of the seed and the image's number alone.
    ///
    /// # Errors
    /// A class with too few images to have some in both.
    pub fn split(&self, name: &str, labels: &[u8], classes: usize) -> Result<Split, EvaluationError> {
        let mut split = Split { fitting: Vec::new(), validation: Vec::new() };
        for class in 0..classes {
            let of_class = (0..labels.len()).filter(|index| usize::from(labels[*index]) == class);
            let mut order: Vec<([u8; 32], usize)> = of_class.map(|index| (self.draw(index), index)).collect();
            order.sort_unstable();
            let validation = order.len() / self.validation_one_in;
            if validation == 0 {
                let expected = format!("at least {} images of each class", self.validation_one_in);
                let found = format!("{} of class {class}", order.len());
                let advice = "give more labelled images, or a smaller validation_one_in";
                return Err(EvaluationError::images(name, expected, found, advice));
            }
            let (chosen, rest) = order.split_at(validation);
            split.validation.extend(chosen.iter().map(|(_, index)| index));
            split.fitting.extend(rest.iter().map(|(_, index)| index));
        }
        split.validation.sort_unstable();
        split.fitting.sort_unstable();
        Ok(split)
    }

    fn draw(&self, index: usize) -> [u8; 32] {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..].copy_from_slice(&(index as u64).to_le_bytes());
        blake3::hash(&key).into()
    }

    fn until(&self) -> Until {
        Until { gradient_tolerance: self.gradient_tolerance, most_iterations: self.most_iterations }
    }
}

/// Rows of the training set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// For fitting.
    pub fitting: Vec<usize>,
    /// For choosing from the grid.
    pub validation: Vec<usize>,
}

/// Chooses from the grid on a validation split of the training set, then fits to all of it. `name` is the
/// data set's, for errors; `progress` is told the fits done.
///
/// # Errors
/// Settings out of range, or a class with too few images.
pub fn fit(
    settings: &ProbeSettings,
    name: &str,
    train: &Matrix,
    labels: &[u8],
    classes: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<(Probe, Fit), EvaluationError> {
    settings.check()?;
    let split = settings.split(name, labels, classes)?;
    let validation = choose(settings, &split, train, labels, classes, progress);
    let best = best(&validation);
    let l2 = validation[best].l2;

    let prepared = Prepared::new(settings.preparation, train);
    let mut classifier = Classifier::zeros(classes, train.columns());
    let ending = classifier.fit(&prepared.apply(train), labels, l2, settings.until());
    progress(validation.len() + 1);
    let fit = Fit {
        l2,
        l2_at_end_of_grid: validation.len() > 1 && (best == 0 || best + 1 == validation.len()),
        validation,
        iterations: ending.iterations,
        converged: ending.converged,
        objective: ending.value,
    };
    Ok((Probe { prepared, classifier }, fit))
}

/// Each value of the grid on the validation split, the strongest first: each fit starts where the one before
/// ended, which is near.
fn choose(
    settings: &ProbeSettings,
    split: &Split,
    train: &Matrix,
    labels: &[u8],
    classes: usize,
    progress: &mut dyn FnMut(usize),
) -> Vec<GridPoint> {
    let part = |indices: &[usize]| -> (Matrix, Vec<u8>) {
        (train.select(indices), indices.iter().map(|index| labels[*index]).collect())
    };
    let (fitting, fitting_labels) = part(&split.fitting);
    let (validation, validation_labels) = part(&split.validation);
    let prepared = Prepared::new(settings.preparation, &fitting);
    let (fitting, validation) = (prepared.apply(&fitting), prepared.apply(&validation));

    let mut grid = settings.l2_grid.clone();
    grid.sort_unstable_by(|a, b| b.total_cmp(a));
    let mut classifier = Classifier::zeros(classes, train.columns());
    let mut points = Vec::with_capacity(grid.len());
    for l2 in grid {
        let ending = classifier.fit(&fitting, &fitting_labels, l2, settings.until());
        let answers = classifier.answers(&validation, &validation_labels);
        let top1 = Answer::top1(&answers);
        points.push(GridPoint { l2, top1, iterations: ending.iterations, converged: ending.converged });
        progress(points.len());
    }
    points
}

/// The place of the best; of equals the first, which is the strongest.
fn best(points: &[GridPoint]) -> usize {
    let correct = |place: usize| points[place].top1.correct;
    (1..points.len()).fold(0, |best, place| if correct(place) > correct(best) { place } else { best })
}

impl Probe {
    /// What the probe says of each image, `truth` being the labels.
    ///
    /// # Panics
    /// If there is not one label for each row, or the features are of another length.
    pub fn answers(&self, features: &Matrix, truth: &[u8]) -> Vec<Answer> {
        self.classifier.answers(&self.prepared.apply(features), truth)
    }

    /// The logistic regression on prepared features.
    pub fn classifier(&self) -> &Classifier {
        &self.classifier
    }
}

/// A preparation with what it learned from the images that are fitted to.
#[derive(Debug, Clone, PartialEq)]
enum Prepared {
    UnitLength,
    Standardise { mean: Vec<f64>, scale: Vec<f64> },
}

/// A feature that varies less, relative to its mean, is constant but for the rounding of f32.
const CONSTANT: f64 = 1e-6;

impl Prepared {
    fn new(preparation: Preparation, x: &Matrix) -> Prepared {
        if preparation == Preparation::UnitLength {
            return Prepared::UnitLength;
        }
        let n = x.rows() as f64;
        let rows = || x.values().chunks_exact(x.columns());
        let mut mean = vec![0.0; x.columns()];
        for row in rows() {
            mean.iter_mut().zip(row).for_each(|(mean, value)| *mean += f64::from(*value) / n);
        }
        let mut variance = vec![0.0; x.columns()];
        for row in rows() {
            for ((variance, value), mean) in variance.iter_mut().zip(row).zip(&mean) {
                *variance += (f64::from(*value) - mean).powi(2) / n;
            }
        }
        let scale = |(variance, mean): (f64, &f64)| {
            let std = variance.sqrt();
            if std > CONSTANT * mean.abs() { 1.0 / std } else { 1.0 }
        };
        let scale = variance.into_iter().zip(&mean).map(scale).collect();
        Prepared::Standardise { mean, scale }
    }

    fn apply(&self, x: &Matrix) -> Matrix {
        let mut x = x.clone();
        match self {
            Prepared::UnitLength => x.with_unit_rows(),
            Prepared::Standardise { mean, scale } => {
                let columns = x.columns();
                for row in x.values_mut().chunks_exact_mut(columns) {
                    for ((value, mean), scale) in row.iter_mut().zip(mean).zip(scale) {
                        *value = ((f64::from(*value) - mean) * scale) as f32;
                    }
                }
                x
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_split_takes_its_share_of_every_class_and_depends_on_the_seed_alone() {
        let labels: Vec<u8> = (0..1003).map(|index| (index % 7) as u8).collect();
        let settings = ProbeSettings::default();
        let split = settings.split("set", &labels, 7).unwrap();
        let mut all = [split.fitting.clone(), split.validation.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..1003).collect::<Vec<_>>(), "every image is in one of the two");
        for class in 0..7 {
            let count = |indices: &[usize]| indices.iter().filter(|index| labels[**index] == class).count();
            assert_eq!(count(&split.validation), (count(&split.fitting) + count(&split.validation)) / 5);
        }
        assert_eq!(settings.split("set", &labels, 7).unwrap(), split);
        let other = ProbeSettings { seed: 1, ..settings.clone() };
        assert_ne!(other.split("set", &labels, 7).unwrap(), split);
        let error = settings.split("set", &labels, 8).unwrap_err().to_string();
        assert!(
            error.contains("set: expected at least 5 images of each class, found 0 of class 7"),
            "{error}"
        );
    }

    #[test]
    fn of_equally_good_values_the_strongest_is_chosen() {
        let point = |l2, correct| GridPoint {
            l2,
            top1: Proportion::new(correct, 10),
            iterations: 1,
            converged: true,
        };
        for (correct, expected) in [(vec![5, 7, 7, 6], 1), (vec![3], 0), (vec![1, 2, 3], 2), (vec![4, 4], 0)]
        {
            let points: Vec<GridPoint> = correct.iter().map(|correct| point(0.1, *correct)).collect();
            assert_eq!(best(&points), expected, "{correct:?}");
        }
    }

    #[test]
    fn standardised_features_have_mean_0_and_std_1_and_constant_ones_are_left() {
        let x = Matrix::new(vec![1.0, 5.0, 0.0, 3.0, 5.0, 0.0], 3);
        let prepared = Prepared::new(Preparation::Standardise, &x);
        assert_eq!(prepared.apply(&x).values(), [-1.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
        let other = Matrix::new(vec![2.0, 6.0, 1.0], 3);
        assert_eq!(prepared.apply(&other).values(), [0.0, 1.0, 1.0]);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let default = ProbeSettings::default();
        for (settings, phrase) in [
            (ProbeSettings { l2_grid: vec![], ..default.clone() }, "l2_grid"),
            (ProbeSettings { l2_grid: vec![0.1, 0.0], ..default.clone() }, "found [0.1, 0.0]"),
            (ProbeSettings { l2_grid: vec![f64::NAN], ..default.clone() }, "l2_grid"),
            (ProbeSettings { validation_one_in: 1, ..default.clone() }, "validation_one_in"),
            (ProbeSettings { gradient_tolerance: 0.0, ..default.clone() }, "gradient_tolerance"),
            (ProbeSettings { most_iterations: 0, ..default.clone() }, "most_iterations"),
        ] {
            let error = settings.check().unwrap_err().to_string();
            assert!(error.contains(phrase), "{error:?} lacks {phrase:?}");
        }
        default.check().unwrap();
    }
}
