//! One number for each parameter, wherever they lie.

use std::ops::Range;

use burn::tensor::{Device, Tensor};
use rayon::prelude::*;

use crate::kernels;
use crate::step::{DeviceFailure, read};

/// Weights, momentum or a gradient, in the layout's order.
#[derive(Clone)]
#[expect(clippy::large_enum_variant, reason = "it lives from one call to the next and is never stored")]
pub(crate) enum Flat<'a> {
    OnHost(&'a [f32]),
    OnDevice(Tensor<1>),
}

impl Flat<'_> {
    /// The sum of the squares of each stretch.
    pub(crate) fn square_sums(&self, ranges: &[Range<usize>]) -> Result<Vec<f64>, DeviceFailure> {
        match self {
            Flat::OnHost(values) => {
                Ok(ranges.iter().map(|range| square_sum(&values[range.clone()])).collect())
            }
            Flat::OnDevice(values) => {
                let sums = ranges.iter().map(|range| values.clone().slice(range.clone()).square().sum());
                let mut found = vec![0.0; ranges.len()];
                read(Tensor::cat(sums.collect(), 0), &mut found)?;
                Ok(found.into_iter().map(f64::from).collect())
            }
        }
    }

    /// The same numbers on this device.
    pub(crate) fn on(&self, device: &Device) -> Tensor<1> {
        match self {
            Flat::OnHost(values) => Tensor::from_data(kernels::tensor_data(values), device),
            Flat::OnDevice(values) => values.clone(),
        }
    }
}

fn square_sum(values: &[f32]) -> f64 {
    let squares = |share: &[f32]| share.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
    // Collected in order, so that the number of threads changes no digit.
    let shares: Vec<f64> = values.par_chunks(kernels::SHARE).map(squares).collect();
    shares.iter().sum()
}
