//! What is computed for a report: the map of the test images, their nearest neighbours, and views.

use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use dataset::views::{Scratch, ViewMaker};
use dataset::{Deal, Images, Split};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use recipe::{Data, Recipe, Views};
use simsiam::Device;

use super::map::{self, Components, Map};
use crate::encoder::Encoder;
use crate::error::EvaluationError;
use crate::features::{Extractor, Input};
use crate::job::{Phase, Progress};
use crate::knn::Neighbours;
use crate::labelled::{Labelled, spread};

/// What a report computes is bounded, whatever the data: minutes at the very most.
const MOST_TEST_IMAGES: u64 = 2000;
const MOST_TRAIN_IMAGES: u64 = 5000;

/// The picture of neighbours: as many queries, and as many neighbours of each.
const QUERIES: usize = 8;
const NEIGHBOURS: usize = 8;

/// The picture of views.
const VIEWED_IMAGES: u32 = 4;
const VIEW_PAIRS: u64 = 3;

/// The side of the small pictures of all points of the map.
pub(super) const THUMBNAIL_PX: u32 = 32;

/// A larger side would only make the file large.
const MOST_PICTURE_PX: u32 = 96;

/// Good enough for thumbnails, a fifth of the size of PNG.
const JPEG_QUALITY: u8 = 75;

/// A picture within the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Picture {
    /// A `data:` URI.
    pub(super) uri: String,
    pub(super) side_px: u32,
}

/// What is seen in the features of labelled images.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Gallery {
    /// Which weights.
    pub(super) weights: String,
    /// Which data set.
    pub(super) data: String,
    pub(super) class_names: Vec<String>,
    /// The class of each point of the maps.
    pub(super) labels: Vec<u8>,
    pub(super) components: Components,
    pub(super) neighbourhoods: Map,
    pub(super) thumbnails: Thumbnails,
    pub(super) queries: Vec<Query>,
    /// How many training images neighbours were looked for in.
    pub(super) bank_images: usize,
}

/// Small pictures of all points in one: `columns` in a row, in the points' order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Thumbnails {
    pub(super) uri: String,
    pub(super) columns: u32,
}

/// A test image and the training images that the network holds for most like it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Query {
    pub(super) picture: Picture,
    pub(super) class: u8,
    pub(super) neighbours: Vec<Near>,
}

/// A training image near a query.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Near {
    pub(super) picture: Picture,
    pub(super) class: u8,
    /// Cosine of the angle between the features.
    pub(super) similarity: f32,
}

/// An image and its views, pair after pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Viewed {
    pub(super) image: Picture,
    pub(super) views: Vec<Picture>,
}

/// Looks at labelled images with the weights of a run, at most some thousands of them.
///
/// # Errors
/// Images that cannot be used, or features that are not finite.
pub(super) fn gallery(
    encoder: &Encoder,
    data: &Data,
    cache_dir: &Path,
    device: &Device,
    progress: &mut Progress<'_>,
) -> Result<Gallery, EvaluationError> {
    let [train, test] = [Split::Train, Split::Test].map(|split| Labelled::open(data, split, cache_dir));
    let (train, test) = (train?, test?);
    let (bank, points) =
        (spread(train.images().len(), MOST_TRAIN_IMAGES), spread(test.images().len(), MOST_TEST_IMAGES));
    let mut features = |part: &str, phase, labelled: &Labelled, indices: &[u64]| {
        let extractor = Extractor::new(encoder, labelled.images(), Input::Crop, device);
        let mut progress = |done| progress(phase, done, indices.len() as u64);
        extractor.features(part, indices, &mut progress).map(|(features, _)| features)
    };
    let bank_features = features("the training part", Phase::TrainFeatures, &train, &bank)?.with_unit_rows();
    let point_features = features("the test part", Phase::TestFeatures, &test, &points)?;

    let components = map::principal_components(&point_features);
    let neighbourhoods = map::neighbourhoods(&point_features, &components.map)?;
    let labels: Vec<u8> = points.iter().map(|index| test.labels()[*index as usize]).collect();
    let queries = one_of_each_class(&labels, test.class_names().len());
    let found = {
        let queries = point_features.with_unit_rows().select(&queries);
        Neighbours::search(&bank_features, &queries, NEIGHBOURS.min(bank.len()), &mut |_| {})
    };
    let views = &encoder.recipe().views;
    let (train_pictures, test_pictures) = (Pictures::new(&train, views), Pictures::new(&test, views));
    let near = |row: usize| {
        let near = found.of(row).iter().map(|neighbour| {
            let index = bank[neighbour.index as usize];
            let class = train.labels()[index as usize];
            Near { picture: train_pictures.of(index), class, similarity: neighbour.similarity }
        });
        near.collect()
    };
    let query = |(row, point): (usize, &usize)| Query {
        picture: test_pictures.of(points[*point]),
        class: labels[*point],
        neighbours: near(row),
    };
    Ok(Gallery {
        weights: encoder.identity().short_name().to_owned(),
        data: test.images().name().to_owned(),
        class_names: test.class_names().to_vec(),
        components,
        neighbourhoods,
        thumbnails: thumbnails(test.images(), views, &points),
        queries: queries.iter().enumerate().map(query).collect(),
        labels,
        bank_images: bank.len(),
    })
}

