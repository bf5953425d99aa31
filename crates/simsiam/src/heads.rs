//! Projector and predictor, with the official code's names.

use burn::tensor::Tensor;

use crate::kernels::Then;
use crate::layers::{BatchNorm, Linear, Statistics};
use crate::parameters::Parameters;

/// Linear layers with BatchNorm; ReLU between them, and no affine part in the last BatchNorm.
pub(crate) struct Projector {
    layers: Vec<(Linear, BatchNorm)>,
}

impl Projector {
    pub(crate) fn new(p: &mut Parameters, name: &str, features: usize, model: &recipe::Model) -> Self {
        let (dim, count) = (model.projector_dim as usize, model.projector_layers as usize);
        let mut layers = Vec::new();
        for layer in 0..count {
            let input = if layer == 0 { features } else { dim };
            // As in a PyTorch `Sequential`, where the ReLUs are counted too: 0 1 (2) 3 4 (5) 6 7.
            let linear = Linear::new(p, &format!("{name}.{}", 3 * layer), [input, dim], false);
            let name = format!("{name}.{}", 3 * layer + 1);
            let last = layer + 1 == count;
            let bn = if last { BatchNorm::plain(p, &name, dim) } else { BatchNorm::new(p, &name, dim) };
            layers.push((linear, bn));
        }
        Projector { layers }
    }

    /// `[n, features] -> [n, d]`
    pub(crate) fn forward(&self, x: Tensor<2>, statistics: &mut Statistics) -> Tensor<2> {
        let mut z = x;
        for (index, (linear, bn)) in self.layers.iter().enumerate() {
            let is_last = index + 1 == self.layers.len();
            let then = if is_last { Then::Nothing } else { Then::Rectify };
            z = bn.forward(linear.forward(z), then, statistics);
        }
        z
    }
}

/// The bottleneck `h`: linear, BatchNorm, ReLU, linear with bias.
pub(crate) struct Predictor {
    down: Linear,
    bn: BatchNorm,
    up: Linear,
}

impl Predictor {
    pub(crate) fn new(p: &mut Parameters, name: &str, model: &recipe::Model) -> Self {
        let (dim, hidden) = (model.projector_dim as usize, model.predictor_dim as usize);
        Predictor {
            down: Linear::new(p, &format!("{name}.0"), [dim, hidden], false),
            bn: BatchNorm::new(p, &format!("{name}.1"), hidden),
            up: Linear::new(p, &format!("{name}.3"), [hidden, dim], true),
        }
    }

    /// `z: [n, d] -> p: [n, d]`
    pub(crate) fn forward(&self, z: Tensor<2>, statistics: &mut Statistics) -> Tensor<2> {
        let hidden = self.bn.forward(self.down.forward(z), Then::Rectify, statistics); // [n, predictor_dim]
        self.up.forward(hidden)
    }
}
