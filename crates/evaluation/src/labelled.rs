//! Labelled images, checked so that every figure about them means something.

use std::path::Path;

use dataset::{Images, Split};
use recipe::{Data, Draws, Purpose};
use serde::{Deserialize, Serialize};

use crate::error::EvaluationError;

/// One part of a data set with the label of each image. Every class has an image.
#[derive(Debug)]
pub(crate) struct Labelled {
    images: Images,
    labels: Vec<u8>,
}

/// Which images a result is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagesIdentity {
    /// How many.
    pub images: u64,
    /// BLAKE3 over each image's pixels, followed by its label where it has one, in order; in hexadecimal.
    pub blake3: String,
}

impl Labelled {
    /// Opens a labelled part of `data`. Pictures of folders are packed into `cache_dir` the first time.
    ///
    /// # Errors
    /// Files that are missing or damaged, no labels, labels out of range, a class without an image.
    pub(crate) fn open(data: &Data, split: Split, cache_dir: &Path) -> Result<Labelled, EvaluationError> {
        let images = Images::open_split(data, split, cache_dir)?;
        for warning in images.warnings() {
            tracing::warn!("{warning}");
        }
        let part = match split {
            Split::Train => "train",
            Split::Test => "test",
        };
        let name = format!("{} ({part})", images.name());
        let labels: Vec<Option<u8>> = (0..images.len()).map(|index| images.label(index)).collect();
        let labels = check(&name, &labels, images.class_names())?;
        Ok(Labelled { images, labels })
    }

    /// The pixels.
    pub(crate) fn images(&self) -> &Images {
        &self.images
    }

    /// The class of each image, counted from 0.
    pub(crate) fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// The indices of all images, in order.
    pub(crate) fn indices(&self) -> Vec<u64> {
        (0..self.images.len()).collect()
    }

    /// That many percent of each class's images, in order: a function of the seed. Those of a smaller share are
    /// among those of a greater one. `name` is the part's, for errors.
    ///
    /// # Errors
    /// A class that is left without an image.
    pub(crate) fn share(&self, name: &str, percent: f64, seed: u64) -> Result<Vec<u64>, EvaluationError> {
        let mut kept = Vec::new();
        for (class, class_name) in self.class_names().iter().enumerate() {
            let is_of_class = |index: &u64| usize::from(self.labels[*index as usize]) == class;
            let mut of_class: Vec<u64> = self.indices().into_iter().filter(is_of_class).collect();
            Draws::new(seed, Purpose::Labels, 0, class as u64, 0).shuffle(&mut of_class);
            let count = (of_class.len() as f64 * percent / 100.0).round() as usize;
            if count == 0 {
                let found = format!("none of class {class_name:?}: {percent} % of {}", of_class.len());
                let advice = "ask for a greater share of the labels";
                return Err(EvaluationError::images(name, "images of every class", found, advice));
            }
            kept.extend(&of_class[..count]);
        }
        kept.sort_unstable();
        Ok(kept)
    }

    /// The classes' names, by label.
    pub(crate) fn class_names(&self) -> &[String] {
        self.images.class_names()
    }
}

/// The indices of at most `most` of `all` images, evenly spread over them.
pub(crate) fn spread(all: u64, most: u64) -> Vec<u64> {
    let count = all.min(most);
    (0..count).map(|place| place * all / count).collect()
}

/// Places in `labels`: the first of each class, then the second of each, until there are `most`.
pub(crate) fn one_of_each_class(labels: &[u8], classes: usize, most: usize) -> Vec<usize> {
    let mut seen = vec![0usize; classes];
    let round_of = |(place, label): (usize, &u8)| {
        let round = seen[usize::from(*label)];
        seen[usize::from(*label)] += 1;
        (round, *label, place)
    };
    let mut places: Vec<(usize, u8, usize)> = labels.iter().enumerate().map(round_of).collect();
    places.sort_unstable();
    places.into_iter().take(most).map(|(_, _, place)| place).collect()
}

/// The identity of the images at `indices`, in that order.
pub(crate) fn identify(images: &Images, indices: impl ExactSizeIterator<Item = u64>) -> ImagesIdentity {
    let mut hasher = blake3::Hasher::new();
    let count = indices.len() as u64;
    for index in indices {
        hasher.update(images.record(index));
        hasher.update(images.label(index).as_slice());
    }
    ImagesIdentity { images: count, blake3: hasher.finalize().to_string() }
}

