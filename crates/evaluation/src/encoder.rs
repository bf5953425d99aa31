//! The weights under evaluation: those of a checkpoint, proved whole, or random ones.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use recipe::Recipe;
use serde::{Deserialize, Serialize};
use simsiam::{Layout, State, checkpoint};

use crate::error::EvaluationError;

// The layout of a run directory, as the coordinator writes it.
pub(crate) const RECIPE: &str = "recipe.toml";
pub(crate) const CHECKPOINTS: &str = "checkpoints";
pub(crate) const MANIFEST: &str = "manifest.json";
const FILES: [&str; 3] = [checkpoint::MODEL, checkpoint::OPTIMIZER, checkpoint::PROGRESS];

const WAS_REMOVED: &str = "the checkpoint was removed meanwhile, use another one";
const USE_ANOTHER: &str = "the checkpoint is damaged, use another one";

/// A recipe's network with its weights, ready to be evaluated.
#[derive(Debug, Clone)]
pub struct Encoder {
    recipe: Recipe,
    layout: Layout,
    state: State,
    identity: WeightsIdentity,
}

/// Which weights a result is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightsIdentity {
    /// The name in the run's recipe.
    pub run: String,
    /// The checkpoint's name, such as `step-000123`; absent for the random weights of step 0.
    pub checkpoint: Option<String>,
    /// The recipe's seed.
    pub seed: u64,
    /// Steps committed.
    pub step: u64,
    /// The network.
    pub model: recipe::Model,
    /// BLAKE3 over position, weights, running statistics and momentum, in hexadecimal.
    pub state_blake3: String,
    /// BLAKE3 of `model.safetensors`, in hexadecimal; for random weights, of the file they would give.
    pub model_file_blake3: String,
    /// The file that the run's step 0 was imported from; absent where the seed drew all weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<recipe::Start>,
}

/// What a checkpoint's manifest says; its other keys are the coordinator's affair.
#[derive(Deserialize)]
struct Manifest {
    step: u64,
    files: BTreeMap<String, FileEntry>,
}

#[derive(Deserialize)]
struct FileEntry {
    bytes: u64,
    blake3: String,
}

impl Encoder {
    /// Opens a run directory, at its newest whole checkpoint or the one called `name`, or the folder of one
    /// checkpoint within a run directory. Every byte is compared with the manifest's hashes, and the state
    /// with the hash that it was written with.
    ///
    /// # Errors
    /// What is missing, damaged or of another network, with what was expected and found.
    pub fn open(path: &Path, name: Option<&str>) -> Result<Encoder, EvaluationError> {
        if path.join(RECIPE).is_file() {
            let recipe = read_recipe(&path.join(RECIPE))?;
            let checkpoints = path.join(CHECKPOINTS);
            return match name {
                Some(name) => Self::open_named(&recipe, &checkpoints, name),
                None => Self::open_newest(&recipe, &checkpoints),
            };
        }
        if path.join(MANIFEST).is_file() && name.is_none() {
            // Through the real path, so that `.` and `..` and links have parents too.
            let real = fs::canonicalize(path).map_err(EvaluationError::io("open", path))?;
            let run = real.parent().and_then(Path::parent).unwrap_or(&real);
            return Self::read(&read_recipe(&run.join(RECIPE))?, path);
        }
        let found = if path.exists() { "neither" } else { "no such folder" };
        Err(EvaluationError::content(
            path,
            format!("a run directory with {RECIPE}, or a checkpoint with {MANIFEST}"),
            found,
            "correct the path",
        ))
    }

    /// The recipe's network with the weights that its seed draws: the baseline that training must beat.
    pub fn random(recipe: &Recipe) -> Encoder {
        let layout = Layout::of(&recipe.model);
        let state = State::initial(&layout, recipe.seed);
        let files = checkpoint::write(&layout, state.clone());
        let model = files.iter().find(|(name, _)| *name == checkpoint::MODEL);
        let model_blake3 = blake3::hash(model.map_or(&[], |(_, content)| content));
        Self::new(recipe, layout, state, None, model_blake3)
    }

