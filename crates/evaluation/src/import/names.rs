//! Other programs' names for the tensors of our networks.

use std::collections::BTreeMap;

use super::file::Tensor;
use crate::export::{ENCODER, PROJECTOR};

/// What wraps a network in PyTorch and puts a word before each name: data parallelism, and compilation.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];

/// Counts batches for a BatchNorm without a momentum, which none of ours is.
const COUNTER: &str = "num_batches_tracked";

/// solo-learn and lightly keep the network apart from its heads, under this word.
const BACKBONE: &str = "backbone.";

/// What solo-learn and lightly call the heads, and the official code.
const HEADS: [(&str, &str); 3] = [
    ("projector.", PROJECTOR),
    ("projection_head.layers.", PROJECTOR),
    ("prediction_head.layers.", "predictor."),
];

/// The parts of torchvision's ResNet with weights, by their places in `Sequential(*resnet.children())`, which is what
/// lightly's examples make of it. Between them are those without.
const CHILDREN: [(&str, &str); 6] =
    [("0", "conv1"), ("1", "bn1"), ("4", "layer1"), ("5", "layer2"), ("6", "layer3"), ("7", "layer4")];

/// Tensors by their names in the official SimSiam code, each with its name in the file.
pub(super) struct Named<'a> {
    pub(super) tensors: BTreeMap<String, (&'a str, &'a Tensor)>,
    /// A classifier of the backbone's features, by its names in the file.
    pub(super) classifier: Vec<&'a str>,
}

/// Whose names a file has.
#[derive(Clone, Copy, PartialEq)]
enum Dialect {
    Official,
    /// solo-learn's or lightly's.
    Apart,
    Torchvision,
}

impl<'a> Named<'a> {
    /// Understands the names of the official SimSiam code, torchvision, solo-learn and lightly, in wrappers or without.
    pub(super) fn of(tensors: &'a BTreeMap<String, Tensor>) -> Named<'a> {
        let prefix_bytes = prefix_of_wrappers(tensors).len();
        let bare = || tensors.keys().map(|name| &name[prefix_bytes..]);
        let dialect = match () {
            () if bare().any(|name| name.starts_with(ENCODER)) => Dialect::Official,
            () if bare().any(|name| name.starts_with(BACKBONE)) => Dialect::Apart,
            () => Dialect::Torchvision,
        };
        let mut named = Named { tensors: BTreeMap::new(), classifier: Vec::new() };
        for ((in_file, tensor), name) in tensors.iter().zip(bare()) {
            if name.ends_with(COUNTER) {
                continue;
            }
            if dialect.is_classifier(name) {
                named.classifier.push(in_file);
                continue;
            }
            named.tensors.insert(dialect.official(name), (in_file.as_str(), tensor));
        }
        named
    }

    /// Whether any tensor is the projector's or the predictor's.
    pub(super) fn has_heads(&self) -> bool {
        self.tensors.keys().any(|name| is_of_heads(name))
    }

    /// Whether the projector's layers are of several widths, as the official ones are on a ResNet-18.
    pub(super) fn has_uneven_projector(&self) -> bool {
        let is_linear = |(name, (_, tensor)): &(&String, &(&str, &Tensor))| {
            name.starts_with(PROJECTOR) && tensor.shape.len() == 2
        };
        let mut widths = self.tensors.iter().filter(is_linear).map(|(_, (_, tensor))| tensor.shape[0]);
        let first = widths.next();
        widths.any(|width| Some(width) != first)
    }
}

/// The words that wrappers put before every name.
fn prefix_of_wrappers(tensors: &BTreeMap<String, Tensor>) -> String {
    let mut prefix = String::new();
    while let Some(wrapper) = WRAPPERS.iter().find(|wrapper| {
        !tensors.is_empty()
            && tensors.keys().all(|name| {
                name.strip_prefix(prefix.as_str()).is_some_and(|name| name.starts_with(**wrapper))
            })
    }) {
        prefix.push_str(wrapper);
    }
    prefix
}

impl Dialect {
    fn is_classifier(self, name: &str) -> bool {
        match self {
            Dialect::Official => false,
            Dialect::Apart => name.starts_with("classifier."),
            Dialect::Torchvision => ["fc.weight", "fc.bias"].contains(&name),
        }
    }

    /// A tensor's name in the official code; of one that has no place there, its own.
    fn official(self, name: &str) -> String {
        let of_backbone = match self {
            Dialect::Official => None,
            Dialect::Apart => name.strip_prefix(BACKBONE),
            Dialect::Torchvision => Some(name).filter(|name| !name.starts_with("predictor.")),
        };
        if let Some(name) = of_backbone {
            let (first, rest) = name.split_once('.').unwrap_or((name, ""));
            let child = CHILDREN.iter().find(|(place, _)| *place == first);
            return child
                .map_or_else(|| format!("{ENCODER}{name}"), |(_, child)| format!("{ENCODER}{child}.{rest}"));
        }
        let of_heads = HEADS.iter().filter(|_| self == Dialect::Apart);
        let mut renamed =
            of_heads.filter_map(|(theirs, ours)| Some(format!("{ours}{}", name.strip_prefix(theirs)?)));
        renamed.next().unwrap_or_else(|| name.to_owned())
    }
}

/// Whether a tensor of the official code is the projector's or the predictor's.
pub(super) fn is_of_heads(name: &str) -> bool {
    name.starts_with(PROJECTOR) || !name.starts_with(ENCODER)
}
