//! The frozen backbone from pixels to features, as plain slices: all that evaluation needs of a network.

use burn::tensor::{Device, Tensor, TensorData};

use crate::simsiam::SimSiam;
use crate::state::State;

/// A network on a device that only looks: no gradients, BatchNorm with its running statistics.
pub struct FrozenBackbone {
    network: SimSiam,
    device: Device,
}

impl FrozenBackbone {
    /// The network of `model` with a copy of the state's weights.
    pub fn new(model: &recipe::Model, state: &State, device: &Device) -> FrozenBackbone {
        FrozenBackbone { network: SimSiam::from_state(model, state, device), device: device.clone() }
    }

    /// The features after global average pooling, row after row, of normalised images
    /// `[n, 3, side_px, side_px]`.
    ///
    /// # Panics
    /// If `images` does not hold a whole number of such images, at least one.
    pub fn features(&self, images: Vec<f32>, side_px: usize) -> Vec<f32> {
        let x = image_tensor(images, side_px, &self.device); // [n, 3, side, side]
        self.network.features(x).into_data().try_into_vec().expect("features are f32") // [n, features]
    }
}

/// Images as a tensor, `[n, 3, side_px, side_px]`.
pub(crate) fn image_tensor(images: Vec<f32>, side_px: usize, device: &Device) -> Tensor<4> {
    let image = 3 * side_px * side_px;
    assert!(!images.is_empty() && images.len().is_multiple_of(image), "a batch is made of whole images");
    let shape = [images.len() / image, 3, side_px, side_px];
    Tensor::from_data(TensorData::new(images, shape), device)
}
