//! Labelled images as a classifier in training sees them: in another order and in other views in each epoch,
//! both functions of the seed alone.

use dataset::Images;
use dataset::views::{Scratch, ViewMaker};
use rayon::prelude::*;
use recipe::{ColorJitter, Draws, Purpose, Views};
use serde::{Deserialize, Serialize};

use crate::error::EvaluationError;
use crate::features::InputIdentity;

/// How the training images of a classifier are changed: a random resized crop, then a horizontal flip, and
/// nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augmentation {
    /// Least and greatest share of the image's area that a crop takes.
    pub crop_scale: [f32; 2],
    /// How often an image is mirrored left to right.
    pub flip_probability: f32,
}

impl Default for Augmentation {
    /// torchvision's `RandomResizedCrop` and `RandomHorizontalFlip` as they are, as in the official linear
    /// evaluation.
    fn default() -> Self {
        Augmentation { crop_scale: [0.08, 1.0], flip_probability: 0.5 }
    }
}

impl Augmentation {
    /// Refuses values out of range.
    pub(crate) fn check(&self) -> Result<(), EvaluationError> {
        let [low, high] = self.crop_scale;
        if !(low > 0.0 && low <= high && high <= 1.0) {
            let expected = "two shares of the image's area, 0 < low <= high <= 1";
            return Err(EvaluationError::setting("crop_scale", expected, &format!("[{low}, {high}]")));
        }
        if !(0.0..=1.0).contains(&self.flip_probability) {
            return Err(EvaluationError::setting("flip_probability", "0 to 1", &self.flip_probability));
        }
        Ok(())
    }
}

/// Pre-training draws views 0 and 1 of an image. With another number a classifier's views have draws of their
/// own, even if its seed is the run's.
const VIEW: u32 = 2;

/// The images that a classifier learns from.
pub(crate) struct TrainingImages<'a> {
    images: &'a Images,
    maker: ViewMaker,
    seed: u64,
}

impl<'a> TrainingImages<'a> {
    /// Views of the size and normalisation of `input`.
    pub(crate) fn new(
        images: &'a Images,
        input: &InputIdentity,
        augmentation: &Augmentation,
        seed: u64,
    ) -> Self {
        let views = Views {
            crop_px: input.side_px,
            crop_scale: augmentation.crop_scale,
            color_jitter: ColorJitter { probability: 0.0, ..ColorJitter::default() },
            grayscale_probability: 0.0,
            blur_probability: 0.0,
            blur_sigma_px: [1.0, 1.0],
            flip_probability: augmentation.flip_probability,
            mean: input.mean,
            std: input.std,
        };
        TrainingImages { images, maker: ViewMaker::new(&views, images.geometry()), seed }
    }

    /// The images at `indices` in the order of an epoch, counted from 0.
    pub(crate) fn order(&self, epoch: u64, indices: &[u64]) -> Vec<u64> {
        let mut order = indices.to_vec();
        Draws::new(self.seed, Purpose::LabelledOrder, epoch, 0, 0).shuffle(&mut order);
        order
    }

    /// Their views of an epoch, `[n, 3, side_px, side_px]`, made on rayon's threads, whose number changes no
    /// bit.
    pub(crate) fn render(&self, epoch: u64, indices: &[u64]) -> Vec<f32> {
        let mut batch = vec![0.0; indices.len() * self.maker.view_len()];
        let places = batch.par_chunks_exact_mut(self.maker.view_len());
        indices.par_iter().zip(places).for_each_init(Scratch::default, |scratch, (index, out)| {
            let view = self.maker.draw(self.seed, epoch, *index, VIEW);
            self.maker.render(self.images.record(*index), &view, scratch, out);
        });
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::Input;
    use crate::testing::quickstart;
    use dataset::Split;
    use recipe::Data;

    #[test]
    fn views_and_order_depend_on_seed_epoch_and_image_alone_and_keep_their_colours() {
        let folder = tempfile::tempdir().unwrap();
        let data = Data::Synthetic { images: 128 };
        let images = Images::open_split(&data, Split::Train, folder.path()).unwrap();
        let input = InputIdentity::of(&quickstart().views, images.geometry(), Input::Crop);
        let of = |seed| TrainingImages::new(&images, &input, &Augmentation::default(), seed);
        let indices: Vec<u64> = (0..40).collect();

        let (one, same) = (of(1), of(1));
        assert_eq!(one.order(3, &indices), same.order(3, &indices));
        assert_ne!(one.order(3, &indices), one.order(4, &indices));
        assert_ne!(one.order(3, &indices), of(2).order(3, &indices));
        let mut sorted = one.order(3, &indices);
        sorted.sort_unstable();
        assert_eq!(sorted, indices);

        let batch = one.render(3, &indices);
        let len = 3 * 32 * 32;
        assert_eq!(same.render(3, &[7, 2]), [&batch[7 * len..8 * len], &batch[2 * len..3 * len]].concat());
        assert_ne!(one.render(4, &[7]), batch[7 * len..8 * len]);
        assert_ne!(of(2).render(3, &[7]), batch[7 * len..8 * len]);

        let drawn: Vec<_> = (0..200).map(|index| one.maker.draw(1, 0, index, VIEW)).collect();
        assert!(
            drawn
                .iter()
                .all(|view| { view.jitter.is_none() && !view.grayscale && view.blur_sigma_px.is_none() })
        );
        let flips = drawn.iter().filter(|view| view.flip).count();
        let smallest = drawn.iter().map(|view| view.crop.height_px * view.crop.width_px).min().unwrap();
        assert!((70..130).contains(&flips) && smallest < 96 * 96 / 8, "{flips} {smallest}");
    }

    #[test]
    fn augmentations_out_of_range_are_refused() {
        for (crop_scale, flip_probability, phrase) in [
            ([0.0, 1.0], 0.5, "crop_scale: expected two shares"),
            ([0.5, 0.4], 0.5, "found [0.5, 0.4]"),
            ([f32::NAN, 1.0], 0.5, "crop_scale"),
            ([0.08, 1.0], 1.5, "flip_probability: expected 0 to 1, found 1.5"),
        ] {
            let error = Augmentation { crop_scale, flip_probability }.check().unwrap_err().to_string();
            assert!(error.contains(phrase), "{error:?} lacks {phrase:?}");
        }
        Augmentation::default().check().unwrap();
    }
}
