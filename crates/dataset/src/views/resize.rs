//! Crop and resize, as PIL's bilinear filter does it: a triangle as wide as one pixel of the coarser side, so
//! that shrinking averages instead of skipping. Only the crop's own pixels are read.
//!
//! Each axis is one pass that adds whole lines of pixels, weighted, which vectorises; between the two the
//! image is transposed.

use crate::geometry::{Geometry, PixelLayout};
use crate::views::CropBox;

/// Pixels on their way from record to view, one channel at a time.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    across: Taps,
    down: Taps,
    /// The crop, column after column.
    columns: Vec<f32>,
    /// The same at the view's width.
    stretched: Vec<f32>,
    /// The same, row after row.
    rows: Vec<f32>,
}

/// Which input lines make up each output line, and how much of each.
#[derive(Debug, Default)]
struct Taps {
    /// First input line and number of input lines, for each output line.
    spans: Vec<(usize, usize)>,
    /// The weights of all spans, one after the other.
    weights: Vec<f32>,
}

impl Buffers {
    /// Fills the three planes of `out` (side x side each) with levels from 0 to 255.
    pub(super) fn resize(
        &mut self,
        record: &[u8],
        geometry: Geometry,
        crop: &CropBox,
        mirrored: bool,
        side: usize,
        out: &mut [f32],
    ) {
        let (width, height) = (crop.width_px as usize, crop.height_px as usize);
        self.across.fit(width, side, mirrored);
        self.down.fit(height, side, false);
        self.columns.resize(width * height, 0.0);
        self.stretched.resize(side * height, 0.0);
        self.rows.resize(height * side, 0.0);
        for (channel, plane) in out.chunks_exact_mut(side * side).enumerate() {
            self.load_columns(record, geometry, crop, channel);
            self.across.blend(&self.columns, height, &mut self.stretched);
            transpose(&self.stretched, height, &mut self.rows);
            self.down.blend(&self.rows, side, plane);
        }
    }

    /// Reads one channel of the crop into `columns`.
    fn load_columns(&mut self, record: &[u8], geometry: Geometry, crop: &CropBox, channel: usize) {
        let [image_width, image_height] = [geometry.width_px, geometry.height_px].map(|px| px as usize);
        let [top, left] = [crop.top_px, crop.left_px].map(|px| px as usize);
        let [width, height] = [crop.width_px, crop.height_px].map(|px| px as usize);
        let plane = channel * image_width * image_height;
        if geometry.layout == PixelLayout::PlanarColumnMajor {
            for (x, column) in self.columns.chunks_exact_mut(height).enumerate() {
                let bytes = &record[plane + (left + x) * image_height + top..][..height];
                widen(bytes.iter(), column);
            }
            return;
        }
        // `rows` is free until the columns are stretched.
        self.rows.resize(self.rows.len().max(width * height), 0.0);
        let rows = &mut self.rows[..width * height];
        for (y, row) in rows.chunks_exact_mut(width).enumerate() {
            let first = (top + y) * image_width + left;
            if geometry.layout == PixelLayout::Interleaved {
                widen(record[3 * first..][..3 * width].iter().skip(channel).step_by(3), row);
            } else {
                widen(record[plane + first..][..width].iter(), row);
            }
        }
        transpose(rows, width, &mut self.columns);
    }
}

impl Taps {
    /// The weights for `input` lines becoming `output` lines, as PIL's `precompute_coeffs`. Mirrored, the
    /// last output line comes first.
    fn fit(&mut self, input: usize, output: usize, mirrored: bool) {
        self.spans.clear();
        self.weights.clear();
        let scale = input as f64 / output as f64;
        let reach = scale.max(1.0);
        for line in 0..output {
            let line = if mirrored { output - 1 - line } else { line };
            let center = (line as f64 + 0.5) * scale;
            let first = (center - reach + 0.5).max(0.0) as usize;
            let end = ((center + reach + 0.5) as usize).min(input);
            let weight = |tap: usize| (1.0 - ((tap as f64 + 0.5 - center) / reach).abs()).max(0.0);
            let total: f64 = (first..end).map(weight).sum();
            self.spans.push((first, end - first));
            self.weights.extend((first..end).map(|tap| (weight(tap) / total) as f32));
        }
    }

    /// Adds lines of `length` from `source` to lines of `out`.
    fn blend(&self, source: &[f32], length: usize, out: &mut [f32]) {
        let mut weights = self.weights.as_slice();
        for (&(first, count), out) in self.spans.iter().zip(out.chunks_exact_mut(length)) {
            let (own, others) = weights.split_at(count);
            weights = others;
            blend_lines(&source[first * length..][..count * length], own, out);
        }
    }
}

/// The sum of `lines`, each times its weight.
fn blend_lines(lines: &[f32], weights: &[f32], out: &mut [f32]) {
    let length = out.len();
    if let [a, b] = *weights {
        let (first, second) = lines.split_at(length);
        for ((out, first), second) in out.iter_mut().zip(first).zip(second) {
            *out = a * first + b * second;
        }
        return;
    }
    out.fill(0.0);
    for (line, weight) in lines.chunks_exact(length).zip(weights) {
        for (out, level) in out.iter_mut().zip(line) {
            *out += weight * level;
        }
    }
}

fn widen<'a>(bytes: impl Iterator<Item = &'a u8>, out: &mut [f32]) {
    for (out, byte) in out.iter_mut().zip(bytes) {
        *out = f32::from(*byte);
    }
}

/// Lines of `length` become columns. In tiles, so that what is read and what is written both stay close.
fn transpose(source: &[f32], length: usize, out: &mut [f32]) {
    const TILE: usize = 8;
    let lines = source.len() / length;
    for line in (0..lines).step_by(TILE) {
        let tile_lines = TILE.min(lines - line);
        for place in (0..length).step_by(TILE) {
            for place in place..(place + TILE).min(length) {
                let target = &mut out[place * lines + line..][..tile_lines];
                let source = source[line * length + place..].iter().step_by(length);
                for (target, level) in target.iter_mut().zip(source) {
                    *target = *level;
                }
            }
        }
    }
}
