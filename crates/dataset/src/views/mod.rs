//! The two views of an image, as the official SimSiam code makes them with torchvision on PIL images: random
//! resized crop, colour jitter, grayscale, blur, flip, normalise.
//!
//! [`ViewParameters::draw`] decides what a view is, as a pure function of seed, epoch, sample and view;
//! [`ViewMaker::render`] computes its pixels. Between the two lies no state, so any view can be made again
//! anywhere, with any number of threads. Pixels stay `f32` in `0..=255` until they are normalised, where PIL
//! rounds to bytes after each change: the views agree within one level in the mean.

mod blur;
mod color;
mod grid;
mod parameters;
mod resize;

use image::{Rgb, RgbImage};
use rayon::prelude::*;
use recipe::Views;

use crate::geometry::{CHANNELS, Geometry};

pub use grid::{grid_png, write_grid};
pub use parameters::{ColorChange, CropBox, ViewParameters};

/// Renders views of records of one geometry.
#[derive(Debug, Clone)]
pub struct ViewMaker {
    views: Views,
    geometry: Geometry,
    crop_px: usize,
    /// What turns a channel's level in `0..=255` into the network's input.
    normalizations: [Normalization; CHANNELS],
}

/// `level * factor + offset`, which is `(level / 255 - mean) / std`.
#[derive(Debug, Clone, Copy)]
struct Normalization {
    factor: f32,
    offset: f32,
}

/// The buffers that rendering needs. One serves any number of views, one after the other; the first views
/// allocate it.
#[derive(Debug, Default)]
pub struct Scratch {
    resize: resize::Buffers,
    blur: blur::Buffers,
}

impl ViewMaker {
    /// Prepares for records of this geometry.
    pub fn new(views: &Views, geometry: Geometry) -> ViewMaker {
        let normalizations = std::array::from_fn(|channel| Normalization {
            factor: 1.0 / (255.0 * views.std[channel]),
            offset: -views.mean[channel] / views.std[channel],
        });
        ViewMaker { views: views.clone(), geometry, crop_px: views.crop_px as usize, normalizations }
    }

    /// The numbers in one view: 3 planes of `crop_px` rows of `crop_px`.
    pub fn view_len(&self) -> usize {
        CHANNELS * self.crop_px * self.crop_px
    }

    /// What view number `view` of a sample is in an epoch.
    pub fn draw(&self, seed: u64, epoch: u64, sample: u64, view: u32) -> ViewParameters {
        ViewParameters::draw(&self.views, self.geometry, seed, epoch, sample, view)
    }

    /// Renders one view of `record` into `out` (3 x crop_px x crop_px, normalised).
    ///
    /// # Panics
    /// A `record` that is not of the maker's geometry, an `out` that does not hold [`ViewMaker::view_len`]
    /// numbers, or a crop that leaves the image.
    pub fn render(&self, record: &[u8], parameters: &ViewParameters, scratch: &mut Scratch, out: &mut [f32]) {
        assert_eq!(record.len(), self.geometry.record_bytes(), "a record has its geometry's size");
        assert_eq!(out.len(), self.view_len(), "a view has 3 planes of crop_px x crop_px");
        let (crop, side) = (&parameters.crop, self.crop_px);
        // Changes of colour and a symmetric blur look the same in a mirror, so mirroring may come first,
        // where it costs nothing.
        scratch.resize.resize(record, self.geometry, crop, parameters.flip, side, out);
        let [red, green, blue] = split_planes(out);
        for change in parameters.jitter.iter().flatten() {
            color::change([&mut *red, &mut *green, &mut *blue], *change);
        }
        if let Some(sigma_px) = parameters.blur_sigma_px {
            scratch.blur.set_sigma(sigma_px);
        }
        if parameters.grayscale {
            color::gray_into_red(red, green, blue);
            if parameters.blur_sigma_px.is_some() {
                scratch.blur.blur(red, side);
            }
            self.normalizations[1].apply_from(red, green);
            self.normalizations[2].apply_from(red, blue);
            self.normalizations[0].apply(red);
        } else {
            for (plane, normalization) in [red, green, blue].into_iter().zip(&self.normalizations) {
                if parameters.blur_sigma_px.is_some() {
                    scratch.blur.blur(plane, side);
                }
                normalization.apply(plane);
            }
        }
    }