    /// The random weights of step 0 of a run.
    ///
    /// # Errors
    /// A folder that is no run directory, or a recipe that cannot be used.
    pub fn random_of(run: &Path) -> Result<Encoder, EvaluationError> {
        Ok(Self::random(&read_recipe(&run.join(RECIPE))?))
    }

    /// The weights that a card speaks of, from their run.
    ///
    /// # Errors
    /// As [`Encoder::open`]; the checkpoint may have been deleted since.
    pub fn reopen(run: &Path, weights: &WeightsIdentity) -> Result<Encoder, EvaluationError> {
        match &weights.checkpoint {
            Some(name) => Self::open(run, Some(name)),
            None => Self::random_of(run),
        }
    }

    fn open_named(recipe: &Recipe, checkpoints: &Path, name: &str) -> Result<Encoder, EvaluationError> {
        // The name comes from outside: only what is a checkpoint's name becomes part of a path.
        let path = step_of(name).map(|_| checkpoints.join(name)).filter(|path| path.is_dir());
        match path {
            Some(path) => Self::read(recipe, &path),
            None => {
                let there: Vec<String> = steps(checkpoints)?.into_iter().map(checkpoint_name).collect();
                let found = if there.is_empty() { "none at all".into() } else { there.join(", ") };
                let expected = format!("a checkpoint {name}");
                Err(EvaluationError::content(checkpoints, expected, found, "name one that is there"))
            }
        }
    }

    fn open_newest(recipe: &Recipe, checkpoints: &Path) -> Result<Encoder, EvaluationError> {
        let mut last = None;
        for step in steps(checkpoints)?.into_iter().rev() {
            match Self::read(recipe, &checkpoints.join(checkpoint_name(step))) {
                Ok(encoder) => return Ok(encoder),
                Err(error) => {
                    tracing::warn!(step, "checkpoint passed over: {error}");
                    last.get_or_insert(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| {
            let advice = "wait for the run's first checkpoint, or evaluate the random weights of step 0";
            EvaluationError::content(checkpoints, "a checkpoint", "none", advice)
        }))
    }

    /// Reads one checkpoint, which the run may remove meanwhile.
    fn read(recipe: &Recipe, path: &Path) -> Result<Encoder, EvaluationError> {
        Self::read_whole(recipe, path).map_err(|error| {
            if path.join(MANIFEST).is_file() {
                return error;
            }
            EvaluationError::content(path, format!("a checkpoint with {MANIFEST}"), "none", WAS_REMOVED)
        })
    }

    /// The bytes that are hashed are the bytes that are used.
    fn read_whole(recipe: &Recipe, path: &Path) -> Result<Encoder, EvaluationError> {
        let manifest_path = path.join(MANIFEST);
        let text = read_file(&manifest_path, "the checkpoint's manifest")?;
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| {
            let found = format!("what is not one: {error}");
            EvaluationError::content(&manifest_path, "a checkpoint's manifest", found, USE_ANOTHER)
        })?;
        let mut contents = BTreeMap::new();
        for name in FILES {
            let entry = manifest.files.get(name).ok_or_else(|| {
                EvaluationError::content(&manifest_path, format!("an entry for {name}"), "none", USE_ANOTHER)
            })?;
            contents.insert(name, read_verified(&path.join(name), entry)?);
        }

        let layout = Layout::of(&recipe.model);
        let state = checkpoint::read(&layout, |name| contents.get(name).map(Vec::as_slice))
            .map_err(|source| EvaluationError::Checkpoint { path: path.to_owned(), source })?;
        if state.step != manifest.step {
            let (expected, found) = (format!("step {}", manifest.step), format!("step {}", state.step));
            return Err(EvaluationError::content(
                &path.join(checkpoint::PROGRESS),
                expected,
                found,
                USE_ANOTHER,
            ));
        }
        let model_blake3 = blake3::hash(&contents[checkpoint::MODEL]);
        Ok(Self::new(recipe, layout, state, Some(checkpoint_name(manifest.step)), model_blake3))
    }

    fn new(
        recipe: &Recipe,
        layout: Layout,
        state: State,
        checkpoint: Option<String>,
        model_blake3: blake3::Hash,
    ) -> Encoder {
        let identity = WeightsIdentity {
            run: recipe.name.clone(),
            start: recipe.start.clone().filter(|_| checkpoint.is_some()),
            checkpoint,
            seed: recipe.seed,
            step: state.step,
            model: recipe.model.clone(),
            state_blake3: state.hash().to_string(),
            model_file_blake3: model_blake3.to_string(),
        };
        Encoder { recipe: recipe.clone(), layout, state, identity }
    }

    /// The recipe of the run.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Where each parameter lies in the state.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Weights and running statistics.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Which weights these are.
    pub fn identity(&self) -> &WeightsIdentity {
        &self.identity
    }
}

impl WeightsIdentity {
    /// For people: the checkpoint's name, or `random`.
    pub fn short_name(&self) -> &str {
        self.checkpoint.as_deref().unwrap_or("random")
    }
}

pub(crate) fn read_recipe(path: &Path) -> Result<Recipe, EvaluationError> {
    let advice = "the weights mean nothing without their recipe: name a run directory or a folder within one";
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(EvaluationError::content(path, "the run's recipe", "no such file", advice));
        }
        other => other.map_err(EvaluationError::io("read", path))?,
    };
    Recipe::from_toml(&text, &[]).map_err(|source| EvaluationError::Recipe { path: path.to_owned(), source })
}

