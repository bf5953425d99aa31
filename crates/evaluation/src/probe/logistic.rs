//! Multinomial logistic regression, solved to convergence.
//!
//! ```text
//! minimise over W, b:   mean over images of  -log softmax(W x + b)[label]   +   l2 / 2 · |W|²
//! ```
//! The bias is not held back. With `C = 1 / (n · l2)` this is what scikit-learn's `LogisticRegression`
//! minimises. Features stay f32; every sum is f64, in an order that no number of threads changes.

use rayon::prelude::*;
use recipe::{Draws, Purpose};

use super::lbfgs::{Ending, minimize};
use crate::matrix::{Lies, Matrix, multiply};
use crate::scores::Answer;

/// `W` and `b`, flat: `classes` rows of `features`, then the biases.
#[derive(Debug, Clone, PartialEq)]
pub struct Classifier {
    parameters: Vec<f64>,
    classes: usize,
    features: usize,
}

/// When a fit ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Until {
    /// No component of the gradient is greater.
    pub(crate) gradient_tolerance: f64,
    /// Or that many steps were taken.
    pub(crate) most_iterations: usize,
}

/// Rows that are converted to f64 together: at 512 features 1 MiB, which stays in a core's cache.
const BLOCK_ROWS: usize = 256;

/// Stretches of rows with a sum each. A fixed number, so that the sums are the same on every machine; few,
/// because each holds a gradient of its own.
const STRETCHES: usize = 16;

impl Classifier {
    /// All zeros: every class is as likely.
    pub fn zeros(classes: usize, features: usize) -> Classifier {
        Classifier { parameters: vec![0.0; classes * (features + 1)], classes, features }
    }

    /// As the official linear evaluation begins: weights of standard deviation 0.01, a function of the seed
    /// alone, and biases of zero.
    pub(crate) fn random(classes: usize, features: usize, seed: u64) -> Classifier {
        let mut classifier = Classifier::zeros(classes, features);
        let mut draws = Draws::new(seed, Purpose::Classifier, 0, 0, 0);
        classifier.parameters[..classes * features].fill_with(|| 0.01 * f64::from(draws.normal()));
        classifier
    }

    /// `W`, then `b`.
    pub(crate) fn parameters(&self) -> &[f64] {
        &self.parameters
    }

    pub(crate) fn parameters_mut(&mut self) -> &mut [f64] {
        &mut self.parameters
    }

    /// `W`: one row of features for each class.
    pub fn weights(&self) -> &[f64] {
        &self.parameters[..self.classes * self.features]
    }

    /// `b`: one for each class.
    pub fn biases(&self) -> &[f64] {
        &self.parameters[self.classes * self.features..]
    }

    /// Moves to the minimum for these images, from wherever this classifier is.
    ///
    /// # Panics
    /// If there is not one label below the number of classes for each row, or rows have another length.
    pub(crate) fn fit(&mut self, x: &Matrix, labels: &[u8], l2: f64, until: Until) -> Ending {
        assert_eq!((x.rows(), x.columns()), (labels.len(), self.features), "one label for each row");
        let (classes, features) = (self.classes, self.features);
        minimize(
            &mut self.parameters,
            until.gradient_tolerance,
            until.most_iterations,
            |parameters, gradient| objective([classes, features], parameters, x, labels, l2, gradient),
        )
    }

    /// The mean loss over these images, without `l2`; writes its gradient.
    ///
    /// # Panics
    /// If there is not one label below the number of classes for each row, or rows have another length.
    pub(crate) fn loss_and_gradient(&self, x: &Matrix, labels: &[u8], gradient: &mut [f64]) -> f64 {
        assert_eq!((x.rows(), x.columns()), (labels.len(), self.features), "one label for each row");
        objective([self.classes, self.features], &self.parameters, x, labels, 0.0, gradient)
    }

    /// What this classifier says of each row, `truth` being the labels.
    ///
    /// # Panics
    /// If there is not one label below the number of classes for each row, or rows have another length.
    pub fn answers(&self, x: &Matrix, truth: &[u8]) -> Vec<Answer> {
        assert_eq!((x.rows(), x.columns()), (truth.len(), self.features), "one label for each row");
        let rows = x.values().par_chunks(BLOCK_ROWS * self.features).zip(truth.par_chunks(BLOCK_ROWS));
        let answers = rows.map(|(rows, truth)| {
            let (mut x, mut logits) = (Vec::new(), Vec::new());
            widen(rows, &mut x);
            self::logits([self.classes, self.features], &self.parameters, &x, &mut logits);
            let scores = logits.chunks_exact(self.classes);
            scores.zip(truth).map(|(scores, label)| Answer::from_scores(scores, *label)).collect::<Vec<_>>()
        });
        answers.collect::<Vec<_>>().into_iter().flatten().collect()
    }
}

/// The value to be minimised, and its gradient.
fn objective(
    [classes, features]: [usize; 2],
    parameters: &[f64],
    x: &Matrix,
    labels: &[u8],
    l2: f64,
    gradient: &mut [f64],
) -> f64 {
    let rows = x.rows().div_ceil(STRETCHES).max(BLOCK_ROWS);
    let stretches = x.values().par_chunks(rows * features).zip(labels.par_chunks(rows));
    let sums: Vec<(f64, Vec<f64>)> =
        stretches.map(|(x, labels)| loss_sums([classes, features], parameters, x, labels)).collect();

    let n = labels.len() as f64;
    let mut value = 0.0;
    gradient.fill(0.0);
    for (loss, sum) in sums {
        value += loss / n;
        gradient.iter_mut().zip(sum).for_each(|(gradient, sum)| *gradient += sum / n);
    }
    let weights = classes * features;
    for (gradient, weight) in gradient[..weights].iter_mut().zip(&parameters[..weights]) {
        *gradient += l2 * weight;
        value += l2 / 2.0 * weight * weight;
    }
    value
}