/// Images of the run as the network saw them in its first epochs: the first of shard 0, as `coordinator views`
/// draws them.
///
/// # Errors
/// Images that cannot be used.
pub(super) fn views(recipe: &Recipe, cache_dir: &Path) -> Result<Vec<Viewed>, EvaluationError> {
    let images = Images::open(&recipe.data, cache_dir)?;
    let deal = Deal::new(Arc::new(images), recipe.training.shards, cache_dir)?;
    let maker = ViewMaker::new(&recipe.views, deal.manifest().geometry);
    let (mut scratch, mut view) = (Scratch::default(), vec![0.0; maker.view_len()]);
    let side_px = recipe.views.crop_px;
    let count = VIEWED_IMAGES.min(deal.manifest().images_per_shard);
    let mut viewed = Vec::new();
    for sample in 0..count {
        let record = deal.record(0, sample)?;
        maker.render_plain(record, &mut scratch, &mut view);
        let image = png(&maker.pixels(&view), side_px);
        let mut views = Vec::new();
        for (epoch, number) in (0..VIEW_PAIRS).flat_map(|epoch| [(epoch, 0), (epoch, 1)]) {
            let parameters = maker.draw(recipe.seed, epoch, u64::from(sample), number);
            maker.render(record, &parameters, &mut scratch, &mut view);
            views.push(png(&maker.pixels(&view), side_px));
        }
        viewed.push(Viewed { image, views });
    }
    Ok(viewed)
}

/// Places in `labels`: the first of each class, then the second of each, until there are enough.
fn one_of_each_class(labels: &[u8], classes: usize) -> Vec<usize> {
    let mut seen = vec![0usize; classes];
    let round_of = |(place, label): (usize, &u8)| {
        let round = seen[usize::from(*label)];
        seen[usize::from(*label)] += 1;
        (round, *label, place)
    };
    let mut places: Vec<(usize, u8, usize)> = labels.iter().enumerate().map(round_of).collect();
    places.sort_unstable();
    places.into_iter().take(QUERIES).map(|(_, _, place)| place).collect()
}

/// Draws images of one part.
struct Pictures<'a> {
    images: &'a Images,
    maker: ViewMaker,
    side_px: u32,
}

impl<'a> Pictures<'a> {
    fn new(labelled: &'a Labelled, views: &Views) -> Pictures<'a> {
        let images = labelled.images();
        let geometry = images.geometry();
        let side_px = geometry.width_px.min(geometry.height_px).min(MOST_PICTURE_PX);
        let maker = ViewMaker::new(&Views { crop_px: side_px, ..views.clone() }, geometry);
        Pictures { images, maker, side_px }
    }

    fn of(&self, index: u64) -> Picture {
        let mut view = vec![0.0; self.maker.view_len()];
        self.maker.render_plain(self.images.record(index), &mut Scratch::default(), &mut view);
        png(&self.maker.pixels(&view), self.side_px)
    }
}

fn thumbnails(images: &Images, views: &Views, indices: &[u64]) -> Thumbnails {
    let maker = ViewMaker::new(&Views { crop_px: THUMBNAIL_PX, ..views.clone() }, images.geometry());
    let (mut scratch, mut view) = (Scratch::default(), vec![0.0; maker.view_len()]);
    let columns = (indices.len() as f64).sqrt().ceil() as usize;
    let rows = indices.len().div_ceil(columns);
    let (side, row_bytes) = (THUMBNAIL_PX as usize, columns * THUMBNAIL_PX as usize * 3);
    let mut sheet = vec![0; rows * side * row_bytes];
    for (number, index) in indices.iter().enumerate() {
        maker.render_plain(images.record(*index), &mut scratch, &mut view);
        let pixels = maker.pixels(&view);
        for (y, line) in pixels.chunks_exact(side * 3).enumerate() {
            let start = (number / columns * side + y) * row_bytes + number % columns * side * 3;
            sheet[start..start + line.len()].copy_from_slice(line);
        }
    }
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)
        .write_image(&sheet, (columns * side) as u32, (rows * side) as u32, ExtendedColorType::Rgb8)
        .expect("pixels in memory can be encoded");
    Thumbnails { uri: uri("image/jpeg", &bytes), columns: columns as u32 }
}

