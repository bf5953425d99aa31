//! Which network a file's tensors look like, for people who chose another one.

use std::collections::BTreeMap;

use recipe::Backbone;

use super::names::Named;

/// Where a tensor was looked for, as the end of a sentence: the backbone that these tensors look like, or some
/// of their names where they look like none.
pub(super) fn describe(named: &Named<'_>) -> String {
    let shape = |name: &str| named.tensors.get(name).map(|(_, tensor)| tensor.shape.as_slice());
    let Some([width, 3, kernel, _]) = shape("encoder.conv1.weight") else {
        let some: Vec<&str> = named.tensors.values().map(|(in_file, _)| *in_file).take(3).collect();
        return format!("among {} tensors such as {}", named.tensors.len(), some.join(", "));
    };
    let stem = match kernel {
        7 => "stem imagenet",
        3 => "stem small or small-pool",
        _ => "a stem that no recipe has",
    };
    let is_bottleneck = shape("encoder.layer1.0.conv3.weight").is_some();
    let depths = depths(named);
    let backbone = match (depths.as_slice(), is_bottleneck) {
        ([1, 1, 1, 1], false) => Some(Backbone::Resnet10),
        ([2, 2, 2, 2], false) => Some(Backbone::Resnet18),
        ([3, 4, 6, 3], false) => Some(Backbone::Resnet34),
        ([3, 4, 6, 3], true) => Some(Backbone::Resnet50),
        _ => None,
    };
    match backbone {
        Some(backbone) => {
            format!("in what looks like a {}, width {width}, {stem}", format!("{backbone:?}").to_lowercase())
        }
        None => {
            let kind = if is_bottleneck { "bottleneck" } else { "basic" };
            format!("in a network with {depths:?} {kind} blocks, which no recipe has")
        }
    }
}

/// How many blocks each stage has, from the names `encoder.layerSTAGE.BLOCK.…`.
fn depths(named: &Named<'_>) -> Vec<usize> {
    let mut depths: BTreeMap<usize, usize> = BTreeMap::new();
    for name in named.tensors.keys() {
        let mut parts = name.strip_prefix("encoder.layer").unwrap_or_default().split('.');
        let mut number = || parts.next()?.parse::<usize>().ok();
        if let (Some(stage), Some(block)) = (number(), number()) {
            let depth = depths.entry(stage).or_default();
            *depth = (*depth).max(block.saturating_add(1));
        }
    }
    depths.into_values().collect()
}
