//! SimSiam on one page, in the paper's letters.
//!
//! ```text
//! z1, z2 = f(x1), f(x2)                  # projections, n-by-d
//! p1, p2 = h(z1), h(z2)                  # predictions, n-by-d
//! L = D(p1, z2)/2 + D(p2, z1)/2          # loss
//! D(p, z) = -(normalize(p) · normalize(stop_gradient(z))).sum(dim=1).mean()
//! ```
//! (algorithm 1 of arXiv 2011.10566)

use burn::tensor::{DType, Tensor};

use crate::heads::{Predictor, Projector};
use crate::kernels::{self, AllShards};
use crate::layers::{BatchStatistics, Statistics};
use crate::parameters::{Parameters, outline};
use crate::resnet::ResNet;

/// Encoder `f` (backbone and projector) and predictor `h`.
pub struct SimSiam {
    backbone: ResNet,
    projector: Projector,
    h: Predictor,
    stop_gradient: bool,
}

/// What the loss needs of both views, and what BatchNorm saw.
pub struct Encoded {
    /// `L`, one number.
    pub loss: Tensor<1>,
    /// `z1` and `z2`, each `[n, d]`, of length 1 along `d` and without gradient.
    pub z: [Tensor<2>; 2],
    /// The batch statistics of the first and of the second view's pass.
    pub statistics: BatchStatistics,
}

impl SimSiam {
    pub(crate) fn new(p: &mut Parameters, model: &recipe::Model) -> Self {
        let backbone = ResNet::new(p, "encoder", model);
        let projector = Projector::new(p, "encoder.fc", backbone.features, model);
        let h = Predictor::new(p, "predictor", model);
        SimSiam { backbone, projector, h, stop_gradient: true }
    }

    /// Lets the gradient flow through `z`: SimSiam then collapses (figure 2 of the paper).
    pub(crate) fn without_stop_gradient(self) -> Self {
        SimSiam { stop_gradient: false, ..self }
    }

    /// Both views, `x1, x2: [n, 3, h, w]`, one below the other in `x`. They go through as one batch, which reads
    /// every weight once, but each has its own batch statistics: those of these images, or with `shards` of theirs, too.
    pub fn forward(&self, x: Tensor<4>, shards: Option<AllShards>) -> Encoded {
        let mut statistics = BatchStatistics::of(2).over(shards);
        let per_view = &mut Statistics::Batch(&mut statistics);

        let z = self.f(x, per_view); // [2n, d]
        let p = self.h.forward(z.clone(), per_view); // [2n, d]
        // Nothing from here on is short of time or memory, so it is in f32 whatever came before.
        let (z, p) = (z.cast(DType::F32), p.cast(DType::F32));
        let ([z1, z2], [p1, p2]) = (halves(z), halves(p)); // each [n, d]

        let loss = (self.d(p1, z2.clone()) + self.d(p2, z1.clone())) / 2.0;
        Encoded { loss, z: [z1, z2].map(|z| kernels::normalise(z.inner())), statistics }
    }

    /// The pooled features of the backbone, `x: [n, 3, h, w] -> [n, features]`: what evaluation looks at.
    pub fn features(&self, x: Tensor<4>) -> Tensor<2> {
        self.backbone.forward(x, &mut Statistics::Running)
    }

    /// Floats that the backward pass of a shard needs in memory: the output of every convolution and BatchNorm,
    /// for two views of each of `images` images of `side_px` pixels. The heads' rows are too short to count.
    pub fn activation_floats(model: &recipe::Model, images: usize, side_px: usize) -> usize {
        let (network, _) = outline(model);
        2 * images * network.backbone.activation_floats(side_px)
    }

    /// The encoder, `[n, 3, h, w] -> [n, d]`.
    fn f(&self, x: Tensor<4>, statistics: &mut Statistics) -> Tensor<2> {
        let features = self.backbone.forward(x, statistics); // [n, features]
        self.projector.forward(features, statistics)
    }

    /// The negative cosine similarity, with `z` held constant.
    fn d(&self, p: Tensor<2>, z: Tensor<2>) -> Tensor<1> {
        let z = if self.stop_gradient { z.detach() } else { z };
        -kernels::cosine(p, z).mean()
    }
}

/// `[2n, d]` into twice `[n, d]`.
fn halves(x: Tensor<2>) -> [Tensor<2>; 2] {
    let n = x.dims()[0] / 2;
    x.split(n, 0).try_into().expect("both views have the same number of rows")
}
