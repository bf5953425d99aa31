//! Convolution, linear layer and BatchNorm, named and initialised as PyTorch's.

use burn::tensor::Tensor;

use crate::kernels::{self, AllShards, Everywhere, Normalised, Over, Then};
use crate::parameters::{Initial, Parameters};

/// A convolution without bias, padded so that stride 1 keeps the size.
pub(crate) struct Conv {
    weight: Tensor<4>,
    stride: usize,
}

impl Conv {
    pub(crate) fn new(
        p: &mut Parameters,
        name: &str,
        channels: [usize; 2],
        kernel: usize,
        stride: usize,
    ) -> Self {
        let [input, output] = channels;
        // Kaiming's normal in mode fan-out, as torchvision's ResNet (He et al. 2015, arXiv 1502.01852).
        let std = (2.0 / (output * kernel * kernel) as f32).sqrt();
        let shape = [output, input, kernel, kernel];
        Conv { weight: p.parameter(format!("{name}.weight"), shape, Initial::Normal { std }), stride }
    }

    /// `x: [n, h, w, in] -> [n, h / stride, w / stride, out]`
    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        kernels::convolution(x, self.weight.clone(), self.stride)
    }

    /// Floats of the output for an image of `side` pixels, and the output's side.
    pub(crate) fn output_floats(&self, side: usize) -> (usize, usize) {
        let side = side.div_ceil(self.stride);
        (self.weight.dims()[0] * side * side, side)
    }
}

/// A fully connected layer.
pub(crate) struct Linear {
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
}

impl Linear {
    pub(crate) fn new(p: &mut Parameters, name: &str, lengths: [usize; 2], bias: bool) -> Self {
        let [input, output] = lengths;
        // PyTorch's default for linear layers.
        let initial = Initial::Uniform { bound: 1.0 / (input as f32).sqrt() };
        Linear {
            weight: p.parameter(format!("{name}.weight"), [output, input], initial),
            bias: bias.then(|| p.parameter(format!("{name}.bias"), [output], initial)),
        }
    }

    /// The classifier of images by their features: near zero, so that every class starts as likely, as in the
    /// official linear evaluation.
    pub(crate) fn classifier(p: &mut Parameters, name: &str, lengths: [usize; 2]) -> Self {
        let [input, output] = lengths;
        let initial = Initial::Normal { std: 0.01 };
        let weight = p.parameter(format!("{name}.weight"), [output, input], initial);
        let bias = p.parameter(format!("{name}.bias"), [output], Initial::Constant(0.0));
        Linear { weight, bias: Some(bias) }
    }

    /// `x: [n, in] -> [n, out]`
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let y = kernels::linear(x, self.weight.clone()); // [n, out]
        match &self.bias {
            Some(bias) => {
                let bias = bias.clone().cast(y.dtype());
                y + bias.unsqueeze()
            }
            None => y,
        }
    }
}

/// Which statistics BatchNorm normalises with.
pub enum Statistics<'a> {
    /// Those of the batch, which are recorded: for training.
    Batch(&'a mut BatchStatistics),
    /// The running ones: for evaluation.
    Running,
}

/// The batch statistics of a batch's way through the network, of each of several equal parts of it: a pair for every
/// BatchNorm in the layout's order.
pub struct BatchStatistics {
    parts: usize,
    /// Those with whose batches this one is normalised.
    shards: Option<AllShards>,
    recorded: Vec<Option<[Tensor<1>; 2]>>,
}

impl BatchStatistics {
    /// Of a batch in this many parts, each with statistics of its own.
    pub(crate) fn of(parts: usize) -> BatchStatistics {
        BatchStatistics { parts, shards: None, recorded: Vec::new() }
    }

    /// The same parts of all `shards`, if there are such.
    pub(crate) fn over(self, shards: Option<AllShards>) -> BatchStatistics {
        BatchStatistics { shards, ..self }
    }

    /// Over which rows a BatchNorm with this running mean takes its statistics.
    fn rows(&self, running_mean: &Tensor<1>) -> Over {
        let everywhere = self.shards.clone().map(|shards| {
            let near = running_mean.to_data();
            Everywhere { shards, near: near.as_slice().expect("statistics are f32").into() }
        });
        Over { groups: self.parts, everywhere }
    }

    fn record(&mut self, index: usize, mean: Tensor<1>, variance: Tensor<1>) {
        if self.recorded.len() <= index {
            self.recorded.resize(index + 1, None);
        }
        self.recorded[index] = Some([mean, variance]);
    }

    /// Means and unbiased variances in the layout's order, each `[parts x channels]`, without gradients.
    pub(crate) fn into_tensors(self) -> impl Iterator<Item = Tensor<1>> {
        self.recorded.into_iter().flatten().flatten().map(Tensor::inner)
    }
}

/// Batch normalisation (Ioffe & Szegedy 2015, arXiv 1502.03167) over every axis but the channels'.
pub(crate) struct BatchNorm {
    gamma: Tensor<1>,
    beta: Tensor<1>,
    running_mean: Tensor<1>,
    running_variance: Tensor<1>,
    index: usize,
}

impl BatchNorm {
    pub(crate) fn new(p: &mut Parameters, name: &str, channels: usize) -> Self {
        Self::with_gamma(p, name, channels, 1.0)
    }

    /// The last BatchNorm of a residual block starts with gamma 0, so that the block starts as the identity
    /// (Goyal et al. 2017, arXiv 1706.02677; torchvision's `zero_init_residual`).
    pub(crate) fn zero(p: &mut Parameters, name: &str, channels: usize) -> Self {
        Self::with_gamma(p, name, channels, 0.0)
    }

    fn with_gamma(p: &mut Parameters, name: &str, channels: usize, gamma: f32) -> Self {
        let gamma = p.parameter(format!("{name}.weight"), [channels], Initial::Constant(gamma));
        let beta = p.parameter(format!("{name}.bias"), [channels], Initial::Constant(0.0));
        Self::with_affine(p, name, gamma, beta)
    }

    /// Without gamma and beta: the projector's output.
    pub(crate) fn plain(p: &mut Parameters, name: &str, channels: usize) -> Self {
        let (gamma, beta) = (p.constant(channels, 1.0), p.constant(channels, 0.0));
        Self::with_affine(p, name, gamma, beta)
    }

    fn with_affine(p: &mut Parameters, name: &str, gamma: Tensor<1>, beta: Tensor<1>) -> Self {
        let channels = gamma.dims()[0];
        let index = p.layout.statistics.len() / 2;
        let running_mean = p.statistic(format!("{name}.running_mean"), channels);
        let running_variance = p.statistic(format!("{name}.running_var"), channels);
        BatchNorm { gamma, beta, running_mean, running_variance, index }
    }

    /// `x: [n, ..., channels]`, the same shape out.
    pub(crate) fn forward<const D: usize>(
        &self,
        x: Tensor<D>,
        then: Then<D>,
        statistics: &mut Statistics,
    ) -> Tensor<D> {
        let (gamma, beta) = (self.gamma.clone(), self.beta.clone());
        match statistics {
            Statistics::Running => {
                let running = [self.running_mean.clone(), self.running_variance.clone()];
                kernels::batch_norm_running(x, [gamma, beta], running, then)
            }
            Statistics::Batch(statistics) => {
                let rows = statistics.rows(&self.running_mean);
                let Normalised { output, mean, variance } = kernels::batch_norm(x, gamma, beta, rows, then);
                statistics.record(self.index, mean, variance);
                output
            }
        }
    }
}
