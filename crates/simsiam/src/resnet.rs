//! Residual networks (He et al. 2015, arXiv 1512.03385), layer for layer and name for name torchvision's, so
//! that weights travel both ways without a conversion.

use burn::tensor::Tensor;
use recipe::{Backbone, Stem};

use crate::kernels::{self, Then};
use crate::layers::{BatchNorm, Conv, Statistics};
use crate::parameters::Parameters;

/// Stem, four stages of residual blocks, global average pool.
pub(crate) struct ResNet {
    conv1: Conv,
    bn1: BatchNorm,
    pools: bool,
    blocks: Vec<Block>,
    /// Length of the features.
    pub(crate) features: usize,
}

impl ResNet {
    pub(crate) fn new(p: &mut Parameters, name: &str, model: &recipe::Model) -> Self {
        let width = model.width as usize;
        let (kernel, stride) = match model.stem {
            Stem::Imagenet => (7, 2),
            Stem::Small | Stem::SmallPool => (3, 1),
        };
        let conv1 = Conv::new(p, &format!("{name}.conv1"), [3, width], kernel, stride);
        let bn1 = BatchNorm::new(p, &format!("{name}.bn1"), width);

        let (depths, bottleneck) = match model.backbone {
            Backbone::Resnet10 => ([1, 1, 1, 1], false),
            Backbone::Resnet18 => ([2, 2, 2, 2], false),
            Backbone::Resnet34 => ([3, 4, 6, 3], false),
            Backbone::Resnet50 => ([3, 4, 6, 3], true),
        };
        let mut blocks = Vec::new();
        let mut channels = width;
        for (stage, depth) in depths.into_iter().enumerate() {
            for place in 0..depth {
                let name = format!("{name}.layer{}.{place}", stage + 1);
                // Each stage but the first halves the map and doubles the channels.
                let stride = if stage > 0 && place == 0 { 2 } else { 1 };
                let block = Block::new(p, &name, channels, width << stage, stride, bottleneck);
                channels = block.output_channels;
                blocks.push(block);
            }
        }
        ResNet { conv1, bn1, pools: model.stem != Stem::Small, blocks, features: channels }
    }

    /// `x: [n, 3, h, w] -> [n, features]`
    pub(crate) fn forward(&self, x: Tensor<4>, statistics: &mut Statistics) -> Tensor<2> {
        // Activations lie channels-last from here on: what convolutions are fastest with, on CPUs and GPUs.
        let x = self.conv1.forward(x.permute([0, 2, 3, 1])); // [n, h', w', width]
        let mut x = self.bn1.forward(x, Then::Rectify, statistics);
        if self.pools {
            x = kernels::max_pool(x);
        }
        for block in &self.blocks {
            x = block.forward(x, statistics);
        }
        kernels::average_pool(x) // [n, features]
    }

    /// Floats in the outputs of every convolution and BatchNorm, for one image of `side` pixels.
    pub(crate) fn activation_floats(&self, side: usize) -> usize {
        let (floats, mut side) = self.conv1.output_floats(side);
        let mut total = 2 * floats;
        if self.pools {
            side = side.div_ceil(2);
        }
        for block in &self.blocks {
            let mut inner_side = side;
            for (conv, _) in &block.layers {
                let (floats, output_side) = conv.output_floats(inner_side);
                total += 2 * floats;
                inner_side = output_side;
            }
            total += block.shortcut.iter().map(|(conv, _)| 2 * conv.output_floats(side).0).sum::<usize>();
            side = inner_side;
        }
        total
    }
}

/// A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 for the bottleneck, beside a shortcut.
struct Block {
    layers: Vec<(Conv, BatchNorm)>,
    shortcut: Option<(Conv, BatchNorm)>,
    output_channels: usize,
}

/// A bottleneck's output has this many times the channels of its middle.
const EXPANSION: usize = 4;

impl Block {
    fn new(
        p: &mut Parameters,
        name: &str,
        input: usize,
        middle: usize,
        stride: usize,
        bottleneck: bool,
    ) -> Self {
        let output = if bottleneck { middle * EXPANSION } else { middle };
        // (channels in, channels out, kernel, stride); the bottleneck strides in its 3x3 convolution.
        let shapes: &[(usize, usize, usize, usize)] = if bottleneck {
            &[(input, middle, 1, 1), (middle, middle, 3, stride), (middle, output, 1, 1)]
        } else {
            &[(input, middle, 3, stride), (middle, output, 3, 1)]
        };
        let mut layers = Vec::new();
        for (index, &(from, to, kernel, stride)) in shapes.iter().enumerate() {
            let number = index + 1;
            let conv = Conv::new(p, &format!("{name}.conv{number}"), [from, to], kernel, stride);
            let name = format!("{name}.bn{number}");
            let last = number == shapes.len();
            let bn = if last { BatchNorm::zero(p, &name, to) } else { BatchNorm::new(p, &name, to) };
            layers.push((conv, bn));
        }
        let shortcut = (stride != 1 || input != output).then(|| {
            let conv = Conv::new(p, &format!("{name}.downsample.0"), [input, output], 1, stride);
            (conv, BatchNorm::new(p, &format!("{name}.downsample.1"), output))
        });
        Block { layers, shortcut, output_channels: output }
    }

    fn forward(&self, x: Tensor<4>, statistics: &mut Statistics) -> Tensor<4> {
        let shortcut = match &self.shortcut {
            Some((conv, bn)) => bn.forward(conv.forward(x.clone()), Then::Nothing, statistics),
            None => x.clone(),
        };
        let [inner @ .., (last_conv, last_bn)] = &self.layers[..] else { unreachable!("a block has layers") };
        let mut y = x;
        for (conv, bn) in inner {
            y = bn.forward(conv.forward(y), Then::Rectify, statistics);
        }
        last_bn.forward(last_conv.forward(y), Then::AddAndRectify(shortcut), statistics)
    }
}