/// The sums over some rows of the loss and of its gradient.
fn loss_sums(
    [classes, features]: [usize; 2],
    parameters: &[f64],
    x: &[f32],
    labels: &[u8],
) -> (f64, Vec<f64>) {
    let mut loss = 0.0;
    let mut gradient = vec![0.0; parameters.len()];
    let (weights, biases) = gradient.split_at_mut(classes * features);
    let (mut block, mut errors) = (Vec::new(), Vec::new());
    for (x, labels) in x.chunks(BLOCK_ROWS * features).zip(labels.chunks(BLOCK_ROWS)) {
        widen(x, &mut block);
        logits([classes, features], parameters, &block, &mut errors);
        for (row, label) in errors.chunks_exact_mut(classes).zip(labels) {
            // In place: logits become probabilities, and these minus the truth the error.
            let label = usize::from(*label);
            loss += softmax(row, label);
            row[label] -= 1.0;
            biases.iter_mut().zip(&*row).for_each(|(bias, error)| *bias += error);
        }
        let shape = [classes, features, labels.len()];
        multiply(weights, 1.0, (&errors, Lies::Transposed), (&block, Lies::ByRow), shape);
    }
    (loss, gradient)
}

/// Turns logits into probabilities and gives minus the logarithm of the label's.
fn softmax(row: &mut [f64], label: usize) -> f64 {
    let greatest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let label_logit = row[label] - greatest;
    let mut sum = 0.0;
    for value in &mut *row {
        *value = (*value - greatest).exp();
        sum += *value;
    }
    row.iter_mut().for_each(|value| *value /= sum);
    sum.ln() - label_logit
}

/// `x W' + b`, one row of `classes` for each of `x`.
fn logits([classes, features]: [usize; 2], parameters: &[f64], x: &[f64], out: &mut Vec<f64>) {
    let (weights, biases) = parameters.split_at(classes * features);
    let rows = x.len() / features;
    out.clear();
    out.extend(std::iter::repeat_n(biases, rows).flatten());
    let shape = [rows, classes, features];
    multiply(out, 1.0, (x, Lies::ByRow), (weights, Lies::Transposed), shape);
}

fn widen(values: &[f32], out: &mut Vec<f64>) {
    out.clear();
    out.extend(values.iter().map(|value| f64::from(*value)));
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNTIL: Until = Until { gradient_tolerance: 1e-9, most_iterations: 1000 };

    fn drawn(rows: usize, features: usize, classes: usize) -> (Matrix, Vec<u8>) {
        let mut draws = Draws::new(5, Purpose::Synthetic, 0, 0, 0);
        let labels: Vec<u8> = (0..rows).map(|row| (row % classes) as u8).collect();
        let centre =
            |label: u8, feature: usize| f32::from(u8::from(usize::from(label) % features == feature));
        let values =
            labels.iter().flat_map(|&label| (0..features).map(move |feature| centre(label, feature)));
        let values: Vec<f32> = values.map(|centre| centre + draws.normal()).collect();
        (Matrix::new(values, features), labels)
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_value() {
        for (rows, features, classes) in [(5, 3, 2), (700, 4, 5)] {
            let (x, labels) = drawn(rows, features, classes);
            let mut draws = Draws::new(6, Purpose::Synthetic, 0, 0, 0);
            let at: Vec<f64> = (0..classes * (features + 1)).map(|_| f64::from(draws.normal())).collect();
            let value = |at: &[f64], gradient: &mut [f64]| {
                objective([classes, features], at, &x, &labels, 0.3, gradient)
            };
            let (mut gradient, mut other) = (vec![0.0; at.len()], vec![0.0; at.len()]);
            value(&at, &mut gradient);
            for place in 0..at.len() {
                let mut moved = [at.clone(), at.clone()];
                moved[0][place] += 1e-5;
                moved[1][place] -= 1e-5;
                let [above, below] = moved.map(|at| value(&at, &mut other));
                let slope = (above - below) / 2e-5;
                assert!((slope - gradient[place]).abs() < 1e-8, "{place}: {slope} {}", gradient[place]);
            }
        }
    }

    #[test]
    fn the_start_and_the_threads_do_not_change_the_minimum() {
        let (x, labels) = drawn(600, 6, 4);
        let mut zeros = Classifier::zeros(4, 6);
        assert!(zeros.fit(&x, &labels, 1e-3, UNTIL).converged);
        let mut elsewhere = Classifier::zeros(4, 6);
        elsewhere.fit(&x, &labels, 1.0, UNTIL);
        elsewhere.fit(&x, &labels, 1e-3, UNTIL);
        for (a, b) in zeros.weights().iter().zip(elsewhere.weights()) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
        let mut again = Classifier::zeros(4, 6);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        pool.install(|| again.fit(&x, &labels, 1e-3, UNTIL));
        assert_eq!(again, zeros, "bit for bit");
    }

    #[test]
    fn classes_that_can_be_told_apart_are() {
        let x = Matrix::new(vec![1.0, 0.0, 2.0, 0.1, 0.0, 1.0, 0.1, 2.0], 2);
        let labels = [0, 0, 1, 1];
        let mut classifier = Classifier::zeros(2, 2);
        classifier.fit(&x, &labels, 1e-4, UNTIL);
        assert!(classifier.answers(&x, &labels).iter().all(|answer| answer.rank == 0));
    }
}