fn read_file(path: &Path, expected: &str) -> Result<Vec<u8>, EvaluationError> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(EvaluationError::content(path, expected, "no such file", USE_ANOTHER))
        }
        other => other.map_err(EvaluationError::io("read", path)),
    }
}

fn read_verified(path: &Path, entry: &FileEntry) -> Result<Vec<u8>, EvaluationError> {
    let content = read_file(path, &format!("{} bytes", entry.bytes))?;
    let damaged = |expected, found| Err(EvaluationError::content(path, expected, found, USE_ANOTHER));
    if content.len() as u64 != entry.bytes {
        return damaged(format!("{} bytes", entry.bytes), format!("{} bytes", content.len()));
    }
    let blake3 = blake3::hash(&content).to_string();
    if blake3 != entry.blake3 {
        return damaged(format!("BLAKE3 {}", entry.blake3), format!("BLAKE3 {blake3}"));
    }
    Ok(content)
}

/// The steps of all checkpoints, whole or not, oldest first.
pub(crate) fn steps(checkpoints: &Path) -> Result<Vec<u64>, EvaluationError> {
    let entries = match fs::read_dir(checkpoints) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(EvaluationError::io("list", checkpoints))?,
    };
    let names: Vec<PathBuf> = entries
        .map(|entry| entry.map(|entry| entry.file_name().into()))
        .collect::<Result<_, _>>()
        .map_err(EvaluationError::io("list", checkpoints))?;
    let mut steps: Vec<u64> = names.iter().filter_map(|name| step_of(name.to_str()?)).collect();
    steps.sort_unstable();
    Ok(steps)
}

pub(crate) fn checkpoint_name(step: u64) -> String {
    format!("step-{step:06}")
}

