//! How the encoder is judged.

use serde::{Deserialize, Serialize};

use crate::Data;

/// How the encoder is judged: while it trains, and by default whenever its run is evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// While the run trains, test images are classified by their nearest neighbours before the first step,
    /// and again after every so many saved checkpoints. 0: not while it trains.
    #[serde(default)]
    pub every_checkpoints: u32,
    /// How the neighbours vote. Numbers of different settings differ by points, so all are given.
    #[serde(default = "usual_votes")]
    pub knn: Vec<Votes>,
    /// The labelled images; absent: those of the run's own data set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
}

/// How the nearest neighbours of an image vote on its class (Wu et al. 2018, arXiv 1805.01978).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Votes {
    /// How many neighbours vote.
    pub k: usize,
    /// A vote weighs `exp(similarity / temperature)`: the smaller, the faster it falls with distance.
    pub temperature: f64,
}

impl Votes {
    /// The two settings in use: that of most CIFAR-10 results, and DINO's for ImageNet.
    pub const USUAL: [Votes; 2] = [Votes { k: 200, temperature: 0.1 }, Votes { k: 20, temperature: 0.07 }];
}

impl Default for Evaluation {
    fn default() -> Self {
        Evaluation { every_checkpoints: 0, knn: usual_votes(), data: None }
    }
}

fn usual_votes() -> Vec<Votes> {
    Votes::USUAL.to_vec()
}
