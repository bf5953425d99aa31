//! A picture of views, for people to look at.

use std::convert::identity;
use std::io;
use std::ops::Range;
use std::path::Path;

use image::codecs::png::PngEncoder;
use image::imageops::{FilterType, replace, resize};
use image::{Rgb, RgbImage};

use crate::aside;
use crate::error::DatasetError;
use crate::views::{Scratch, ViewMaker};

/// Below this side, pixels are enlarged: smaller views are hard to see on a screen.
const LEAST_CELL_PX: u32 = 96;

/// Between the two views of a pair, and between rows.
const GAP_PX: u32 = 4;

/// Before each pair.
const PAIR_GAP_PX: u32 = 16;

const BACKGROUND: Rgb<u8> = Rgb([255, 255, 255]);

/// Writes a PNG with one row for each `(sample, record)`: the image itself, then both views of each of these
/// epochs, exactly as training with this seed sees them, before they are normalised.
///
/// # Errors
/// A file that cannot be written.
///
/// # Panics
/// As [`ViewMaker::render`].
pub fn write_grid(
    path: &Path,
    maker: &ViewMaker,
    records: &[(u64, &[u8])],
    epochs: Range<u64>,
    seed: u64,
) -> Result<(), DatasetError> {
    let picture = draw_grid(maker, records, epochs, seed);
    aside::write_file(
        path,
        |file| picture.write_with_encoder(PngEncoder::new(file)).map_err(io::Error::other),
        identity,
    )
    .map_err(DatasetError::io("write", path))
}

/// The same as the bytes of a PNG.
///
/// # Panics
/// As [`ViewMaker::render`].
pub fn grid_png(maker: &ViewMaker, records: &[(u64, &[u8])], epochs: Range<u64>, seed: u64) -> Vec<u8> {
    let mut png = Vec::new();
    let picture = draw_grid(maker, records, epochs, seed);
    picture.write_with_encoder(PngEncoder::new(&mut png)).expect("memory takes whatever is written");
    png
}

fn draw_grid(maker: &ViewMaker, records: &[(u64, &[u8])], epochs: Range<u64>, seed: u64) -> RgbImage {
    let side = maker.crop_px as u32;
    let scale = LEAST_CELL_PX.div_ceil(side);
    let cell = side * scale;
    let pair = PAIR_GAP_PX + 2 * cell + GAP_PX;
    let (rows, pairs) = (records.len() as u32, epochs.clone().count() as u32);
    let (width, height) = (2 * GAP_PX + cell + pairs * pair, GAP_PX + rows * (cell + GAP_PX));
    let mut picture = RgbImage::from_pixel(width, height, BACKGROUND);
    let mut scratch = Scratch::default();
    let mut planes = vec![0.0; maker.view_len()];
    for (row, (sample, record)) in (0..rows).zip(records) {
        let top = GAP_PX + row * (cell + GAP_PX);
        maker.render_plain(record, &mut scratch, &mut planes);
        draw_cell(maker, &planes, scale, GAP_PX, top, &mut picture);
        for (place, epoch) in (0..).zip(epochs.clone()) {
            for view in 0..2 {
                let left = GAP_PX + cell + place * pair + PAIR_GAP_PX + view * (cell + GAP_PX);
                let parameters = maker.draw(seed, epoch, *sample, view);
                maker.render(record, &parameters, &mut scratch, &mut planes);
                draw_cell(maker, &planes, scale, left, top, &mut picture);
            }
        }
    }
    picture
}

/// Puts one view into the picture, each of its pixels `scale` wide and high.
fn draw_cell(maker: &ViewMaker, planes: &[f32], scale: u32, left: u32, top: u32, picture: &mut RgbImage) {
    let view = maker.picture(planes);
    let side = view.width() * scale;
    let enlarged = resize(&view, side, side, FilterType::Nearest);
    replace(picture, &enlarged, left.into(), top.into());
}
