//! Parameters as named stretches of one flat vector.
//!
//! The weights, their gradients and their momentum are each one `Vec<f32>`: what the all-reduce, the
//! optimizer, the hash and the checkpoint all want. A network is built anew from such a vector for every
//! step, which costs one copy, and the order in which it asks for its parameters *is* the layout.
//! burn's own records identify parameters by random numbers drawn in each process, which would not do here.

use std::ops::Range;

use burn::tensor::{Device, Gradients, Tensor, TensorData};
use recipe::{Draws, Purpose};

/// Where a parameter or a running statistic lies, and how it starts.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The name in the official SimSiam code, for example `encoder.layer1.0.conv1.weight`.
    pub name: String,
    /// Shape as in PyTorch: convolutions `[out, in, height, width]`, linear layers `[out, in]`.
    pub shape: Vec<usize>,
    /// Place in the flat vector.
    pub range: Range<usize>,
    pub(crate) initial: Initial,
}

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Initial {
    Constant(f32),
    Normal { std: f32 },
    Uniform { bound: f32 },
}

/// All parameters and running statistics of a network, in order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Layout {
    /// What the optimizer changes.
    pub parameters: Vec<Entry>,
    /// Running mean and variance of every BatchNorm, alternating.
    pub statistics: Vec<Entry>,
}

impl Layout {
    /// The layout of the recipe's network.
    pub fn of(model: &recipe::Model) -> Layout {
        // The network is built once from zeros, only to see what it asks for.
        let device = Device::flex();
        let mut parameters = Parameters::new(&device, |_, range| TensorData::zeros::<f32, _>([range.len()]));
        crate::SimSiam::new(&mut parameters, model);
        parameters.layout
    }

    /// Number of parameters.
    pub fn parameter_count(&self) -> usize {
        end(&self.parameters)
    }

    /// Number of running means and variances.
    pub fn statistic_count(&self) -> usize {
        end(&self.statistics)
    }

    /// The predictor's stretch of the parameters: it has a learning rate of its own.
    pub fn predictor(&self) -> Range<usize> {
        let start = self.parameters.iter().find(|entry| entry.name.starts_with("predictor."));
        start.map_or(self.parameter_count(), |entry| entry.range.start)..self.parameter_count()
    }

    /// A hash over every name and shape; two workers with the same hash can exchange buckets.
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for entry in self.parameters.iter().chain(&self.statistics) {
            hasher.update(format!("{} {:?}\n", entry.name, entry.shape).as_bytes());
        }
        hasher.finalize().into()
    }

    /// The weights at step 0: a function of the seed alone, the same on every machine.
    pub(crate) fn initial_parameters(&self, seed: u64) -> Vec<f32> {
        let mut weights = Vec::with_capacity(self.parameter_count());
        for (index, entry) in self.parameters.iter().enumerate() {
            let mut draws = Draws::new(seed, Purpose::Weights, 0, index as u64, 0);
            weights.extend(entry.range.clone().map(|_| match entry.initial {
                Initial::Constant(value) => value,
                Initial::Normal { std } => std * draws.normal(),
                Initial::Uniform { bound } => draws.between(-bound, bound),
            }));
        }
        weights
    }

    /// The running statistics at step 0: mean 0, variance 1.
    pub(crate) fn initial_statistics(&self) -> Vec<f32> {
        self.statistics
            .iter()
            .flat_map(|entry| {
                let value = if entry.name.ends_with("running_var") { 1.0 } else { 0.0 };
                entry.range.clone().map(move |_| value)
            })
            .collect()
    }
}

fn end(entries: &[Entry]) -> usize {
    entries.last().map_or(0, |entry| entry.range.end)
}

/// Which of the two flat vectors a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Parameter,
    Statistic,
}

/// Hands a network under construction its tensors, and remembers the order.
pub(crate) struct Parameters<'a> {
    device: &'a Device,
    values: Box<Values<'a>>,
    pub(crate) layout: Layout,
    /// The parameters in order, to ask for their gradients after a backward pass.
    pub(crate) leaves: Vec<Leaf>,
}

/// Gives the numbers at a place, flat.
type Values<'a> = dyn FnMut(Kind, Range<usize>) -> TensorData + 'a;

/// Takes the gradient of one parameter out of a backward pass. The parameter is held as the network uses it,
/// without an operation between: burn consumes what it recorded in the first backward pass, and one network
/// serves a pass for each shard.
pub(crate) type Leaf = Box<dyn Fn(&mut Gradients) -> Option<TensorData>>;

impl<'a> Parameters<'a> {
    /// `values` gives the numbers at a place.
    pub(crate) fn new(device: &'a Device, values: impl FnMut(Kind, Range<usize>) -> TensorData + 'a) -> Self {
        Parameters { device, values: Box::new(values), layout: Layout::default(), leaves: Vec::new() }
    }

    /// The next parameter.
    pub(crate) fn parameter<const D: usize>(
        &mut self,
        name: String,
        shape: [usize; D],
        initial: Initial,
    ) -> Tensor<D> {
        let range = next_range(&self.layout.parameters, &shape);
        let values = (self.values)(Kind::Parameter, range.clone());
        self.layout.parameters.push(Entry { name, shape: shape.to_vec(), range, initial });
        let mut parameter = Tensor::<1>::from_data(values, self.device).reshape(shape);
        if self.device.is_autodiff() {
            parameter = parameter.require_grad();
        }
        let leaf = parameter.clone();
        self.leaves.push(Box::new(move |gradients| leaf.grad_remove(gradients).map(Tensor::into_data)));
        parameter
    }

    /// The next running statistic. No gradient flows into it.
    pub(crate) fn statistic(&mut self, name: String, length: usize) -> Tensor<1> {
        let range = next_range(&self.layout.statistics, &[length]);
        let values = (self.values)(Kind::Statistic, range.clone());
        let initial = Initial::Constant(0.0);
        self.layout.statistics.push(Entry { name, shape: vec![length], range, initial });
        Tensor::from_data(values, self.device)
    }

    /// A tensor that is no parameter.
    pub(crate) fn constant(&self, length: usize, value: f32) -> Tensor<1> {
        Tensor::from_data(TensorData::new(vec![value; length], [length]), self.device)
    }
}

fn next_range(entries: &[Entry], shape: &[usize]) -> Range<usize> {
    let start = end(entries);
    start..start + shape.iter().product::<usize>()
}
