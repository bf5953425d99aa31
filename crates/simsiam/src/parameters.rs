//! Parameters as named stretches of one flat vector.
//!
//! The weights, their gradients and their momentum are each one `Vec<f32>`: what the all-reduce, the
//! optimizer, the hash and the checkpoint all want. A network is built anew from such a vector for every
//! step, on the CPU without a copy, and the order in which it asks for its parameters *is* the layout.
//! burn's own records identify parameters by random numbers drawn in each process, which would not do here.

use std::ops::Range;

use burn::tensor::{Device, Gradients, Tensor};
use recipe::{Draws, Purpose};

use crate::flat::Flat;
use crate::kernels;
use crate::simsiam::SimSiam;
use crate::state::State;

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
        outline(model).1
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

    /// The stretches of backbone, projector and predictor, which follow each other.
    pub(crate) fn parts(&self) -> [Range<usize>; 3] {
        let predictor = self.predictor();
        let projector = self.parameters.iter().find(|entry| entry.name.starts_with("encoder.fc."));
        let projector = projector.map_or(predictor.start, |entry| entry.range.start);
        [0..projector, projector..predictor.start, predictor]
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

/// The recipe's network, built from zeros only to look at it, and what it asked for.
pub(crate) fn outline(model: &recipe::Model) -> (SimSiam, Layout) {
    let device = Device::flex();
    let mut parameters = Parameters::zeros(&device);
    let network = SimSiam::new(&mut parameters, model);
    (network, parameters.layout)
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

/// Gives the numbers at a place, flat, without gradients.
type Values<'a> = dyn FnMut(Kind, Range<usize>) -> Tensor<1> + 'a;

/// Takes the gradient of one parameter out of a backward pass, flat. The parameter is held as the network uses it,
/// without an operation between: burn consumes what it recorded in the first backward pass, and one network
/// serves a pass for each shard.
pub(crate) type Leaf = Box<dyn Fn(&mut Gradients) -> Option<Tensor<1>>>;

impl<'a> Parameters<'a> {
    /// `values` gives the numbers at a place, on this device without its gradients.
    fn new(device: &'a Device, values: impl FnMut(Kind, Range<usize>) -> Tensor<1> + 'a) -> Self {
        Parameters { device, values: Box::new(values), layout: Layout::default(), leaves: Vec::new() }
    }

    /// For a network that is only looked at.
    pub(crate) fn zeros(device: &'a Device) -> Self {
        Parameters::new(device, |_, range| Tensor::zeros([range.len()], &device.clone().without_autodiff()))
    }

    /// For a network with the weights of `state`, which have gradients if the device records them. The CPU reads them
    /// where they lie.
    pub(crate) fn of_state(state: &'a State, device: &'a Device) -> Self {
        let plain = device.clone().without_autodiff();
        if !kernels::is_flex(device) {
            let [weights, statistics] =
                [&*state.weights, &state.statistics].map(|values| Flat::OnHost(values).on(&plain));
            return Parameters::of_tensors(weights, statistics, device);
        }
        Parameters::new(device, move |kind, range| {
            let data = match kind {
                Kind::Parameter => kernels::borrowed(&state.weights, range),
                Kind::Statistic => kernels::tensor_data(&state.statistics[range]),
            };
            Tensor::from_data(data, &plain)
        })
    }

    /// For a network of which every parameter and statistic is a part of these, which lie on the device already.
    pub(crate) fn of_tensors(weights: Tensor<1>, statistics: Tensor<1>, device: &'a Device) -> Self {
        Parameters::new(device, move |kind, range| match kind {
            Kind::Parameter => kernels::stretch(weights.clone(), range),
            Kind::Statistic => kernels::stretch(statistics.clone(), range),
        })
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
        let mut parameter = self.on_device(values.reshape(shape));
        if self.device.is_autodiff() {
            parameter = parameter.require_grad();
        }
        let leaf = parameter.clone();
        self.leaves.push(Box::new(move |gradients| {
            leaf.grad_remove(gradients).map(|gradient| gradient.flatten(0, D - 1))
        }));
        parameter
    }

    /// The next running statistic. No gradient flows into it.
    pub(crate) fn statistic(&mut self, name: String, length: usize) -> Tensor<1> {
        let range = next_range(&self.layout.statistics, &[length]);
        let values = (self.values)(Kind::Statistic, range.clone());
        let initial = Initial::Constant(0.0);
        self.layout.statistics.push(Entry { name, shape: vec![length], range, initial });
        self.on_device(values)
    }

    /// A tensor that is no parameter.
    pub(crate) fn constant(&self, length: usize, value: f32) -> Tensor<1> {
        Tensor::full([length], value, self.device)
    }

    fn on_device<const D: usize>(&self, values: Tensor<D>) -> Tensor<D> {
        if self.device.is_autodiff() { values.autodiff() } else { values }
    }
}

fn next_range(entries: &[Entry], shape: &[usize]) -> Range<usize> {
    let start = end(entries);
    start..start + shape.iter().product::<usize>()
}
