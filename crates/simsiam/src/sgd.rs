//! SGD with momentum, as `torch.optim.SGD` without dampening. burn's has a dampening of 0.1 by default.

use burn::tensor::Tensor;
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use crate::kernels;
use crate::kernels::SHARE;

/// One update of a stretch of parameters, the gradient being `scale * gradient`:
/// `g' = g + weight_decay * w;  v = momentum * v + g';  w = w - learning_rate * v`.
pub(crate) fn update(
    weights: &mut [f32],
    momentum_buffer: &mut [f32],
    gradient: &[f32],
    scale: f32,
    learning_rate: f64,
    optimizer: &recipe::Optimizer,
) {
    let learning_rate = learning_rate as f32;
    let (momentum, weight_decay) = (optimizer.momentum as f32, optimizer.weight_decay as f32);
    let shares = weights.par_chunks_mut(SHARE).zip(momentum_buffer.par_chunks_mut(SHARE));
    shares.zip(gradient.par_chunks(SHARE)).for_each(|((weights, momentum_buffer), gradient)| {
        for ((w, v), g) in weights.iter_mut().zip(momentum_buffer).zip(gradient) {
            *v = momentum * *v + (scale * g + weight_decay * *w);
            *w -= learning_rate * *v;
        }
    });
}

/// One update of all parameters, in two parts with a learning rate each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Step {
    /// Makes a mean of the gradient.
    pub(crate) scale: f32,
    pub(crate) momentum: f32,
    pub(crate) weight_decay: f32,
    pub(crate) rates: [f32; 2],
    /// Where the second part begins.
    pub(crate) second_start: usize,
}

/// The same as [`update`] in a device's memory: new weights and momentum. More numbers may follow the gradient's.
pub(crate) fn update_on_device(
    weights: &Tensor<1>,
    momentum_buffer: Tensor<1>,
    gradient: Tensor<1>,
    step: &Step,
) -> [Tensor<1>; 2] {
    #[cfg(feature = "cuda")]
    if !kernels::is_flex(&weights.device()) {
        return kernels::cube::flat::sgd_update(weights.clone(), momentum_buffer, gradient, step);
    }
    let gradient = gradient.slice(0..weights.dims()[0]);
    let gradient = gradient * step.scale + weights.clone() * step.weight_decay;
    let momentum_buffer = momentum_buffer * step.momentum + gradient;
    let parts = [0..step.second_start, step.second_start..weights.dims()[0]];
    let updated = parts.into_iter().zip(step.rates).map(|(range, rate)| {
        weights.clone().slice(range.clone()) - momentum_buffer.clone().slice(range) * rate
    });
    [Tensor::cat(updated.collect(), 0), momentum_buffer]
}
