//! SGD with momentum, as `torch.optim.SGD` without dampening. burn's has a dampening of 0.1 by default.

use rayon::prelude::*;

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