/// The step in a checkpoint's name; `None` for every other name.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (checkpoint_name(step) == name).then_some(step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{quickstart, write_checkpoint, write_run};

    fn error(path: &Path, name: Option<&str>) -> String {
        Encoder::open(path, name).unwrap_err().to_string()
    }

    #[test]
    fn the_newest_whole_checkpoint_or_a_named_one_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let run = write_run(folder.path(), &[10, 999_999, 1_000_000]);
        let step = |path: &Path, name| Encoder::open(path, name).unwrap().state().step;
        assert_eq!(step(&run, None), 1_000_000);
        assert_eq!(step(&run, Some("step-000010")), 10);
        assert_eq!(step(&run.join("checkpoints/step-000010"), None), 10);
        fs::write(run.join("checkpoints/step-1000000/model.safetensors"), b"cut").unwrap();
        assert_eq!(step(&run, None), 999_999, "a damaged one is passed over");
    }

    #[test]
    fn random_weights_are_those_of_step_0() {
        let folder = tempfile::tempdir().unwrap();
        let run = write_run(folder.path(), &[0]);
        let (random, written) = (Encoder::random_of(&run).unwrap(), Encoder::open(&run, None).unwrap());
        assert_eq!(random.state(), written.state());
        assert_eq!(random.identity().model_file_blake3, written.identity().model_file_blake3);
        assert_eq!(
            (random.identity().short_name(), written.identity().short_name()),
            ("random", "step-000000")
        );
        for encoder in [random, written] {
            let again = Encoder::reopen(&run, encoder.identity()).unwrap();
            assert_eq!(again.identity(), encoder.identity());
        }
    }

    /// What is done to a checkpoint, and phrases that the error must hold.
    #[test]
    fn a_damaged_checkpoint_is_refused_with_a_sentence() {
        type Damage = fn(&Path);
        let damages: [(Damage, [&str; 2]); 10] = [
            (
                |path| fs::remove_file(path.join("model.safetensors")).unwrap(),
                ["model.safetensors", "no such file"],
            ),
            (|path| fs::remove_file(path.join("progress.json")).unwrap(), ["progress.json", "no such file"]),
            (
                |path| {
                    for file in ["model.safetensors", "manifest.json"] {
                        fs::remove_file(path.join(file)).unwrap();
                    }
                },
                ["found none", "was removed meanwhile, use another one"],
            ),
            (
                |path| fs::write(path.join("optimizer.safetensors"), b"x").unwrap(),
                ["optimizer.safetensors", "1 bytes"],
            ),
            (|path| flip_last_byte(&path.join("model.safetensors")), ["model.safetensors", "BLAKE3"]),
            (
                |path| fs::write(path.join("manifest.json"), b"{\"step\"").unwrap(),
                ["manifest.json", "not one"],
            ),
            (
                |path| fs::write(path.join("manifest.json"), b"{\"step\":5,\"files\":{}}").unwrap(),
                ["an entry for model.safetensors", "found none"],
            ),
            (
                |path| write_checkpoint(path, &State { step: 6, ..state() }, 5),
                ["expected step 5", "found step 6"],
            ),
            (
                |path| {
                    // Whole by its manifest, but of another network.
                    let layout = Layout::of(&recipe::Model { width: 4, ..quickstart().model });
                    let state = State { step: 5, ..State::initial(&layout, 0) };
                    crate::testing::write_checkpoint_of(&layout, path, &state, 5);
                },
                ["encoder.conv1.weight: expected F32 [16, 3, 3, 3]", "found F32 [4, 3, 3, 3]"],
            ),
            (
                |path| {
                    let recipe = path.join("../../recipe.toml");
                    let text = fs::read_to_string(&recipe).unwrap().replace("resnet10", "resnet18");
                    fs::write(recipe, text).unwrap();
                },
                ["encoder.layer1.1.conv1.weight", "no such tensor"],
            ),
        ];
        for (damage, phrases) in damages {
            let folder = tempfile::tempdir().unwrap();
            let run = write_run(folder.path(), &[5]);
            damage(&run.join("checkpoints/step-000005"));
            for error in [error(&run, Some("step-000005")), error(&run, None)] {
                for phrase in phrases {
                    assert!(error.contains(phrase), "{error:?} lacks {phrase:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_run_is_refused_with_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let check =
            |error: String, phrase: &str| assert!(error.contains(phrase), "{error:?} lacks {phrase:?}");
        check(error(folder.path(), None), "expected a run directory");
        check(error(&folder.path().join("nowhere"), None), "no such folder");
        let run = write_run(folder.path(), &[]);
        check(error(&run, None), "wait for the run's first checkpoint");
        check(error(&run, Some("step-000007")), "none at all");
        let run = write_run(folder.path(), &[3, 4]);
        check(error(&run, Some("step-000007")), "found step-000003, step-000004");
        check(error(&run, Some("../checkpoints/step-000003")), "name one that is there");
        fs::write(run.join("recipe.toml"), "seed = -1").unwrap();
        check(error(&run, None), "recipe.toml");
        fs::remove_file(run.join("recipe.toml")).unwrap();
        check(error(&run.join("checkpoints/step-000003"), None), "the run's recipe");
    }

    fn state() -> State {
        State::initial(&Layout::of(&quickstart().model), 0)
    }

    fn flip_last_byte(path: &Path) {
        let mut content = fs::read(path).unwrap();
        *content.last_mut().unwrap() ^= 1;
        fs::write(path, content).unwrap();
    }
}
