//! How much a recipe's network computes, counted from the recipe alone: with a step's time it says how well a device is used.

use crate::{Backbone, Model, Recipe, Stem};

/// A product of weights and activations: a convolution, or a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// Weights that make one number of the output.
    pub inputs: u64,
    /// Channels of the output.
    pub outputs: u64,
    /// Places of the output, all made with the same weights: the pixels of a convolution's map, 1 of a linear layer.
    pub places: u64,
}

impl Product {
    /// How many weights there are.
    pub fn weights(&self) -> u64 {
        self.inputs * self.outputs
    }

    /// Multiplications of one view, each with its addition. Padding counts as if it were multiplied with.
    pub fn multiply_adds(&self) -> u64 {
        self.weights() * self.places
    }
}

/// What comes into a product.
#[derive(Debug, Clone, Copy)]
struct Map {
    channels: u64,
    /// Of its square, in pixels.
    side: u64,
}

impl Map {
    /// A convolution that is padded so that stride 1 keeps the side, and what comes out of it.
    fn convolved(self, channels: u64, kernel: u64, stride: u64) -> (Product, Map) {
        let side = self.side.div_ceil(stride);
        let inputs = self.channels * kernel * kernel;
        (Product { inputs, outputs: channels, places: side * side }, Map { channels, side })
    }
}

impl Model {
    /// The products of encoder and predictor for views of `side_px` by `side_px` pixels, in the order of their weights.
    pub fn products(&self, side_px: u32) -> Vec<Product> {
        let width = u64::from(self.width);
        let (kernel, stride) = match self.stem {
            Stem::Imagenet => (7, 2),
            Stem::Small | Stem::SmallPool => (3, 1),
        };
        let (stem, mut map) = Map { channels: 3, side: u64::from(side_px) }.convolved(width, kernel, stride);
        let mut products = vec![stem];
        if self.stem != Stem::Small {
            map.side = map.side.div_ceil(2);
        }
        let (depths, is_bottleneck) = match self.backbone {
            Backbone::Resnet10 => ([1, 1, 1, 1], false),
            Backbone::Resnet18 => ([2, 2, 2, 2], false),
            Backbone::Resnet34 => ([3, 4, 6, 3], false),
            Backbone::Resnet50 => ([3, 4, 6, 3], true),
        };
        for (stage, depth) in depths.into_iter().enumerate() {
            for place in 0..depth {
                let stride = if stage > 0 && place == 0 { 2 } else { 1 };
                map = add_block(&mut products, map, width << stage, stride, is_bottleneck);
            }
        }
        self.add_heads(&mut products, map.channels);
        products
    }

    /// Projector and predictor, of vectors of `features`.
    fn add_heads(&self, products: &mut Vec<Product>, features: u64) {
        let (dim, hidden) = (u64::from(self.projector_dim), u64::from(self.predictor_dim));
        let mut linear = |inputs, outputs| products.push(Product { inputs, outputs, places: 1 });
        for layer in 0..self.projector_layers {
            linear(if layer == 0 { features } else { dim }, dim);
        }
        linear(dim, hidden);
        linear(hidden, dim);
    }
}

/// A residual block, and what comes out of it.
fn add_block(products: &mut Vec<Product>, input: Map, middle: u64, stride: u64, is_bottleneck: bool) -> Map {
    let output = if is_bottleneck { 4 * middle } else { middle };
    // (channels, kernel, stride); the bottleneck strides in its 3x3 convolution.
    let layers: &[(u64, u64, u64)] = if is_bottleneck {
        &[(middle, 1, 1), (middle, 3, stride), (output, 1, 1)]
    } else {
        &[(middle, 3, stride), (output, 3, 1)]
    };
    let mut map = input;
    for &(channels, kernel, stride) in layers {
        let (product, next) = map.convolved(channels, kernel, stride);
        products.push(product);
        map = next;
    }
    if stride != 1 || input.channels != output {
        products.push(input.convolved(output, 1, stride).0);
    }
    map
}

impl Recipe {
    /// Floating-point operations that a step has to make for each image of its batch: forward and backward of both views,
    /// in convolutions and linear layers, a multiplication and an addition being two. BatchNorm, the loss and the optimizer
    /// are left out, as is usual: they take time, but hardly any arithmetic.
    pub fn flops_per_image(&self) -> f64 {
        let products = self.model.products(self.views.crop_px);
        let forward: u64 = products.iter().map(Product::multiply_adds).sum();
        // Backward, every product is made once more for the gradient of its weights, and once for that of what came in,
        // which nobody asks for of a picture.
        let of_pictures = products.first().map_or(0, Product::multiply_adds);
        let (views, operations) = (2.0, 2.0);
        views * operations * (3 * forward - of_pictures) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::QUICKSTART;

    fn recipe(set: &[&str]) -> Recipe {
        let set: Vec<String> = set.iter().map(|value| (*value).to_string()).collect();
        Recipe::from_toml(QUICKSTART, &set).unwrap()
    }

    /// What torchvision says of its networks (`_ops` of their weights, in thousand millions of multiplications at 224 px),
    /// whose classifier of 1,000 classes is not here.
    #[test]
    fn networks_compute_what_torchvision_says_of_them() {
        for (backbone, features, expected) in
            [("resnet18", 512, 1.814), ("resnet34", 512, 3.664), ("resnet50", 2048, 4.089)]
        {
            let set = format!("model.backbone={backbone}");
            let recipe = recipe(&[set.as_str(), "model.stem=imagenet", "model.width=64"]);
            let products = recipe.model.products(224);
            let convolutions = products.iter().filter(|product| product.places > 1);
            let multiply_adds = convolutions.map(Product::multiply_adds).sum::<u64>() + 1000 * features;
            let found = multiply_adds as f64 / 1e9;
            assert!((found - expected).abs() < 0.0006, "{backbone}: {found}");
        }
    }

    #[test]
    fn a_step_computes_three_times_what_a_forward_pass_does_but_for_the_gradient_of_pictures() {
        // A stem of 27 weights for each of 4 channels at 8 by 8 places, and little behind it.
        let recipe = recipe(&["views.crop_px=8", "model.width=4"]);
        let products = recipe.model.products(8);
        assert_eq!(products[0], Product { inputs: 27, outputs: 4, places: 64 });
        let forward: u64 = products.iter().map(Product::multiply_adds).sum();
        assert_eq!(recipe.flops_per_image(), (4 * (3 * forward - 27 * 4 * 64)) as f64);
        // Projector and predictor come last, whatever the views.
        let (dim, hidden) = (u64::from(recipe.model.projector_dim), u64::from(recipe.model.predictor_dim));
        let [.., down, up] = products[..] else { panic!("there is a predictor") };
        assert_eq!((down.inputs, down.outputs, up.inputs, up.outputs), (dim, hidden, hidden, dim));
    }
}
