//! Run directories for tests, as the coordinator writes them.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use recipe::{Data, Recipe};
use serde_json::json;
use simsiam::{Device, Layout, State, checkpoint};
use tempfile::TempDir;

use crate::encoder::Encoder;
use crate::features::Input;
use crate::job::Job;

/// A run with one checkpoint, and drawn images in a cache.
pub(crate) struct Scene {
    pub(crate) folder: TempDir,
    pub(crate) encoder: Encoder,
    pub(crate) data: Data,
    device: Device,
}

impl Scene {
    pub(crate) fn new() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let encoder = Encoder::open(&write_run(folder.path(), &[7]), None).unwrap();
        Scene { folder, encoder, data: Data::Synthetic { images: 128 }, device: Device::flex() }
    }

    pub(crate) fn job(&self) -> Job<'_> {
        let Scene { folder, encoder, data, device } = self;
        Job { encoder, data, input: Input::Crop, cache_dir: folder.path(), device }
    }
}

pub(crate) fn quickstart() -> Recipe {
    Recipe::from_toml(recipe::QUICKSTART, &[]).unwrap()
}

/// A run of the quickstart with the initial weights as the checkpoint of each step.
pub(crate) fn write_run(folder: &Path, steps: &[u64]) -> PathBuf {
    let run = folder.join("run");
    fs::create_dir_all(run.join("checkpoints")).unwrap();
    fs::write(run.join("recipe.toml"), quickstart().to_toml()).unwrap();
    let state = State::initial(&Layout::of(&quickstart().model), 0);
    for &step in steps {
        let path = run.join(format!("checkpoints/step-{step:06}"));
        fs::create_dir_all(&path).unwrap();
        write_checkpoint(&path, &State { step, ..state.clone() }, step);
    }
    run
}

/// The files of a checkpoint of the quickstart's network, with a manifest that speaks of `manifest_step`.
pub(crate) fn write_checkpoint(path: &Path, state: &State, manifest_step: u64) {
    write_checkpoint_of(&Layout::of(&quickstart().model), path, state, manifest_step);
}

pub(crate) fn write_checkpoint_of(layout: &Layout, path: &Path, state: &State, manifest_step: u64) {
    let mut files = serde_json::Map::new();
    for (name, content) in checkpoint::write(layout, state.clone()) {
        let entry = json!({"bytes": content.len(), "blake3": blake3::hash(&content).to_string()});
        files.insert(name.to_owned(), entry);
        fs::write(path.join(name), content).unwrap();
    }
    let manifest = json!({"step": manifest_step, "run_id": "00ff", "files": files});
    fs::write(path.join("manifest.json"), manifest.to_string()).unwrap();
}

/// A file of a run with some bytes changed is read, or refused with its name.
pub(crate) fn check_damaged<T, E: Display>(name: &str, content: &[u8], read: impl Fn(&Path) -> Result<T, E>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    let change = (any::<prop::sample::Index>(), any::<u8>());
    proptest!(ProptestConfig::with_cases(128), |(changes in prop::collection::vec(change, 1..6))| {
        let mut bytes = content.to_vec();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        fs::write(&path, bytes).unwrap();
        if let Err(error) = read(&path) {
            prop_assert!(error.to_string().contains(name), "{}", error);
        }
    });
}