const ADVICE: &str = "evaluate on data with labels for every image and images of every class";

fn check(name: &str, labels: &[Option<u8>], class_names: &[String]) -> Result<Vec<u8>, EvaluationError> {
    let refuse = |expected: &str, found: String| Err(EvaluationError::images(name, expected, found, ADVICE));
    if class_names.len() < 2 {
        return refuse("at least 2 classes", format!("{}", class_names.len()));
    }
    let mut counts = vec![0u64; class_names.len()];
    let mut checked = Vec::with_capacity(labels.len());
    for (index, label) in labels.iter().enumerate() {
        let Some(label) = *label else {
            return refuse("a label for every image", format!("none for image {index}"));
        };
        let Some(count) = counts.get_mut(usize::from(label)) else {
            let expected = format!("labels from 0 to {}", class_names.len() - 1);
            return refuse(&expected, format!("{label} for image {index}"));
        };
        *count += 1;
        checked.push(label);
    }
    match counts.iter().position(|count| *count == 0) {
        Some(class) => refuse("images of every class", format!("none of class {:?}", class_names[class])),
        None => Ok(checked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_mean_nothing_are_refused() {
        let names = |count: usize| -> Vec<String> { (0..count).map(|class| format!("c{class}")).collect() };
        for (labels, classes, phrase) in [
            (vec![], 0, "at least 2 classes, found 0"),
            (vec![Some(0), Some(0)], 1, "at least 2 classes, found 1"),
            (vec![Some(0), None], 2, "none for image 1"),
            (vec![None, None], 2, "a label for every image"),
            (vec![Some(0), Some(2), Some(1)], 2, "labels from 0 to 1, found 2 for image 1"),
            (vec![Some(0), Some(2)], 3, "none of class \"c1\""),
        ] {
            let error = check("set (test)", &labels, &names(classes)).unwrap_err().to_string();
            assert!(
                error.contains(phrase) && error.starts_with("set (test): "),
                "{error:?} lacks {phrase:?}"
            );
        }
        assert_eq!(check("set", &[Some(1), Some(0)], &names(2)).unwrap(), [1, 0]);
    }

    #[test]
    fn a_share_is_the_same_of_every_class_and_within_a_greater_one() {
        let folder = tempfile::tempdir().unwrap();
        let set = Labelled::open(&Data::Synthetic { images: 100 }, Split::Train, folder.path()).unwrap();
        let of = |percent, seed| set.share("set", percent, seed);
        let (one, ten, all) = (of(1.0, 0).unwrap(), of(10.0, 0).unwrap(), of(100.0, 0).unwrap());
        assert_eq!((one.len(), ten.len(), all), (10, 100, set.indices()));
        for class in 0..10 {
            let of_class = ten.iter().filter(|index| set.labels[**index as usize] == class);
            assert_eq!(of_class.count(), 10, "class {class}");
        }
        assert!(one.iter().all(|index| ten.contains(index)));
        assert_ne!(of(10.0, 1).unwrap(), ten);
        let error = of(0.4, 0).unwrap_err().to_string();
        for phrase in ["set: expected images of every class", ": 0.4 % of 100", "a greater share"] {
            assert!(error.contains(phrase), "{error:?} lacks {phrase:?}");
        }
    }

    #[test]
    fn classes_take_turns() {
        assert_eq!(one_of_each_class(&[1, 1, 0, 0, 1], 2, 8), [2, 0, 3, 1, 4]);
        assert_eq!(one_of_each_class(&[0; 20], 1, 8), (0..8).collect::<Vec<_>>());
        assert_eq!(one_of_each_class(&(0..50).collect::<Vec<_>>(), 50, 8).len(), 8);
    }

    #[test]
    fn the_identity_depends_on_pixels_labels_and_order() {
        let folder = tempfile::tempdir().unwrap();
        let open = |images| Labelled::open(&Data::Synthetic { images }, Split::Train, folder.path()).unwrap();
        let set = open(100);
        let all =
            |set: &Labelled| identify(set.images(), (0..set.images().len()).collect::<Vec<_>>().into_iter());
        assert_eq!(all(&set), all(&open(100)));
        assert_eq!(all(&set).images, set.images().len());
        let order = |indices: [u64; 2]| identify(set.images(), indices.into_iter());
        assert_ne!(order([0, 1]), order([1, 0]));
        assert_ne!(order([0, 1]).blake3, order([0, 2]).blake3);
    }
}
