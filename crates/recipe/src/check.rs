//! The rules that a recipe must meet, each with the sentence for the one who broke it.

use crate::{BatchNorm, Checkpoint, Data, Evaluation, Model, Optimizer, Recipe, Start, Training, Views};

/// Why a recipe was refused, in a sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The text is not TOML, a key is unknown or missing, or a value has the wrong type.
    #[error("the recipe cannot be read: {0}")]
    Syntax(String),
    /// A `--set` argument that is not `key=value` or does not fit the recipe.
    #[error("--set {argument}: {problem}")]
    Override {
        /// The argument as given.
        argument: String,
        /// What is wrong with it, and what to write.
        problem: String,
    },
    /// A value out of its range, or values that do not fit each other.
    #[error("{key}: {problem}")]
    Value {
        /// The key, with its section.
        key: &'static str,
        /// What was expected, what was found and what to do.
        problem: String,
    },
}

impl RecipeError {
    pub(crate) fn from_toml(error: &toml::de::Error) -> Self {
        RecipeError::Syntax(error.to_string())
    }
}

/// The fewest images that BatchNorm may take its statistics over.
const LEAST_ROWS: u32 = 3;

type Checked = Result<(), RecipeError>;

fn refuse(key: &'static str, problem: impl Into<String>) -> Checked {
    Err(RecipeError::Value { key, problem: problem.into() })
}

fn within<T: PartialOrd + Copy + std::fmt::Display>(key: &'static str, value: T, low: T, high: T) -> Checked {
    // Written so that NaN is outside.
    if value >= low && value <= high {
        return Ok(());
    }
    refuse(key, format!("must lie between {low} and {high}, but is {value}"))
}

impl Recipe {
    pub(crate) fn check(&self) -> Checked {
        let fits_a_folder = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty() || self.name.starts_with('.') || !self.name.chars().all(fits_a_folder) {
            return refuse(
                "name",
                format!(
                    "names the run's folder, so use letters, digits, '-', '_' and '.' only, not {:?}",
                    self.name
                ),
            );
        }
        self.training.check()?;
        self.views.check()?;
        self.model.check()?;
        self.optimizer.check(self.training.epochs)?;
        self.data.check(&self.training)?;
        self.checkpoint.check()?;
        self.evaluation.check()?;
        self.start.as_ref().map_or(Ok(()), Start::check)
    }
}

impl Training {
    fn check(&self) -> Checked {
        within("training.epochs", self.epochs, 1, 1_000_000)?;
        within("training.shards", self.shards, 1, 4096)?;
        // Whatever BatchNorm's statistics are over: see `least_shard_batch`.
        within("training.batch", self.batch, LEAST_ROWS, 1 << 20)?;
        if !self.shards.is_power_of_two() {
            let below = self.shards.next_power_of_two() / 2;
            return refuse(
                "training.shards",
                format!("must be a power of two, but is {}; use {below} or {}", self.shards, below * 2),
            );
        }
        if !self.batch.is_multiple_of(self.shards) {
            // As many images for each shard as the next rule asks for.
            let lower = (self.batch / self.shards).max(self.least_shard_batch()) * self.shards;
            return refuse(
                "training.batch",
                format!(
                    "a batch of {} does not divide by {} shards; use {lower} or {}",
                    self.batch,
                    self.shards,
                    lower + self.shards
                ),
            );
        }
        let (least, found) = (self.least_shard_batch(), self.batch / self.shards);
        if found >= least {
            return Ok(());
        }
        let other_way = match self.batch_norm {
            BatchNorm::Shard => ", or set training.batch_norm to sync, with which 2 images are enough",
            BatchNorm::Sync => "",
        };
        refuse(
            "training.batch",
            format!(
                "each shard needs at least {least} images to learn from, but has {found}; with {} shards use a batch of \
                 {} or more{other_way}",
                self.shards,
                least * self.shards
            ),
        )
    }

    /// With 1 image there is no pair to tell apart. With 2 rows BatchNorm makes each number +1 or -1, whatever they were:
    /// no gradient passes the projector's last one, and the encoder stays as it was drawn.
    fn least_shard_batch(&self) -> u32 {
        match self.batch_norm {
            BatchNorm::Shard => LEAST_ROWS,
            BatchNorm::Sync => 2,
        }
    }
}

