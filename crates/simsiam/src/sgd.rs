//! SGD with momentum, as `torch.optim.SGD` without dampening. burn's has a dampening of 0.1 by default.

/// One update of a stretch of parameters:
/// `g' = g + weight_decay * w;  v = momentum * v + g';  w = w - learning_rate * v`.
pub(crate) fn update(
    weights: &mut [f32],
    momentum_buffer: &mut [f32],
    gradient: impl Iterator<Item = f32>,
    learning_rate: f64,
    optimizer: &recipe::Optimizer,
) {
    let learning_rate = learning_rate as f32;
    let (momentum, weight_decay) = (optimizer.momentum as f32, optimizer.weight_decay as f32);
    for ((w, v), g) in weights.iter_mut().zip(momentum_buffer).zip(gradient) {
        *v = momentum * *v + (g + weight_decay * *w);
        *w -= learning_rate * *v;
    }
}