    /// Renders `record` without any randomness, for evaluation: the largest square in its middle, which is
    /// all of a square image, at `crop_px`, normalised.
    ///
    /// # Panics
    /// As [`ViewMaker::render`].
    pub fn render_plain(&self, record: &[u8], scratch: &mut Scratch, out: &mut [f32]) {
        self.render(record, &ViewParameters::plain(self.geometry), scratch, out);
    }

    /// A rendered view for people to look at.
    ///
    /// # Panics
    /// A `view` that does not hold [`ViewMaker::view_len`] numbers.
    pub fn picture(&self, view: &[f32]) -> RgbImage {
        assert_eq!(view.len(), self.view_len(), "a view has 3 planes of crop_px x crop_px");
        let area = self.crop_px * self.crop_px;
        let level = |place: usize, channel: usize| {
            let value = self.normalizations[channel].invert(view[channel * area + place]);
            value.round().clamp(0.0, 255.0) as u8
        };
        let side = self.crop_px as u32;
        RgbImage::from_fn(side, side, |x, y| {
            Rgb(std::array::from_fn(|channel| level((y * side + x) as usize, channel)))
        })
    }

    /// Renders views 0 and 1 of each `(sample, record)` into `x1` and `x2` (N x 3 x crop_px x crop_px each)
    /// on rayon's threads, whose number changes no bit.
    ///
    /// # Panics
    /// As [`ViewMaker::render`], with N views in each of `x1` and `x2`.
    pub fn render_batch(
        &self,
        records: &[(u64, &[u8])],
        seed: u64,
        epoch: u64,
        x1: &mut [f32],
        x2: &mut [f32],
    ) {
        for x in [&*x1, &*x2] {
            assert_eq!(x.len(), records.len() * self.view_len(), "a batch has one view for each record");
        }
        let places = x1.par_chunks_exact_mut(self.view_len()).zip(x2.par_chunks_exact_mut(self.view_len()));
        records.par_iter().zip(places).for_each_init(
            Scratch::default,
            |scratch, (&(sample, record), (x1, x2))| {
                self.render(record, &self.draw(seed, epoch, sample, 0), scratch, x1);
                self.render(record, &self.draw(seed, epoch, sample, 1), scratch, x2);
            },
        );
    }

    /// [`ViewMaker::render_plain`] of each record into `out` (N x 3 x crop_px x crop_px), on rayon's threads.
    ///
    /// # Panics
    /// As [`ViewMaker::render`], with N views in `out`.
    pub fn render_plain_batch(&self, records: &[&[u8]], out: &mut [f32]) {
        assert_eq!(out.len(), records.len() * self.view_len(), "a batch has one view for each record");
        let places = out.par_chunks_exact_mut(self.view_len());
        records.par_iter().zip(places).for_each_init(Scratch::default, |scratch, (record, out)| {
            self.render_plain(record, scratch, out);
        });
    }
}

impl Normalization {
    fn apply(self, plane: &mut [f32]) {
        for level in plane {
            *level = *level * self.factor + self.offset;
        }
    }

    fn apply_from(self, levels: &[f32], out: &mut [f32]) {
        for (out, level) in out.iter_mut().zip(levels) {
            *out = level * self.factor + self.offset;
        }
    }

    /// The level from 0 to 255 that became `value`.
    fn invert(self, value: f32) -> f32 {
        (value - self.offset) / self.factor
    }
}

/// Red, green and blue of three planes that follow each other.
fn split_planes(planes: &mut [f32]) -> [&mut [f32]; CHANNELS] {
    let area = planes.len() / CHANNELS;
    let (red, others) = planes.split_at_mut(area);
    let (green, blue) = others.split_at_mut(area);
    [red, green, blue]
}

#[cfg(test)]
mod tests;
