//! A linear classifier trained step by step: SGD with momentum, or LARS (You et al. 2017, arXiv 1708.03888),
//! as the official linear evaluation of SimSiam does with PyTorch's `SGD` and apex's `LARC`.
//!
//! The gradient of a linear layer under cross-entropy has a closed form, the one of [`super::logistic`].

use serde::{Deserialize, Serialize};

use super::logistic::Classifier;
use crate::matrix::Matrix;

/// Which rule turns gradients into steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Optimizer {
    /// SGD with momentum.
    Sgd,
    /// SGD with momentum, of gradients scaled so that weights and biases each move by a fixed share of their
    /// own norm: for batches of thousands.
    Lars,
}

/// The official code's share of the norm for each unit of learning rate.
pub(crate) const TRUST: f64 = 0.001;
/// apex's: a gradient of length 0 divides by nothing.
const EPSILON: f64 = 1e-8;

/// A classifier under training.
pub(crate) struct Descent {
    classifier: Classifier,
    velocity: Vec<f64>,
    optimizer: Optimizer,
    momentum: f64,
}

impl Descent {
    pub(crate) fn new(classifier: Classifier, optimizer: Optimizer, momentum: f64) -> Descent {
        Descent { velocity: vec![0.0; classifier.parameters().len()], classifier, optimizer, momentum }
    }

    /// One step on a batch; gives the mean loss before it. If that is not finite nothing changes.
    ///
    /// # Panics
    /// If there is not one label below the number of classes for each row, or rows have another length.
    pub(crate) fn step(&mut self, x: &Matrix, labels: &[u8], learning_rate: f64) -> f64 {
        let mut gradient = vec![0.0; self.velocity.len()];
        let loss = self.classifier.loss_and_gradient(x, labels, &mut gradient);
        if !loss.is_finite() || gradient.iter().any(|value| !value.is_finite()) {
            return f64::NAN;
        }
        let weights = self.classifier.weights().len();
        let parameters = self.classifier.parameters_mut();
        if self.optimizer == Optimizer::Lars {
            let (gradient, bias_gradient) = gradient.split_at_mut(weights);
            adapt(&parameters[..weights], gradient);
            adapt(&parameters[weights..], bias_gradient);
        }
        for ((parameter, velocity), gradient) in parameters.iter_mut().zip(&mut self.velocity).zip(gradient) {
            *velocity = self.momentum * *velocity + gradient;
            *parameter -= learning_rate * *velocity;
        }
        loss
    }

    /// What was trained.
    pub(crate) fn into_classifier(self) -> Classifier {
        self.classifier
    }
}

/// Scales a gradient to [`TRUST`] times the parameters' norm. Parameters or gradients of zeros, such as the
/// biases before the first step, are left as they are.
fn adapt(parameters: &[f64], gradient: &mut [f64]) {
    let norm = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>().sqrt();
    let (parameter_norm, gradient_norm) = (norm(parameters), norm(gradient));
    if parameter_norm != 0.0 && gradient_norm != 0.0 {
        let scale = TRUST * parameter_norm / (gradient_norm + EPSILON);
        gradient.iter_mut().for_each(|value| *value *= scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;
    use std::path::Path;

    /// What both compute in f64; the file is rounded to f32.
    const TOLERANCE: f64 = 1e-5;

    /// `tests/fixtures/make_linear_steps.py` trained with PyTorch; the sizes and rates are its.
    #[test]
    fn steps_are_pytorchs_and_apexs() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/linear-steps.safetensors");
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let data = file.tensor(name).unwrap().data();
            data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        let (classes, features, rows, batch) = (3, 8, 40, 16);
        for (name, optimizer, rates) in
            [("sgd", Optimizer::Sgd, [2.0, 1.0]), ("lars", Optimizer::Lars, [4.0, 2.0])]
        {
            let mut classifier = Classifier::zeros(classes, features);
            let start = [floats("weights"), floats("biases")].concat();
            classifier.parameters_mut().iter_mut().zip(start).for_each(|(to, from)| *to = f64::from(from));
            let mut descent = Descent::new(classifier, optimizer, 0.9);
            let mut losses = Vec::new();
            for (epoch, rate) in rates.into_iter().enumerate() {
                let x = floats(&format!("x.{epoch}"));
                let labels = file.tensor(&format!("y.{epoch}")).unwrap().data();
                assert_eq!(labels.len(), rows);
                for (x, labels) in x.chunks(batch * features).zip(labels.chunks(batch)) {
                    losses.push(descent.step(&Matrix::new(x.to_vec(), features), labels, rate));
                }
            }
            let found = descent.into_classifier();
            for (part, found) in
                [("loss", &losses[..]), ("weights", found.weights()), ("biases", found.biases())]
            {
                let expected = floats(&format!("{name}.{part}"));
                assert_eq!(found.len(), expected.len());
                for (found, expected) in found.iter().zip(expected) {
                    let expected = f64::from(expected);
                    assert!((found - expected).abs() < TOLERANCE, "{name} {part}: {found} is not {expected}");
                }
            }
        }
    }

    #[test]
    fn a_step_from_what_is_not_finite_changes_nothing() {
        let mut descent = Descent::new(Classifier::zeros(2, 1), Optimizer::Sgd, 0.9);
        for value in [f32::NAN, f32::INFINITY] {
            assert!(descent.step(&Matrix::new(vec![value], 1), &[0], 1.0).is_nan());
            assert_eq!(descent.classifier, Classifier::zeros(2, 1));
        }
    }
}
