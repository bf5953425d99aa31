//! Other programs' names for the tensors of our networks.

use std::collections::BTreeMap;

use super::file::Tensor;
use crate::export::{ENCODER, PROJECTOR};

/// What wraps a network in PyTorch and puts a word before each name: data parallelism, and compilation.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];

/// Counts batches for a BatchNorm without a momentum, which none of ours is.
const COUNTER: &str = "num_batches_tracked";

/// Tensors by their names in the official SimSiam code, each with its name in the file.
pub(super) struct Named<'a> {
    pub(super) tensors: BTreeMap<String, (&'a str, &'a Tensor)>,
    /// torchvision's classifier, by its names in the file.
    pub(super) classifier: Vec<&'a str>,
}

impl<'a> Named<'a> {
    /// Understands the official SimSiam code's names and torchvision's, in wrappers or without.
    pub(super) fn of(tensors: &'a BTreeMap<String, Tensor>) -> Named<'a> {
        let mut prefix = String::new();
        while let Some(wrapper) = WRAPPERS.iter().find(|wrapper| {
            !tensors.is_empty()
                && tensors.keys().all(|name| {
                    name.strip_prefix(prefix.as_str()).is_some_and(|name| name.starts_with(**wrapper))
                })
        }) {
            prefix.push_str(wrapper);
        }
        let is_official = tensors.keys().any(|name| name[prefix.len()..].starts_with(ENCODER));
        let mut named = Named { tensors: BTreeMap::new(), classifier: Vec::new() };
        for (in_file, tensor) in tensors {
            let name = &in_file[prefix.len()..];
            if name.ends_with(COUNTER) {
                continue;
            }
            if !is_official && ["fc.weight", "fc.bias"].contains(&name) {
                named.classifier.push(in_file);
                continue;
            }
            let is_of_encoder = !is_official && !name.starts_with("predictor.");
            let name = if is_of_encoder { format!("{ENCODER}{name}") } else { name.to_owned() };
            named.tensors.insert(name, (in_file.as_str(), tensor));
        }
        named
    }

    /// Whether any tensor is the projector's or the predictor's.
    pub(super) fn has_heads(&self) -> bool {
        self.tensors.keys().any(|name| is_of_heads(name))
    }
}

/// Whether a tensor of the official code is the projector's or the predictor's.
pub(super) fn is_of_heads(name: &str) -> bool {
    name.starts_with(PROJECTOR) || !name.starts_with(ENCODER)
}
