//! What a run is: plain structs beside their checks.
//!
//! A [`Recipe`] is one TOML file that fixes a run completely. It is parsed once, with
//! [`Recipe::from_toml`], which refuses unknown keys, values out of range and combinations that cannot
//! work, each with a sentence that says what to do. A `Recipe` in hand has therefore been checked, and no
//! other crate checks it again.
//!
//! This crate knows nothing of tensors, files or networks.

mod check;
mod data;
mod evaluation;
mod model;
mod optimizer;
mod overrides;
mod presets;
mod random;
mod start;
mod views;
mod work;

use serde::{Deserialize, Serialize};

pub use check::RecipeError;
pub use data::Data;
pub use evaluation::{Evaluation, Votes};
pub use model::{Backbone, Model, Stem};
pub use optimizer::{LearningRateChange, Optimizer, same_learning_rates_until};
pub use presets::{PRESETS, QUICKSTART};
pub use random::{Draws, Purpose};
pub use start::{Heads, Start};
pub use views::{ColorJitter, Views};
pub use work::Product;

/// One complete run, from first to last step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The run's name, and its folder under `runs/` unless another is given.
    pub name: String,
    /// Every random draw of the run is a function of this number.
    #[serde(default)]
    pub seed: u64,
    /// The images to learn from.
    pub data: Data,
    /// How two views are made of an image.
    pub views: Views,
    /// Encoder and predictor.
    pub model: Model,
    /// SGD and its learning rate.
    pub optimizer: Optimizer,
    /// How long, and in what portions.
    pub training: Training,
    /// When the weights are saved.
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// How the encoder is judged.
    #[serde(default)]
    pub evaluation: Evaluation,
    /// The weights to start from; absent: those that the seed draws.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
}

/// How long a run is, and in what portions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Passes over the data.
    pub epochs: u32,
    /// Images per step, over all shards. Each gives two views.
    pub batch: u32,
    /// The run's logical slices: each has its own samples, its part of every batch and, unless
    /// [`batch_norm`](Self::batch_norm) says otherwise, its own BatchNorm statistics, which take 3 images or more. A power
    /// of two. The result depends on this number and not on the number of workers.
    pub shards: u32,
    /// Over which images BatchNorm takes its statistics while it trains.
    #[serde(default)]
    pub batch_norm: BatchNorm,
    /// The paper's one essential: no gradient through `z`. `false` is for watching the collapse.
    #[serde(default = "yes")]
    pub stop_gradient: bool,
    /// What convolutions and linear layers multiply in, and activations are kept in.
    #[serde(default)]
    pub precision: Precision,
    /// What gradients are rounded to where they go from worker to worker over TCP, which halves the bytes; they are added
    /// up in `f32`. With [`Bf16`](Precision::Bf16) the result depends on the number of workers and on what lies between
    /// them: memory that workers share, and GPUs, carry all bits. PyTorch's `bf16_compress_hook` does the same.
    #[serde(default)]
    pub exchange_precision: Precision,
    /// Steps in a row that may be left out because a loss or a gradient is not finite: the batch is used up, the weights
    /// stay as they are. With 0 the first such step ends the run.
    #[serde(default)]
    pub max_skipped_steps: u32,
    /// What happens once the network has collapsed, or cannot learn for another reason that is certain.
    #[serde(default)]
    pub on_collapse: OnCollapse,
}

/// Over which images BatchNorm takes the statistics of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchNorm {
    /// Over those of one shard, as PyTorch's DistributedDataParallel does on as many GPUs.
    #[default]
    Shard,
    /// Over the whole batch, as PyTorch's `SyncBatchNorm`, with which the official code trains. The workers meet twice
    /// for every BatchNorm of a step, and all shards of a worker are in its memory at once.
    Sync,
}

/// What happens once nothing good can come of a run any more. It is always said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCollapse {
    /// The run goes on.
    #[default]
    Warn,
    /// The run stops after the step in hand and saves.
    Stop,
    /// A run that has collapsed, or is about to, goes back to its last checkpoint where it was healthy, or to its beginning,
    /// and on from there with half the learning rates, which its recipe then says; up to three times. What smaller steps do
    /// not mend stops it.
    Rollback,
}

/// Bits of a number, where there is a choice. Weights, statistics, loss and optimizer are in `f32` in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits. Where a GPU multiplies, it may round factors to TF32, which has 10 bits behind the point.
    #[default]
    F32,
    /// 16 bits with the range of `f32`: half the bytes. A GPU multiplies them several times as fast, a CPU slowly.
    Bf16,
}