/// Pixels of a square, each red, green, blue.
fn png(pixels: &[u8], side_px: u32) -> Picture {
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(pixels, side_px, side_px, ExtendedColorType::Rgb8)
        .expect("pixels in memory can be encoded");
    Picture { uri: uri("image/png", &bytes), side_px }
}

fn uri(kind: &str, bytes: &[u8]) -> String {
    format!("data:{kind};base64,{}", BASE64_STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{quickstart, write_run};

    fn decode(uri: &str, kind: &str) -> image::RgbImage {
        let bytes = BASE64_STANDARD.decode(uri.strip_prefix(kind).unwrap()).unwrap();
        image::load_from_memory(&bytes).unwrap().into_rgb8()
    }

    #[test]
    fn a_gallery_shows_points_thumbnails_and_neighbours() {
        let folder = tempfile::tempdir().unwrap();
        let encoder = Encoder::open(&write_run(folder.path(), &[7]), None).unwrap();
        let data = Data::Synthetic { images: 128 };
        let make = || gallery(&encoder, &data, folder.path(), &Device::flex(), &mut |_, _, _| {}).unwrap();
        let gallery = make();
        assert_eq!(gallery.labels.len(), 500);
        assert_eq!(gallery.components.map.points.len(), 500);
        assert_eq!(gallery.neighbourhoods.points.len(), 500);
        assert_eq!((gallery.class_names.len(), gallery.bank_images), (10, 1000));
        let sheet = decode(&gallery.thumbnails.uri, "data:image/jpeg;base64,");
        assert_eq!((sheet.width(), sheet.height()), (23 * 32, 22 * 32));

        let classes: Vec<u8> = gallery.queries.iter().map(|query| query.class).collect();
        assert_eq!(classes, [0, 1, 2, 3, 4, 5, 6, 7]);
        for query in &gallery.queries {
            assert_eq!(query.neighbours.len(), NEIGHBOURS);
            assert!(query.neighbours.is_sorted_by(|a, b| a.similarity >= b.similarity));
            let picture = decode(&query.picture.uri, "data:image/png;base64,");
            assert_eq!((picture.width(), query.picture.side_px), (96, 96));
        }
        assert_eq!(make(), gallery, "the same again");
    }

    #[test]
    fn views_are_those_of_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = Recipe { data: Data::Synthetic { images: 128 }, ..quickstart() };
        let viewed = views(&recipe, folder.path()).unwrap();
        assert_eq!(viewed.len(), VIEWED_IMAGES as usize);
        for one in &viewed {
            assert_eq!(one.views.len(), 2 * VIEW_PAIRS as usize);
            assert!(one.views.iter().all(|view| view.side_px == recipe.views.crop_px && *view != one.image));
        }
        assert_ne!(views(&Recipe { seed: 9, ..recipe }, folder.path()).unwrap(), viewed);
    }

    #[test]
    fn queries_take_turns_among_classes() {
        assert_eq!(one_of_each_class(&[1, 1, 0, 0, 1], 2), [2, 0, 3, 1, 4]);
        assert_eq!(one_of_each_class(&[0; 20], 1), (0..8).collect::<Vec<_>>());
        assert_eq!(one_of_each_class(&(0..50).collect::<Vec<_>>(), 50).len(), QUERIES);
    }
}
