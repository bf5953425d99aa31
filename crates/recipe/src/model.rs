//! Encoder and predictor.

use serde::{Deserialize, Serialize};

/// Encoder `f` (backbone and projector) and predictor `h`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The residual network.
    pub backbone: Backbone,
    /// Its first layers, which decide how much of a small image is left.
    pub stem: Stem,
    /// Channels of the first stage; 64 is the standard network, less a narrower one.
    #[serde(default = "standard_width")]
    pub width: u32,
    /// Fully connected layers of the projector: 3 on ImageNet, 2 on CIFAR-10 (appendix D).
    pub projector_layers: u32,
    /// Length of `z` and `p`.
    pub projector_dim: u32,
    /// Length of the predictor's hidden layer; the paper takes a quarter of `projector_dim`.
    pub predictor_dim: u32,
}

/// Which residual network (He et al. 2015, arXiv 1512.03385).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backbone {
    /// One basic block a stage: for a CPU.
    Resnet10,
    /// Two basic blocks a stage.
    Resnet18,
    /// 3, 4, 6 and 3 basic blocks.
    Resnet34,
    /// 3, 4, 6 and 3 bottleneck blocks.
    Resnet50,
}

/// The layers before the first stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stem {
    /// 7x7 convolution of stride 2, then 3x3 max pooling of stride 2: for 224 px.
    Imagenet,
    /// 3x3 convolution of stride 1, no pooling: for 32 px.
    Small,
    /// 3x3 convolution of stride 1, then 3x3 max pooling of stride 2: for 64 to 96 px.
    SmallPool,
}

fn standard_width() -> u32 {
    64
}