/// When the weights, the momentum and the position are saved: every ten minutes if neither steps nor minutes are given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Save after this many steps; absent: not by steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
    /// Save after this many minutes; absent beside `every_steps`: not by time. The last step is always saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_minutes: Option<f64>,
    /// How many to keep; older ones are deleted.
    #[serde(default = "kept_checkpoints")]
    pub keep: u32,
}

impl Default for Checkpoint {
    /// For recipes that say nothing: ten minutes of lost work is little.
    fn default() -> Self {
        Checkpoint { every_steps: None, every_minutes: Some(10.0), keep: kept_checkpoints() }
    }
}

/// Three are a safety net for a damaged disk.
fn kept_checkpoints() -> u32 {
    3
}

impl Recipe {
    /// Parses and checks a recipe. `overrides` are `key=value` pairs such as `training.epochs=10`, applied
    /// in order before parsing.
    ///
    /// # Errors
    /// Text that is not TOML, keys that do not exist, values out of range: see [`RecipeError`].
    pub fn from_toml(text: &str, overrides: &[String]) -> Result<Recipe, RecipeError> {
        let mut table: toml::Table = text.parse().map_err(|error| RecipeError::from_toml(&error))?;
        overrides::apply(&mut table, overrides)?;
        let mut recipe: Recipe = match table.try_into() {
            Ok(recipe) => recipe,
            // From the text once more, for an error that shows the line it speaks of; what the text has no fault in, the
            // overrides have, which are no lines.
            Err(error) => match toml::from_str::<Recipe>(text) {
                Err(in_text) => return Err(RecipeError::from_toml(&in_text)),
                Ok(_) => {
                    let argument = overrides.join(" --set ");
                    return Err(RecipeError::Override { argument, problem: error.message().to_owned() });
                }
            },
        };
        // Who only says how many to keep wants them saved as well.
        if recipe.checkpoint.every_steps.is_none() && recipe.checkpoint.every_minutes.is_none() {
            recipe.checkpoint.every_minutes = Checkpoint::default().every_minutes;
        }
        recipe.check()?;
        Ok(recipe)
    }

