//! Nearest neighbours as a picture: what a network holds for alike is seen at a glance.

use image::codecs::jpeg::JpegEncoder;
use image::imageops::replace;
use image::{Rgb, RgbImage};
use recipe::Views;

use crate::knn::Neighbours;
use crate::labelled::{Labelled, one_of_each_class};
use crate::thumbnails::Thumbnails;

/// Rows, and neighbours in each.
const QUERIES: usize = 8;
const NEIGHBOURS: usize = 8;

/// Smaller images are enlarged, larger ones would only make the file large.
const CELL_PX: u32 = 96;
const GAP_PX: u32 = 4;

/// From one image to the next.
const PITCH_PX: u32 = CELL_PX + 2 * MARGIN_PX + GAP_PX;

/// Between a test image and its neighbours.
const QUERY_GAP_PX: u32 = 20;

/// Around every image; those of the query's class have a frame in it, with a gap to the image, so that it is seen beside
/// any colour.
const MARGIN_PX: u32 = 6;
const FRAME_PX: u32 = 4;
const FRAME: Rgb<u8> = Rgb([0, 150, 80]);
const BACKGROUND: Rgb<u8> = Rgb([255, 255, 255]);

/// A sixth of the size of PNG.
const JPEG_QUALITY: u8 = 75;

/// Draws a JPEG with a row for each of some test images, the same ones whatever the weights: the image, then the
/// images of the training part that are nearest to it, those of its class in a frame.
///
/// `neighbours` are those of all of the `test` part in all of the `train` part.
pub(crate) fn draw(train: &Labelled, test: &Labelled, neighbours: &Neighbours, views: &Views) -> Vec<u8> {
    let queries = one_of_each_class(test.labels(), test.class_names().len(), QUERIES);
    let mut queried = Thumbnails::new(test.images(), views, CELL_PX);
    let mut near = Thumbnails::new(train.images(), views, CELL_PX);
    let columns = neighbours.of(0).len().min(NEIGHBOURS);
    let size = |cells: usize| GAP_PX + cells as u32 * PITCH_PX;
    let mut picture = RgbImage::from_pixel(size(1 + columns) + QUERY_GAP_PX, size(queries.len()), BACKGROUND);
    for (row, query) in queries.into_iter().enumerate() {
        let top = size(row);
        place(&mut picture, &queried.of(query as u64), size(0), top, false);
        for (column, neighbour) in neighbours.of(query)[..columns].iter().enumerate() {
            let is_of_its_class = train.labels()[neighbour.index as usize] == test.labels()[query];
            let left = size(1 + column) + QUERY_GAP_PX;
            place(&mut picture, &near.of(neighbour.index.into()), left, top, is_of_its_class);
        }
    }
    let mut jpeg = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY);
    picture.write_with_encoder(encoder).expect("pixels in memory can be encoded");
    jpeg
}

/// Puts an image into its margin, which begins there.
fn place(picture: &mut RgbImage, cell: &RgbImage, left: u32, top: u32, is_framed: bool) {
    let mut put =
        |image: &RgbImage, from: u32| replace(picture, image, (left + from).into(), (top + from).into());
    if is_framed {
        let outer = CELL_PX + 2 * MARGIN_PX;
        let inner = outer - 2 * FRAME_PX;
        put(&RgbImage::from_pixel(outer, outer, FRAME), 0);
        put(&RgbImage::from_pixel(inner, inner, BACKGROUND), FRAME_PX);
    }
    put(cell, MARGIN_PX);
}

#[cfg(test)]
mod tests {
    use dataset::Split;
    use recipe::Data;

    use super::*;
    use crate::matrix::Matrix;
    use crate::testing::quickstart;

    /// Features that name the class: all neighbours are of it. Or that name the next class: none is.
    #[test]
    fn neighbours_of_the_class_of_their_query_are_framed() {
        let folder = tempfile::tempdir().unwrap();
        let open = |split| Labelled::open(&Data::Synthetic { images: 128 }, split, folder.path()).unwrap();
        let (train, test) = (open(Split::Train), open(Split::Test));
        let one_hot = |labels: &[u8], turn: u8| {
            let row = |label: u8| (0..10).map(move |class| f32::from(u8::from((label + turn) % 10 == class)));
            Matrix::new(labels.iter().copied().flat_map(row).collect(), 10)
        };
        let width = |columns: u32| GAP_PX + (1 + columns) * PITCH_PX + QUERY_GAP_PX;
        for (k, turn, columns, framed) in [(20, 0, 8, true), (20, 1, 8, false), (3, 0, 3, true)] {
            let (bank, queries) = (one_hot(train.labels(), 0), one_hot(test.labels(), turn));
            let neighbours = Neighbours::search(&bank, &queries, k, &mut |_| {});
            let jpeg = draw(&train, &test, &neighbours, &quickstart().views);
            let picture = image::load_from_memory(&jpeg).unwrap().into_rgb8();
            assert_eq!((picture.width(), picture.height()), (width(columns), 8 * PITCH_PX + GAP_PX));
            for (row, column) in [(0, 0), (7, columns - 1)] {
                // The middle of the left edge of a neighbour's frame.
                let (x, y) = (width(column) + FRAME_PX / 2, GAP_PX + row * PITCH_PX + PITCH_PX / 2);
                let [red, green, _] = picture.get_pixel(x, y).0;
                assert_eq!(green.saturating_sub(red) > 80, framed, "{row} {column}: {red} {green}");
            }
        }
    }
}
