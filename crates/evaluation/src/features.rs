//! Features of images: the frozen backbone after its global average pool, BatchNorm in evaluation mode.

use dataset::views::ViewMaker;
use dataset::{Geometry, Images};
use recipe::Views;
use serde::{Deserialize, Serialize};
use simsiam::{Device, FrozenBackbone, FrozenClassifier, State};

use crate::encoder::Encoder;
use crate::error::EvaluationError;
use crate::matrix::Matrix;
use crate::training_images::TrainingImages;

/// At which size images enter the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Input {
    /// At the recipe's `views.crop_px`, as in training.
    Crop,
    /// As they are: the square in the middle at its own size.
    Native,
}

/// How images entered the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputIdentity {
    /// What was asked for.
    pub input: Input,
    /// Side of the square that the network saw.
    pub side_px: u32,
    /// Side of the square in the middle of each image that it was made from.
    pub image_px: u32,
    /// Mean of red, green and blue that was subtracted.
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue that was divided by.
    pub std: [f32; 3],
}

impl InputIdentity {
    /// Of images of that geometry, normalised as the recipe's `views` are.
    pub(crate) fn of(views: &Views, geometry: Geometry, input: Input) -> InputIdentity {
        let image_px = geometry.width_px.min(geometry.height_px);
        let side_px = match input {
            Input::Crop => views.crop_px,
            Input::Native => image_px,
        };
        InputIdentity { input, side_px, image_px, mean: views.mean, std: views.std }
    }
}

/// Proof that the network stayed as it was while it looked at some images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frozen {
    /// BLAKE3 of the position, every weight and every statistic before the first image, in hexadecimal.
    pub state_blake3_before: String,
    /// The same after the last image.
    pub state_blake3_after: String,
    /// The first images were looked at once more after all others: the norm of the change of their features,
    /// over their norm. 0 on the CPU, where sums have one order.
    pub first_features_change: f64,
}

/// Images that pass through the network together. Fixed, because a sum's order may depend on it; 64 images
/// of 96 px are 7 MiB as input and some hundred within a ResNet-18.
pub(crate) const BATCH: usize = 64;

/// The change of features that a GPU's rounding explains, with other kernels chosen in between.
const MOST_CHANGE: f64 = 1e-3;

/// A frozen network that looks at images of one data set.
pub(crate) struct Extractor<'a> {
    state: &'a State,
    images: &'a Images,
    look: Look,
    maker: ViewMaker,
    identity: InputIdentity,
}

/// A frozen network: from images and their side in pixels to a row for each, of features or logits.
type Look = Box<dyn Fn(Vec<f32>, usize) -> Vec<f32>>;

/// What a network was, and what it said of its first images, before it looked at others.
pub(crate) struct Before {
    state_blake3: String,
    first: Vec<u64>,
    features: Vec<f32>,
}

impl<'a> Extractor<'a> {
    pub(crate) fn new(encoder: &'a Encoder, images: &'a Images, input: Input, device: &Device) -> Self {
        let backbone = FrozenBackbone::new(&encoder.recipe().model, encoder.state(), device);
        let look = Box::new(move |images, side_px| backbone.features(images, side_px));
        Self::looking(&encoder.recipe().views, encoder.state(), look, images, input)
    }

