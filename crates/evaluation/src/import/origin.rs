//! What one of our own exports says of its network that its tensors do not tell. Files of others say nothing, or something
//! else under the same keys, which counts as nothing.

use std::collections::HashMap;

use recipe::{Model, Recipe};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A file's metadata.
pub(super) type Metadata = HashMap<String, String>;

fn value<T: DeserializeOwned>(metadata: &Metadata, key: &str) -> Option<T> {
    serde_json::from_str(metadata.get(key)?).ok()
}

/// The model's stem and the file's, where they differ. Two stems have the same weights, but one pools.
pub(super) fn other_stem(metadata: &Metadata, model: &Model) -> Option<[Value; 2]> {
    let theirs = value::<Value>(metadata, "model")?.get("stem")?.clone();
    let ours = json!(model.stem);
    (ours != theirs).then_some([ours, theirs])
}

/// What to say where the file's network saw pictures that were normalised otherwise than the recipe's.
pub(super) fn other_normalisation(metadata: &Metadata, recipe: &Recipe) -> Option<String> {
    let [mean, std]: [Option<[f32; 3]>; 2] = ["mean", "std"].map(|key| value(metadata, key));
    let (mean, std, views) = (mean?, std?, &recipe.views);
    (mean != views.mean || std != views.std).then(|| {
        format!(
            "its network saw pictures normalised with mean {mean:?} and std {std:?}, but views.mean is {:?} and views.std \
             {:?}: set them to the file's, unless you train on",
            views.mean, views.std
        )
    })
}