    /// The complete recipe with every default spelled out; [`Recipe::from_toml`] reads it back unchanged.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every recipe can be written as TOML")
    }

    /// Every value of the recipe as TOML writes it, with its whole key, such as `training.epochs`.
    pub fn values(&self) -> Vec<(String, String)> {
        fn collect(prefix: &str, table: &toml::Table, into: &mut Vec<(String, String)>) {
            for (key, value) in table {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                match value {
                    toml::Value::Table(table) => collect(&key, table, into),
                    other => into.push((key, other.to_string())),
                }
            }
        }
        let table: toml::Table = self.to_toml().parse().expect("a recipe writes itself as TOML");
        let mut values = Vec::new();
        collect("", &table, &mut values);
        values
    }

    /// The images that the encoder is judged on, which have labels.
    pub fn labelled_data(&self) -> &Data {
        self.evaluation.data.as_ref().unwrap_or(&self.data)
    }

    /// Images per step in one shard.
    pub fn shard_batch(&self) -> u32 {
        self.training.batch / self.training.shards
    }

    /// Steps in one pass over `images`: whole batches only, the rest is left out of this epoch.
    pub fn steps_per_epoch(&self, images: u64) -> u64 {
        images / u64::from(self.training.shards) / u64::from(self.shard_batch())
    }

    /// Steps in the whole run over `images`.
    pub fn total_steps(&self, images: u64) -> u64 {
        self.steps_per_epoch(images) * u64::from(self.training.epochs)
    }
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_preset_is_valid_and_survives_the_round_trip() {
        for (name, text) in PRESETS {
            let recipe = Recipe::from_toml(text, &[]).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(&recipe.name, name, "a recipe is found by its name");
            assert_eq!(Recipe::from_toml(&recipe.to_toml(), &[]).unwrap(), recipe);
        }
    }

    /// The page that says what every key is has all of them that a complete recipe can have.
    #[test]
    fn every_key_is_documented() {
        let page = include_str!("../../../docs/recipe.md");
        let full = [
            "data={source='stl10',path='a',include_train=true}",
            "evaluation.data={source='folder',path='a',image_px=96}",
            "checkpoint.every_minutes=2.0",
            &format!("start={{weights='a',heads='random',blake3='{}'}}", "0".repeat(64)),
        ];
        let full: Vec<String> = full.into_iter().map(String::from).collect();
        for (key, _) in Recipe::from_toml(QUICKSTART, &full).unwrap().values() {
            let word = key.rsplit('.').next().unwrap();
            assert!(page.contains(&format!("`{word}`")) || page.contains(&format!(" {word}")), "{key}");
        }
    }

    #[test]
    fn a_run_is_saved_by_time_unless_its_recipe_says_otherwise() {
        let bare = QUICKSTART.replace("[checkpoint]\nevery_steps = 80\n", "");
        for (set, expected) in [
            (&[][..], (None, Some(10.0), 3)),
            (&["checkpoint.keep=7"], (None, Some(10.0), 7)),
            (&["checkpoint.every_steps=80"], (Some(80), None, 3)),
            (&["checkpoint.every_minutes=2.0"], (None, Some(2.0), 3)),
            (&["checkpoint.every_steps=80", "checkpoint.every_minutes=2.0"], (Some(80), Some(2.0), 3)),
        ] {
            let set: Vec<String> = set.iter().map(|one| String::from(*one)).collect();
            let Checkpoint { every_steps, every_minutes, keep } =
                Recipe::from_toml(&bare, &set).unwrap().checkpoint;
            assert_eq!((every_steps, every_minutes, keep), expected, "{set:?}");
        }
    }

    /// A line is one of the file, and what was set is no line.
    #[test]
    fn a_fault_is_shown_where_it_is() {
        let said =
            |text: &str, set: &str| Recipe::from_toml(text, &[set.to_owned()]).unwrap_err().to_string();
        let set = said(QUICKSTART, "training.foo=3");
        assert!(
            set.starts_with("--set training.foo=3: unknown field `foo`") && !set.contains("line"),
            "{set}"
        );
        let text = format!("# A comment.\n{}", QUICKSTART.replace("\nepochs", "\nepohcs"));
        let line = 1 + text.lines().position(|line| line.starts_with("epohcs")).unwrap();
        let in_text = said(&text, "name=other");
        assert!(in_text.contains(&format!("line {line},")), "{in_text}");
    }

    /// Of other use than to learn from, images need not fill a batch, and have their own keys.
    #[test]
    fn images_to_evaluate_on_are_checked_as_such() {
        let with = |set: &str| Recipe::from_toml(QUICKSTART, &[set.to_owned()]);
        with("evaluation.data={source='synthetic',images=100}").unwrap();
        for (set, expected) in [
            ("evaluation.data={source='synthetic',images=0}", "evaluation.data.images: "),
            ("evaluation.data={source='folder',path='a',image_px=1}", "evaluation.data.image_px: "),
            ("data={source='folder',path='a',image_px=1}", "data.image_px: "),
        ] {
            let error = with(set).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    /// Bad input and a phrase that the answer must hold.
    #[test]
    fn bad_recipes_are_refused_with_a_sentence() {
        for (overrides, expected) in [
            (vec!["training.epohcs=3"], "epohcs"),
            (vec!["training.shards=6"], "power of two"),
            (vec!["training.batch=100", "training.shards=8"], "does not divide"),
            (vec!["training.batch=20", "training.shards=8"], "use 24 or 32"),
            (vec!["training.batch=20", "training.shards=8", "training.batch_norm=sync"], "use 16 or 24"),
            (vec!["training.batch=16", "training.shards=8"], "at least 3 images to learn from, but has 2"),
            (
                vec!["training.batch=16", "training.shards=8"],
                "a batch of 24 or more, or set training.batch_norm",
            ),
            (vec!["training.batch=8", "training.shards=8", "training.batch_norm=sync"], "at least 2"),
            (vec!["training.batch=2", "training.shards=1", "training.batch_norm=sync"], "between 3"),
            (vec!["training.precision=fp8"], "fp8"),
            (vec!["training.exchange_precision=int8"], "int8"),
            (vec!["training.batch_norm=global"], "global"),
            (vec!["training.epochs=0"], "training.epochs"),
            (vec!["optimizer.momentum=1.5"], "optimizer.momentum"),
            (vec!["optimizer.base_learning_rate=-1.0"], "optimizer.base_learning_rate"),
            (vec!["optimizer.base_learning_rate=nan"], "optimizer.base_learning_rate"),
            (vec!["optimizer.warmup_epochs=1000"], "warmup"),
            (vec!["optimizer.learning_rate_changes=[{after_step=9,factor=-1}]"], "factor"),
            (vec!["optimizer.learning_rate_changes=[{step=9,factor=1}]"], "after_step"),
            (vec!["training.on_collapse=pray"], "pray"),
            (vec!["views.crop_scale=[0.9, 0.1]"], "views.crop_scale"),
            (vec!["views.crop_px=0"], "views.crop_px"),
            (vec!["model.backbone=resnet19"], "resnet19"),
            (vec!["model.projector_layers=4"], "model.projector_layers"),
            (vec!["checkpoint.keep=0"], "checkpoint.keep"),
            (vec!["evaluation.knn=[]"], "evaluation.knn"),
            (vec!["evaluation.knn=[{k=0,temperature=0.1}]"], "at least 1 neighbour"),
            (vec!["evaluation.knn=[{k=9,temperature=0}]"], "temperature"),
            (vec!["data.source=imagenet"], "imagenet"),
            (vec!["name=../x"], "name"),
            (vec!["start.weights=''"], "start.weights"),
            (vec!["start.weights=a.pth", "start.blake3=5f"], "start.blake3"),
            (vec!["start.weights=a.pth", "start.blake3=0g"], "64 digits"),
            (vec!["start.weights=a.pth", "start.heads=none"], "none"),
            (vec!["start.heads=random"], "weights"),
            (vec!["training"], "key=value"),
            (vec!["training.epochs.x=1"], "training.epochs"),
        ] {
            let overrides: Vec<String> = overrides.into_iter().map(String::from).collect();
            let message = match Recipe::from_toml(QUICKSTART, &overrides) {
                Ok(_) => panic!("{overrides:?} was accepted"),
                Err(error) => error.to_string(),
            };
            assert!(message.contains(expected), "{overrides:?}: {message:?} lacks {expected:?}");
        }
    }

    #[test]
    fn the_smallest_shards_that_learn_are_accepted() {
        for set in [
            ["training.batch=24", "training.batch_norm=shard"],
            ["training.batch=16", "training.batch_norm=sync"],
        ] {
            let set: Vec<String> = set.into_iter().chain(["training.shards=8"]).map(String::from).collect();
            Recipe::from_toml(QUICKSTART, &set).unwrap();
        }
    }

    #[test]
    fn a_recipe_tells_of_the_changes_that_were_made_on_its_way() {
        let mut recipe = Recipe::from_toml(QUICKSTART, &["training.on_collapse=rollback".into()]).unwrap();
        assert!(!recipe.to_toml().contains("learning_rate_changes"));
        recipe.optimizer.learning_rate_changes = vec![
            LearningRateChange { after_step: 160, factor: 0.5 },
            LearningRateChange { after_step: 80, factor: 0.5 },
        ];
        assert_eq!(Recipe::from_toml(&recipe.to_toml(), &[]).unwrap(), recipe);
    }

    #[test]
    fn an_override_changes_one_value_and_nothing_else() {
        let plain = Recipe::from_toml(QUICKSTART, &[]).unwrap();
        let changed = Recipe::from_toml(QUICKSTART, &["training.epochs=9".into()]).unwrap();
        assert_eq!(changed.training.epochs, 9);
        assert_eq!(
            Recipe {
                training: Training { epochs: plain.training.epochs, ..changed.training.clone() },
                ..changed
            },
            plain
        );
    }

    proptest! {
        /// Whatever the text, parsing answers and never panics.
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,200}", key in "[a-z.]{0,20}", value in ".{0,20}") {
            let _ = Recipe::from_toml(&text, &[]);
            let _ = Recipe::from_toml(QUICKSTART, &[format!("{key}={value}")]);
        }

        /// Recipes that are almost whole: those that are built in, with some bytes changed.
        #[test]
        fn damaged_recipes_never_panic(
            which in proptest::sample::select(PRESETS),
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), 9u8..127), 1..6),
        ) {
            let mut bytes = which.1.as_bytes().to_vec();
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            let _ = Recipe::from_toml(&String::from_utf8_lossy(&bytes), &[]);
        }

        /// A step takes the same number of samples from every shard, and an epoch never more than there are.
        #[test]
        fn an_epoch_fits_in_the_data(images in 0u64..1_000_000, shards in 0u32..7, per_shard in 3u32..300) {
            let mut recipe = Recipe::from_toml(QUICKSTART, &[]).unwrap();
            recipe.training.shards = 1 << shards;
            recipe.training.batch = per_shard << shards;
            let used = recipe.steps_per_epoch(images) * u64::from(recipe.training.batch);
            prop_assert!(used <= images);
            prop_assert!(images - used < u64::from(recipe.training.batch) + u64::from(recipe.training.shards));
        }
    }
}