    /// A fine-tuned network with its state: its rows are logits instead of features.
    pub(crate) fn of_tuned(
        views: &Views,
        (state, classifier): (&'a State, FrozenClassifier),
        images: &'a Images,
        input: Input,
    ) -> Self {
        let look = Box::new(move |images, side_px| classifier.logits(images, side_px));
        Self::looking(views, state, look, images, input)
    }

    fn looking(views: &Views, state: &'a State, look: Look, images: &'a Images, input: Input) -> Self {
        let identity = InputIdentity::of(views, images.geometry(), input);
        let plain = Views { crop_px: identity.side_px, ..views.clone() };
        let maker = ViewMaker::new(&plain, images.geometry());
        Extractor { state, images, look, maker, identity }
    }

    pub(crate) fn input(&self) -> &InputIdentity {
        &self.identity
    }

    /// The features of the images at `indices`, a row each, and the proof that nothing moved. `part` names
    /// them in errors; `progress` is told how many images are done.
    ///
    /// # Errors
    /// Features that are not finite; a network that moved.
    ///
    /// # Panics
    /// Without an index, or with one that the images do not have.
    pub(crate) fn features(
        &self,
        part: &str,
        indices: &[u64],
        progress: &mut dyn FnMut(u64),
    ) -> Result<(Matrix, Frozen), EvaluationError> {
        let before = self.before(indices);
        let mut features = before.features.clone();
        let (first, rest) = indices.split_at(before.first.len());
        progress(first.len() as u64);
        for (number, batch) in rest.chunks(BATCH).enumerate() {
            features.extend(self.plain(batch));
            progress((first.len() + number * BATCH + batch.len()) as u64);
        }
        let features = self.finite(part, indices, features)?;
        Ok((features, self.unmoved(&before)?))
    }

    /// What the network is before it looks at more than the first of these images.
    pub(crate) fn before(&self, indices: &[u64]) -> Before {
        let state_blake3 = self.state.hash().to_string();
        let first = indices[..indices.len().min(BATCH)].to_vec();
        Before { state_blake3, features: self.plain(&first), first }
    }

    /// The proof that nothing has moved since.
    ///
    /// # Errors
    /// A network that moved.
    pub(crate) fn unmoved(&self, before: &Before) -> Result<Frozen, EvaluationError> {
        let frozen = Frozen {
            state_blake3_before: before.state_blake3.clone(),
            first_features_change: change(&before.features, &self.plain(&before.first)),
            state_blake3_after: self.state.hash().to_string(),
        };
        frozen.check()?;
        Ok(frozen)
    }

    /// The features of the images at `indices` as a classifier in training sees them in an epoch, a row each.
    ///
    /// # Errors
    /// Features that are not finite.
    pub(crate) fn training_features(
        &self,
        training: &TrainingImages,
        epoch: u64,
        indices: &[u64],
    ) -> Result<Matrix, EvaluationError> {
        let look = |batch| (self.look)(training.render(epoch, batch), self.identity.side_px as usize);
        let features = indices.chunks(BATCH).flat_map(look).collect();
        self.finite("the training part", indices, features)
    }

    /// Rows of numbers that can be used.
    fn finite(&self, part: &str, indices: &[u64], features: Vec<f32>) -> Result<Matrix, EvaluationError> {
        let columns = features.len() / indices.len();
        if let Some(place) = features.iter().position(|value| !value.is_finite()) {
            let (image, step) = (indices[place / columns], self.state.step);
            return Err(EvaluationError::NotFinite { part: part.to_owned(), image, step });
        }
        Ok(Matrix::new(features, columns))
    }

    /// The features of two random views of each image, as in the first epoch of a run of this seed.
    pub(crate) fn view_features(
        &self,
        indices: &[u64],
        seed: u64,
        progress: &mut dyn FnMut(u64),
    ) -> [Matrix; 2] {
        let mut features = [Vec::new(), Vec::new()];
        for (number, batch) in indices.chunks(BATCH).enumerate() {
            let records: Vec<(u64, &[u8])> =
                batch.iter().map(|index| (*index, self.images.record(*index))).collect();
            let mut views = [(); 2].map(|()| vec![0.0; records.len() * self.maker.view_len()]);
            let [x1, x2] = &mut views;
            self.maker.render_batch(&records, seed, 0, x1, x2);
            for (features, views) in features.iter_mut().zip(views) {
                features.extend((self.look)(views, self.identity.side_px as usize));
            }
            progress((number * BATCH + batch.len()) as u64);
        }
        features.map(|features| {
            let columns = features.len() / indices.len();
            Matrix::new(features, columns)
        })
    }

    /// The features of one batch.
    fn plain(&self, indices: &[u64]) -> Vec<f32> {
        let records: Vec<&[u8]> = indices.iter().map(|index| self.images.record(*index)).collect();
        let mut batch = vec![0.0; records.len() * self.maker.view_len()];
        self.maker.render_plain_batch(&records, &mut batch);
        (self.look)(batch, self.identity.side_px as usize)
    }
}

impl Frozen {
    fn check(&self) -> Result<(), EvaluationError> {
        let (before, after) = (&self.state_blake3_before, &self.state_blake3_after);
        if before != after {
            return Err(EvaluationError::Moved { expected: before.clone(), found: after.clone() });
        }
        if self.first_features_change > MOST_CHANGE {
            let expected = format!("a change of the first features of at most {MOST_CHANGE}");
            let found = self.first_features_change.to_string();
            return Err(EvaluationError::Moved { expected, found });
        }
        Ok(())
    }
}

/// The norm of the difference over the norm of what was before.
fn change(before: &[f32], after: &[f32]) -> f64 {
    let square = |value: f64| value * value;
    let norm: f64 = before.iter().map(|value| square(f64::from(*value))).sum();
    let differences = before.iter().zip(after).map(|(a, b)| square(f64::from(*a) - f64::from(*b)));
    (differences.sum::<f64>() / norm.max(f64::MIN_POSITIVE)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::{Names, export};
    use crate::testing::{quickstart, write_checkpoint_of};
    use recipe::{Data, Recipe};
    use safetensors::SafeTensors;
    use simsiam::{Entry, Layout, State};
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    /// `tests/fixtures/make_references.py` computed the features in f64; f32 is good for about 1e-6 here.
    const TOLERANCE: f32 = 1e-4;

    struct Fixture(Vec<u8>);

    impl Fixture {
        fn open() -> Fixture {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/backbone.safetensors");
            Fixture(fs::read(path).unwrap())
        }

        fn bytes(&self, name: &str) -> Option<Vec<u8>> {
            let tensors = SafeTensors::deserialize(&self.0).unwrap();
            tensors.tensor(name).ok().map(|tensor| tensor.data().to_vec())
        }

        fn floats(&self, name: &str) -> Option<Vec<f32>> {
            let bytes = self.bytes(name)?;
            Some(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
        }

        /// The fixture's weights where it has them: it knows nothing of projector and predictor.
        fn fill(&self, entries: &[Entry], values: &mut [f32]) {
            for entry in entries {
                let name = entry.name.strip_prefix("encoder.").unwrap_or_default();
                if let Some(weights) = self.floats(&format!("weight.{name}")) {
                    values[entry.range.clone()].copy_from_slice(&weights);
                }
            }
        }

        /// As a run with one checkpoint.
        fn write_run(&self, run: &Path) {
            let recipe = Recipe { model: recipe::Model { width: 3, ..quickstart().model }, ..quickstart() };
            let layout = Layout::of(&recipe.model);
            let mut state = State::initial(&layout, 0);
            self.fill(&layout.parameters, Arc::make_mut(&mut state.weights));
            self.fill(&layout.statistics, &mut state.statistics);
            let checkpoint = run.join("checkpoints/step-000000");
            fs::create_dir_all(&checkpoint).unwrap();
            fs::write(run.join("recipe.toml"), recipe.to_toml()).unwrap();
            write_checkpoint_of(&layout, &checkpoint, &state, 0);
        }

        /// As CIFAR-10, each image with a label before it.
        fn write_images(&self, folder: &Path) -> Data {
            let records: Vec<u8> = self
                .bytes("images")
                .unwrap()
                .chunks(3 * 32 * 32)
                .fold(Vec::new(), |all, image| [all, vec![0], image.to_vec()].concat());
            fs::create_dir_all(folder).unwrap();
            for number in 1..=5 {
                fs::write(folder.join(format!("data_batch_{number}.bin")), &records).unwrap();
            }
            Data::Cifar10 { path: folder.to_owned() }
        }
    }

    /// From files to features, and the exported weights back again, beside torchvision's blocks.
    #[test]
    fn features_and_exported_weights_are_pytorchs() {
        let (folder, fixture) = (tempfile::tempdir().unwrap(), Fixture::open());
        fixture.write_run(&folder.path().join("run"));
        let encoder = Encoder::open(&folder.path().join("run"), None).unwrap();
        let data = fixture.write_images(&folder.path().join("images"));
        let images = Images::open(&data, folder.path()).unwrap();

        let extractor = Extractor::new(&encoder, &images, Input::Native, &Device::flex());
        // More than a batch, so that there is one that is not full.
        let indices: Vec<u64> = (0..100).map(|index| index % images.len()).collect();
        let (features, frozen) = extractor.features("all", &indices, &mut |_| {}).unwrap();
        assert_eq!(frozen.state_blake3_before, encoder.identity().state_blake3);
        assert_eq!(frozen.first_features_change, 0.0);
        let expected = fixture.floats("features").unwrap();
        for (row, index) in indices.iter().enumerate() {
            let image = *index as usize % 6;
            let expected = &expected[image * features.columns()..][..features.columns()];
            for (found, expected) in features.row(row).iter().zip(expected) {
                assert!((found - expected).abs() < TOLERANCE, "image {image}: {found} is not {expected}");
            }
        }

        let path = folder.path().join("backbone.safetensors");
        export(&encoder, Names::Torchvision, &path).unwrap();
        let bytes = fs::read(path).unwrap();
        let exported = SafeTensors::deserialize(&bytes).unwrap();
        for (name, tensor) in exported.tensors() {
            assert_eq!(Some(tensor.data()), fixture.bytes(&format!("weight.{name}")).as_deref(), "{name}");
        }
        let weights = SafeTensors::deserialize(&fixture.0).unwrap();
        let weights = weights.names().into_iter().filter(|name| name.starts_with("weight.")).count();
        assert_eq!(exported.len(), weights, "every tensor of torchvision's is there");
    }

    #[test]
    fn a_network_that_moved_is_noticed() {
        let still = Frozen {
            state_blake3_before: "a".into(),
            state_blake3_after: "a".into(),
            first_features_change: 0.0,
        };
        still.check().unwrap();
        for (moved, found) in [
            (Frozen { state_blake3_after: "c".into(), ..still.clone() }, "found c"),
            (Frozen { first_features_change: 0.5, ..still.clone() }, "found 0.5"),
        ] {
            let error = moved.check().unwrap_err().to_string();
            assert!(error.contains("moved") && error.contains(found), "{error}");
        }
        assert_eq!(change(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert_eq!(change(&[3.0, 4.0], &[3.0, 5.0]), 0.2);
        assert_eq!(change(&[0.0], &[0.0]), 0.0);
    }
}
