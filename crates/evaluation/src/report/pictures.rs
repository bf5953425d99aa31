//! What is computed for a report: the map of the test images, their nearest neighbours, and views.

use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use dataset::views::{Scratch, ViewMaker};
use dataset::{Deal, Images, Split};
use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::imageops::replace;
use recipe::{Data, Recipe, Views};
use simsiam::Device;

use super::map::{self, Components, Map};
use crate::encoder::Encoder;
use crate::error::EvaluationError;
use crate::features::{Extractor, Input};
use crate::job::{Phase, Progress};
use crate::knn::Neighbours;
use crate::labelled::{Labelled, one_of_each_class, spread};
use crate::thumbnails::Thumbnails;

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
    pub(super) thumbnails: Sheet,
    pub(super) queries: Vec<Query>,
    /// How many training images neighbours were looked for in.
    pub(super) bank_images: usize,
}

/// Small pictures of all points in one: `columns` in a row, in the points' order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sheet {
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
    let queries = one_of_each_class(&labels, test.class_names().len(), QUERIES);
    let found = {
        let queries = point_features.with_unit_rows().select(&queries);
        Neighbours::search(&bank_features, &queries, NEIGHBOURS.min(bank.len()), &mut |_| {})
    };
    let views = &encoder.recipe().views;
    let (mut train_pictures, mut test_pictures) = (thumbnails(&train, views), thumbnails(&test, views));
    let mut near = |row: usize| {
        let near = found.of(row).iter().map(|neighbour| {
            let index = bank[neighbour.index as usize];
            let class = train.labels()[index as usize];
            Near { picture: png(&train_pictures.of(index)), class, similarity: neighbour.similarity }
        });
        near.collect()
    };
    let query = |(row, point): (usize, &usize)| Query {
        picture: png(&test_pictures.of(points[*point])),
        class: labels[*point],
        neighbours: near(row),
    };
    Ok(Gallery {
        weights: encoder.identity().short_name().to_owned(),
        data: test.images().name().to_owned(),
        class_names: test.class_names().to_vec(),
        components,
        neighbourhoods,
        thumbnails: sheet(test.images(), views, &points),
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
    let count = VIEWED_IMAGES.min(deal.manifest().images_per_shard);
    let mut viewed = Vec::new();
    for sample in 0..count {
        let record = deal.record(0, sample)?;
        maker.render_plain(record, &mut scratch, &mut view);
        let image = png(&maker.picture(&view));
        let mut views = Vec::new();
        for (epoch, number) in (0..VIEW_PAIRS).flat_map(|epoch| [(epoch, 0), (epoch, 1)]) {
            let parameters = maker.draw(recipe.seed, epoch, u64::from(sample), number);
            maker.render(record, &parameters, &mut scratch, &mut view);
            views.push(png(&maker.picture(&view)));
        }
        viewed.push(Viewed { image, views });
    }
    Ok(viewed)
}

/// At the images' own size, as far as that is not large.
fn thumbnails<'a>(part: &'a Labelled, views: &Views) -> Thumbnails<'a> {
    let geometry = part.images().geometry();
    let side_px = geometry.width_px.min(geometry.height_px).min(MOST_PICTURE_PX);
    Thumbnails::new(part.images(), views, side_px)
}

fn sheet(images: &Images, views: &Views, indices: &[u64]) -> Sheet {
    let mut thumbnails = Thumbnails::new(images, views, THUMBNAIL_PX);
    let columns = (indices.len() as f64).sqrt().ceil() as usize;
    let rows = indices.len().div_ceil(columns);
    let mut sheet = RgbImage::new(columns as u32 * THUMBNAIL_PX, rows as u32 * THUMBNAIL_PX);
    for (number, index) in indices.iter().enumerate() {
        let [left, top] =
            [number % columns, number / columns].map(|cell| cell as i64 * i64::from(THUMBNAIL_PX));
        replace(&mut sheet, &thumbnails.of(*index), left, top);
    }
    let mut bytes = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY);
    sheet.write_with_encoder(encoder).expect("pixels in memory can be encoded");
    Sheet { uri: uri("image/jpeg", &bytes), columns: columns as u32 }
}

/// A square.
fn png(pixels: &RgbImage) -> Picture {
    let mut bytes = Vec::new();
    pixels.write_with_encoder(PngEncoder::new(&mut bytes)).expect("pixels in memory can be encoded");
    Picture { uri: uri("image/png", &bytes), side_px: pixels.width() }
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
}
