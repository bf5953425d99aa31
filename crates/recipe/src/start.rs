//! Where a run's first weights come from, if not from its seed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A file of weights that step 0 is made of: a safetensors file or a PyTorch checkpoint. Only the coordinator
/// needs it: workers receive the state that it gives.
///
/// Creating a run fills in what is absent, so that the recipe in its folder says exactly which weights they
/// are: a run is a function of its recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The file.
    pub weights: PathBuf,
    /// BLAKE3 of the file, in hexadecimal; absent: whatever the file holds when the run is created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// Whether projector and predictor come from the file too; absent: if it has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<Heads>,
}

/// Where projector and predictor come from. The backbone always comes from the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Heads {
    /// From the file.
    Imported,
    /// From the recipe's seed, whether the file has them or not.
    Random,
}