impl Views {
    fn check(&self) -> Checked {
        within("views.crop_px", self.crop_px, 8, 1024)?;
        let [low, high] = self.crop_scale;
        if !(low > 0.0 && low <= high && high <= 1.0) {
            return refuse(
                "views.crop_scale",
                format!(
                    "must be two shares of the image's area, 0 < low <= high <= 1, but is [{low}, {high}]"
                ),
            );
        }
        within("views.color_jitter.probability", self.color_jitter.probability, 0.0, 1.0)?;
        within("views.color_jitter.brightness", self.color_jitter.brightness, 0.0, 1.0)?;
        within("views.color_jitter.contrast", self.color_jitter.contrast, 0.0, 1.0)?;
        within("views.color_jitter.saturation", self.color_jitter.saturation, 0.0, 1.0)?;
        within("views.color_jitter.hue", self.color_jitter.hue, 0.0, 0.5)?;
        within("views.grayscale_probability", self.grayscale_probability, 0.0, 1.0)?;
        within("views.blur_probability", self.blur_probability, 0.0, 1.0)?;
        let [low, high] = self.blur_sigma_px;
        if !(low > 0.0 && low <= high && high <= 10.0) {
            return refuse(
                "views.blur_sigma_px",
                format!("must be two numbers of pixels, 0 < low <= high <= 10, but is [{low}, {high}]"),
            );
        }
        within("views.flip_probability", self.flip_probability, 0.0, 1.0)?;
        for channel in 0..3 {
            within("views.mean", self.mean[channel], 0.0, 1.0)?;
            within("views.std", self.std[channel], 0.001, 1.0)?;
        }
        Ok(())
    }
}

impl Model {
    fn check(&self) -> Checked {
        within("model.width", self.width, 1, 512)?;
        within("model.projector_layers", self.projector_layers, 2, 3)?;
        within("model.projector_dim", self.projector_dim, 2, 16_384)?;
        within("model.predictor_dim", self.predictor_dim, 1, 16_384)
    }
}

impl Optimizer {
    fn check(&self, epochs: u32) -> Checked {
        within("optimizer.base_learning_rate", self.base_learning_rate, 0.0, 100.0)?;
        within("optimizer.momentum", self.momentum, 0.0, 0.9999)?;
        within("optimizer.weight_decay", self.weight_decay, 0.0, 1.0)?;
        if !(self.warmup_epochs >= 0.0 && self.warmup_epochs < f64::from(epochs)) {
            return refuse(
                "optimizer.warmup_epochs",
                format!(
                    "the warmup must end before the run does, but {} of {epochs} epochs are warmup",
                    self.warmup_epochs
                ),
            );
        }
        for change in &self.learning_rate_changes {
            within("optimizer.learning_rate_changes.factor", change.factor, 0.0, 1000.0)?;
        }
        Ok(())
    }
}

impl Data {
    fn check(&self, training: &Training) -> Checked {
        match *self {
            Data::Synthetic { images, .. } if images < training.batch => refuse(
                "data.images",
                format!("{images} images do not fill one batch of {}; draw at least {0}", training.batch),
            ),
            _ => self.check_ranges("data.images", "data.image_px"),
        }
    }

    /// What holds for images of any use, under the keys that they have there.
    fn check_ranges(&self, images_key: &'static str, image_px_key: &'static str) -> Checked {
        match *self {
            Data::Synthetic { images, .. } => within(images_key, images, 1, 10_000_000),
            Data::Folder { image_px, .. } => within(image_px_key, image_px, 8, 1024),
            Data::Stl10 { .. } | Data::Cifar10 { .. } => Ok(()),
        }
    }
}

impl Checkpoint {
    fn check(&self) -> Checked {
        within("checkpoint.keep", self.keep, 1, 10_000)?;
        if let Some(steps) = self.every_steps {
            within("checkpoint.every_steps", steps, 1, u64::MAX)?;
        }
        if let Some(minutes) = self.every_minutes {
            within("checkpoint.every_minutes", minutes, 0.01, 100_000.0)?;
        }
        Ok(())
    }
}

impl Evaluation {
    fn check(&self) -> Checked {
        if self.knn.is_empty() {
            return refuse(
                "evaluation.knn",
                "needs one or more pairs, such as [{ k = 20, temperature = 0.07 }]",
            );
        }
        for votes in &self.knn {
            if votes.k == 0 {
                return refuse("evaluation.knn", "at least 1 neighbour must vote, but k is 0");
            }
            within("evaluation.knn.temperature", votes.temperature, 1e-3, 1e3)?;
        }
        let Some(data) = &self.data else { return Ok(()) };
        data.check_ranges("evaluation.data.images", "evaluation.data.image_px")
    }
}

impl Start {
    fn check(&self) -> Checked {
        if self.weights.as_os_str().is_empty() {
            return refuse("start.weights", "names a file of weights, so it must not be empty");
        }
        let is_hash = |text: &str| {
            text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        match &self.blake3 {
            Some(blake3) if !is_hash(blake3) => refuse(
                "start.blake3",
                format!(
                    "is the file's BLAKE3 as 64 digits from 0 to f, not {blake3:?}; leave it out to take the file as it is"
                ),
            ),
            _ => Ok(()),
        }
    }
}
