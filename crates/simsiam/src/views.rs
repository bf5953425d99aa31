//! Views on their way to the device.

use burn::tensor::{DType, Device, Tensor, TensorData};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use recipe::{Precision, Recipe};

use crate::kernels;

/// Two views of every image of a shard's part of a batch, `[2n, 3, crop_px, crop_px]`: the first views, then the
/// second ones, in the precision that the network computes in.
#[derive(Clone)]
pub struct Views(pub(crate) Tensor<4>);

/// Brings views to a trainer's device, from any thread: what one thread brings need not wait for what another one
/// computes.
#[derive(Debug, Clone)]
pub struct ViewLoader {
    device: Device,
    precision: Precision,
    side: usize,
}

impl ViewLoader {
    pub(crate) fn new(recipe: &Recipe, device: &Device) -> ViewLoader {
        let side = recipe.views.crop_px as usize;
        ViewLoader { device: device.clone(), precision: recipe.training.precision, side }
    }

    /// Floats of one view.
    pub fn view_floats(&self) -> usize {
        3 * self.side * self.side
    }

    /// Brings `values`, the first views of all images and then their second ones, each `[3, crop_px, crop_px]`.
    pub fn load(&self, values: Vec<f32>) -> Views {
        let length = values.len();
        let (data, dtype) = match self.precision {
            Precision::F32 => (TensorData::new(values, [length]), DType::F32),
            Precision::Bf16 => (TensorData::new(rounded(&values), [length]), DType::BF16),
        };
        let views = length / self.view_floats();
        let flat = Tensor::<1>::from_data(data, (&self.device, dtype));
        Views(flat.reshape([views, 3, self.side, self.side]))
    }
}

/// To the nearest bf16. Half as much is then left to be moved.
fn rounded(values: &[f32]) -> Vec<bf16> {
    let mut rounded = vec![bf16::ZERO; values.len()];
    let shares = rounded.par_chunks_mut(kernels::SHARE).zip(values.par_chunks(kernels::SHARE));
    shares.for_each(|(rounded, values)| rounded.convert_from_f32_slice(values));
    rounded
}
