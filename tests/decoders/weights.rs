//! What evaluation reads.

use std::fs;

use evaluation::Card;
use recipe::{QUICKSTART, Recipe, Start};

use super::control::Decode;

/// As in `control.rs`.
pub(crate) const DECODERS: &[(&str, Decode, u64)] = &[("card", card, 400), ("import", import, 60)];

/// A result card.
fn card(bytes: &[u8]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("card.json");
    fs::write(&path, bytes).unwrap();
    let Ok(card) = Card::read(&path) else { return false };
    assert!(card.differences(&card).is_empty(), "a card equals itself");
    card.file_name().ends_with(".json")
}

/// Weights of another program: a pickle, or safetensors.
fn import(bytes: &[u8]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    fs::write(&path, bytes).unwrap();
    let network =
        ["model.width=2", "model.projector_dim=6", "model.predictor_dim=3", "model.backbone=resnet10"];
    let recipe = Recipe::from_toml(QUICKSTART, &network.map(str::to_owned)).unwrap();
    let start = Start { weights: path, blake3: None, heads: None };
    evaluation::import(&recipe, &start).is_ok()
}
