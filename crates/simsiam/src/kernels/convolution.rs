//! Convolution over channels-last `f32` slices: forward, data gradient, weight gradient.
//!
//! A kernel tap pairs output pixels with input pixels, and that list of pairs is all there is to it:
//! ```text
//! forward:          y[o]  += x[i]  · W[tap]      for every pair (o, i) of every tap
//! data gradient:    dx[i] += dy[o] · W[tap]ᵀ
//! weight gradient:  dW[tap] += x[i] ⊗ dy[o]
//! ```
//! Padding and stride only decide which pairs exist, so no pixel is multiplied with padding, no input is
//! unfolded into a buffer, and the first two are one function. Each sum runs in one accumulator in one order,
//! whatever the number of threads and of SIMD lanes, so the bits depend on neither (with fused
//! multiply-add, which AVX2, AVX-512 and NEON all have).

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::buffer::Buffer;

/// Output pixels (forward) or input channels (weight gradient) of a tile: times [`vectors`], plus one row of
/// weights, they fill the registers of AVX-512 and NEON.
const TILE: usize = 6;

/// Output pixels between two visits to the same accumulators: their rows stay in the second-level cache.
const CHUNK_PIXELS: usize = 256;

/// Numbers of a row that are transposed at once: long enough a stretch for the hardware to read ahead.
const TRANSPOSED: usize = 64;

/// The widest panel: four vectors of AVX-512.
const MOST_WIDTH: usize = 64;

/// The same for the weight gradient, whose tiles all go over these pixels: their gradients fit the first level.
const CORRELATED_PIXELS: usize = 96;

/// With fewer channels than this, the taps of a kernel row are joined into one run of channels: a tap then
/// costs more in set-up than in multiplication.
pub(super) const FEW_CHANNELS: usize = 16;

/// The sizes of a square convolution, padded by half its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) images: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    pub(crate) output_channels: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
}

impl Sizes {
    /// Height and width of the output.
    pub(crate) fn output(&self) -> [usize; 2] {
        let along = |length: usize| (length + 2 * (self.kernel / 2) - self.kernel) / self.stride + 1;
        [along(self.height), along(self.width)]
    }

    fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    fn joins_taps(&self) -> bool {
        self.kernel > 1 && self.channels < FEW_CHANNELS
    }
}

/// `x: [images, height, width, channels]` by steps between its entries: any view of an image batch.
#[derive(Clone, Copy)]
pub(crate) struct Image<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) strides: [usize; 4],
}

/// `y: [images, h, w, output_channels]` of `x` and `weight: [output_channels, channels, kernel, kernel]`.
pub(crate) fn forward(sizes: &Sizes, x: Image, weight: &[f32], y: &mut [f32]) {
    if sizes.joins_taps() {
        let joined = Joined::new(sizes, x);
        let weight = joined.weight(sizes, weight);
        let weight =
            Weight::abreast(&weight, [sizes.output_channels, joined.run, sizes.kernel], Abreast::Outputs);
        return multiply(&joined.grid(sizes), &joined.values, &weight, y);
    }
    let shape = [sizes.output_channels, sizes.channels, sizes.taps()];
    multiply(&Grid::forward(sizes), x.values, &Weight::abreast(weight, shape, Abreast::Outputs), y);
}

/// `dx: [images, height, width, channels]` of `dy`, shaped as `y`.
pub(crate) fn data_gradient(sizes: &Sizes, dy: &[f32], weight: &[f32], dx: &mut [f32]) {
    let shape = [sizes.output_channels, sizes.channels, sizes.taps()];
    let grid = Grid::backward(sizes);
    // Without a stride it is a convolution itself, with the taps turned round.
    let abreast = if grid.is_forward { Abreast::InputsTurned } else { Abreast::Inputs };
    multiply(&grid, dy, &Weight::abreast(weight, shape, abreast), dx);
}

/// `dweight`, shaped as the weight, of `x` and `dy`.
pub(crate) fn weight_gradient(sizes: &Sizes, x: Image, dy: &[f32], dweight: &mut [f32]) {
    if sizes.joins_taps() {
        let joined = Joined::new(sizes, x);
        let mut gradient = vec![0.0; dweight.len()];
        let shape = [sizes.output_channels, joined.run, sizes.kernel];
        correlate(&joined.grid(sizes), &joined.values, dy, shape, &mut gradient);
        return joined.split(sizes, &gradient, dweight);
    }
    let shape = [sizes.output_channels, sizes.channels, sizes.taps()];
    correlate(&Grid::forward(sizes), x.values, dy, shape, dweight);
}

/// An output pixel and an input pixel that a tap joins, by the places of their first channels.
#[derive(Clone, Copy)]
struct Pair {
    to: u32,
    from: u32,
}

/// Pairs that the same neighbouring taps of a kernel row join: each is one run of numbers on both sides, of all
/// these taps' inputs and of all these taps' weights.
struct Segment {
    taps: Range<usize>,
    pairs: Vec<Pair>,
}

/// Which pixels pair up: every `to` pixel with the `from` pixels under the kernel.
#[derive(Clone, Copy)]
struct Grid {
    images: usize,
    to: [usize; 2],
    to_pitch: usize,
    from: [usize; 2],
    from_pitch: usize,
    kernel: [usize; 2],
    padding: usize,
    stride: usize,
    /// Whether `from` grows with the tap, and is the finer of the two when the stride is above 1.
    is_forward: bool,
}

impl Grid {
    fn forward(sizes: &Sizes) -> Grid {
        Grid {
            images: sizes.images,
            to: sizes.output(),
            to_pitch: sizes.output_channels,
            from: [sizes.height, sizes.width],
            from_pitch: sizes.channels,
            kernel: [sizes.kernel; 2],
            padding: sizes.kernel / 2,
            stride: sizes.stride,
            is_forward: true,
        }
    }

    fn backward(sizes: &Sizes) -> Grid {
        let Grid { to, to_pitch, from, from_pitch, .. } = Grid::forward(sizes);
        let (to, to_pitch, from, from_pitch) = (from, from_pitch, to, to_pitch);
        Grid { to, to_pitch, from, from_pitch, is_forward: sizes.stride == 1, ..Grid::forward(sizes) }
    }

    fn rows(&self) -> usize {
        self.images * self.to[0]
    }

    /// The pairs of a tap whose `to` pixel lies in these rows, counted through all images. `to` places count
    /// from the first of these rows. `columns` are the tap's [`column_pairs`](Self::column_pairs).
    fn pairs(&self, row_tap: usize, columns: &[Pair], rows: &Range<usize>, pairs: &mut Vec<Pair>) {
        pairs.clear();
        for row in rows.clone() {
            let (image, y) = (row / self.to[0], row % self.to[0]);
            let Some(from_y) = self.source(y, row_tap, self.from[0]) else { continue };
            let to = ((row - rows.start) * self.to[1] * self.to_pitch) as u32;
            let from = ((image * self.from[0] + from_y) * self.from[1] * self.from_pitch) as u32;
            pairs.extend(columns.iter().map(|pair| Pair { to: to + pair.to, from: from + pair.from }));
        }
    }

    /// The pairs of a tap within one row of both sides.
    fn column_pairs(&self, column_tap: usize) -> Vec<Pair> {
        let pair = |x: usize| {
            let from_x = self.source(x, column_tap, self.from[1])?;
            Some(Pair { to: (x * self.to_pitch) as u32, from: (from_x * self.from_pitch) as u32 })
        };
        (0..self.to[1]).filter_map(pair).collect()
    }

    /// The same pairs for all taps, with as many taps joined as lie side by side.
    fn segments(&self, rows: &Range<usize>) -> Vec<Segment> {
        let mut segments = Vec::new();
        for row_tap in 0..self.kernel[0] {
            let first = segments.len();
            let columns = self.columns(row_tap, &mut segments);
            for row in rows.clone() {
                let (image, y) = (row / self.to[0], row % self.to[0]);
                let Some(from_y) = self.source(y, row_tap, self.from[0]) else { continue };
                let to = (row - rows.start) * self.to[1];
                let from = (image * self.from[0] + from_y) * self.from[1];
                for &(segment, x, from_x) in &columns {
                    let (to, from) = ((to + x) * self.to_pitch, (from + from_x) * self.from_pitch);
                    segments[first + segment].pairs.push(Pair { to: to as u32, from: from as u32 });
                }
            }
        }
        segments
    }

    /// Adds the segments of a kernel row, and says for every column of `to`: segment, column, column of `from`.
    fn columns(&self, row_tap: usize, segments: &mut Vec<Segment>) -> Vec<(usize, usize, usize)> {
        let first = segments.len();
        let mut columns = Vec::new();
        for x in 0..self.to[1] {
            let sources =
                (0..self.kernel[1]).filter_map(|tap| Some((tap, self.source(x, tap, self.from[1])?)));
            let mut sources = sources.collect::<Vec<_>>();
            let joined = if self.is_forward { sources.len() } else { 1 };
            if self.is_forward {
                sources.truncate(1);
            }
            for (tap, from_x) in sources {
                let start = row_tap * self.kernel[1] + tap;
                let taps = start..start + joined;
                let known = segments[first..].iter().position(|segment| segment.taps == taps);
                let segment = known.unwrap_or_else(|| {
                    segments.push(Segment { taps, pairs: Vec::new() });
                    segments.len() - 1 - first
                });
                columns.push((segment, x, from_x));
            }
        }
        columns
    }

    /// The place, along one axis of length `length`, that a tap joins to `to`.
    fn source(&self, to: usize, tap: usize, length: usize) -> Option<usize> {
        let place = if self.is_forward {
            (to * self.stride + tap).checked_sub(self.padding)?
        } else {
            let place = (to + self.padding).checked_sub(tap)?;
            if !place.is_multiple_of(self.stride) {
                return None;
            }
            place / self.stride
        };
        (place < length).then_some(place)
    }
}

/// An input with few channels, copied with its padding, so that a kernel row is one run of numbers.
struct Joined {
    values: Buffer,
    padded: [usize; 2],
    /// Numbers under one row of the kernel.
    run: usize,
}

impl Joined {
    fn new(sizes: &Sizes, x: Image) -> Joined {
        let (padding, channels) = (sizes.kernel / 2, sizes.channels);
        let padded = [sizes.height + 2 * padding, sizes.width + 2 * padding];
        let mut values = Buffer::new(sizes.images * padded[0] * padded[1] * channels);
        values.par_chunks_mut(padded[0] * padded[1] * channels).enumerate().for_each(
            |(image, padded_image)| {
                padded_image.fill(0.0);
                for y in 0..sizes.height {
                    let start = ((y + padding) * padded[1] + padding) * channels;
                    let row = &mut padded_image[start..start + sizes.width * channels];
                    let from = image * x.strides[0] + y * x.strides[1];
                    for (column, pixel) in row.chunks_exact_mut(channels).enumerate() {
                        for (channel, value) in pixel.iter_mut().enumerate() {
                            *value = x.values[from + column * x.strides[2] + channel * x.strides[3]];
                        }
                    }
                }
            },
        );
        Joined { values, padded, run: sizes.kernel * channels }
    }

    fn grid(&self, sizes: &Sizes) -> Grid {
        Grid { from: self.padded, kernel: [sizes.kernel, 1], padding: 0, ..Grid::forward(sizes) }
    }

    /// `[out, in, row, column]` to `[out, (column, in), row]`
    fn weight(&self, sizes: &Sizes, weight: &[f32]) -> Vec<f32> {
        let mut joined = vec![0.0; weight.len()];
        self.for_each_place(sizes, |apart, place| joined[place] = weight[apart]);
        joined
    }

    /// The way back.
    fn split(&self, sizes: &Sizes, joined: &[f32], weight: &mut [f32]) {
        self.for_each_place(sizes, |apart, place| weight[apart] = joined[place]);
    }

    fn for_each_place(&self, sizes: &Sizes, mut visit: impl FnMut(usize, usize)) {
        let (kernel, channels) = (sizes.kernel, sizes.channels);
        for apart in 0..sizes.output_channels * channels * kernel * kernel {
            let (rest, column) = (apart / kernel, apart % kernel);
            let (rest, row) = (rest / kernel, rest % kernel);
            let (output, channel) = (rest / channels, rest % channels);
            visit(apart, (output * self.run + column * channels + channel) * kernel + row);
        }
    }
}

/// Vectors side by side in a panel of weights. With [`TILE`] rows they fill 32 registers of 16 lanes or 16
/// registers of 8; NEON has 32 of 4.
const fn vectors<S: Simd>() -> usize {
    if S::F32_LANES == 8 { 2 } else { 4 }
}

/// Numbers side by side in a panel.
fn panel_width() -> usize {
    struct Width;
    impl WithSimd for Width {
        type Output = usize;
        fn with_simd<S: Simd>(self, _: S) -> usize {
            vectors::<S>() * S::F32_LANES
        }
    }
    Arch::new().dispatch(Width)
}

/// Which side of a weight lies side by side in its panels, and is not summed over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Abreast {
    Outputs,
    Inputs,
    /// Inputs, and the taps in reverse.
    InputsTurned,
}

/// `[outputs, inputs, taps]`, as panels want it.
struct Weight<'a> {
    values: &'a [f32],
    inputs: usize,
    taps: usize,
    /// Numbers abreast, in all panels together.
    columns: usize,
    /// Numbers that are summed over, per tap.
    depth: usize,
    abreast: Abreast,
}

impl<'a> Weight<'a> {
    fn abreast(values: &'a [f32], shape: [usize; 3], abreast: Abreast) -> Weight<'a> {
        let [outputs, inputs, taps] = shape;
        let is_of_outputs = abreast == Abreast::Outputs;
        let (columns, depth) = if is_of_outputs { (outputs, inputs) } else { (inputs, outputs) };
        Weight { values, inputs, taps, columns, depth, abreast }
    }

    fn panel_length(&self) -> usize {
        self.depth * self.taps * panel_width()
    }

    /// Fills `packed` with panel number `panel`: `[tap][depth][panel_width]`.
    fn pack(&self, panel: usize, packed: &mut [f32]) {
        let width = panel_width();
        let columns = panel * width..self.columns.min((panel + 1) * width);
        if columns.len() < width {
            packed.fill(0.0);
        }
        match self.abreast {
            Abreast::Outputs => self.pack_outputs(columns, width, packed),
            Abreast::Inputs | Abreast::InputsTurned => self.pack_inputs(columns, width, packed),
        }
    }

    fn pack_outputs(&self, columns: Range<usize>, width: usize, packed: &mut [f32]) {
        let row_length = self.inputs * self.taps;
        let rows = &self.values[columns.start * row_length..columns.end * row_length];
        let mut block = [0.0; TRANSPOSED * MOST_WIDTH];
        for start in (0..row_length).step_by(TRANSPOSED) {
            let places = start..row_length.min(start + TRANSPOSED);
            for (column, row) in rows.chunks_exact(row_length).enumerate() {
                for (place, &value) in row[places.clone()].iter().enumerate() {
                    block[place * width + column] = value;
                }
            }
            for (place, values) in places.zip(block.chunks_exact(width)) {
                let (input, tap) = (place / self.taps, place % self.taps);
                packed[(tap * self.inputs + input) * width..][..width].copy_from_slice(values);
            }
        }
    }

    fn pack_inputs(&self, columns: Range<usize>, width: usize, packed: &mut [f32]) {
        let row_length = self.inputs * self.taps;
        for (output, row) in self.values.chunks_exact(row_length).enumerate() {
            let row = &row[columns.start * self.taps..columns.end * self.taps];
            for (column, values) in row.chunks_exact(self.taps).enumerate() {
                for (tap, &value) in values.iter().enumerate() {
                    let turned = self.abreast == Abreast::InputsTurned;
                    let tap = if turned { self.taps - 1 - tap } else { tap };
                    packed[(tap * self.depth + output) * width + column] = value;
                }
            }
        }
    }
}

/// `to[t] = Σ_taps Σ_pairs from[f] · weight`
fn multiply(grid: &Grid, from: &[f32], weight: &Weight, to: &mut [f32]) {
    assert!(from.len().max(to.len()) <= u32::MAX as usize, "a batch of at most 2^32 numbers");
    let panels = weight.columns.div_ceil(panel_width());
    // Either way the same sums run in the same order. What is larger, weight or output, is gone through once.
    if weight.values.len() > to.len() && panels >= rayon::current_num_threads() {
        multiply_by_panels(grid, from, weight, to);
    } else {
        multiply_by_rows(grid, from, weight, to);
    }
}

/// Threads take panels: each packs its own and uses it while it is in the cache.
fn multiply_by_panels(grid: &Grid, from: &[f32], weight: &Weight, to: &mut [f32]) {
    let (arch, width) = (Arch::new(), panel_width());
    let grid = Grid { to_pitch: width, ..*grid };
    let segments = grid.segments(&(0..grid.rows()));
    let length = grid.rows() * grid.to[1] * width;
    let mut apart = Buffer::new(weight.columns.div_ceil(width) * length);
    apart.par_chunks_mut(length).enumerate().for_each(|(panel, to)| {
        let mut packed = Buffer::new(weight.panel_length());
        weight.pack(panel, &mut packed);
        to.fill(0.0);
        arch.dispatch(Multiply { to, pitch: width, from, packed: &packed, weight, segments: &segments });
    });
    to.par_chunks_mut(weight.columns).enumerate().for_each(|(pixel, to)| {
        for (columns, panel) in to.chunks_mut(width).zip(apart.chunks_exact(length)) {
            columns.copy_from_slice(&panel[pixel * width..][..columns.len()]);
        }
    });
}

/// All panels are packed, then threads take rows of `to`.
fn multiply_by_rows(grid: &Grid, from: &[f32], weight: &Weight, to: &mut [f32]) {
    let arch = Arch::new();
    let length = weight.panel_length();
    let mut packed = Buffer::new(weight.columns.div_ceil(panel_width()) * length);
    packed.par_chunks_mut(length).enumerate().for_each(|(panel, packed)| weight.pack(panel, packed));

    let row_length = grid.to[1] * grid.to_pitch;
    let rows = chunk_rows(grid);
    to.par_chunks_mut(rows * row_length).enumerate().for_each(|(chunk, to)| {
        let start = chunk * rows;
        let segments = grid.segments(&(start..start + to.len() / row_length));
        to.fill(0.0);
        let pitch = grid.to_pitch;
        arch.dispatch(Multiply { to, pitch, from, packed: &packed, weight, segments: &segments });
    });
}

/// Rows of a chunk of work. No bit depends on it, so it may look at the number of threads: as many chunks as
/// divide well among them.
fn chunk_rows(grid: &Grid) -> usize {
    let threads = rayon::current_num_threads();
    let chunks = (grid.rows() * grid.to[1]).div_ceil(CHUNK_PIXELS).next_multiple_of(threads);
    grid.rows().div_ceil(chunks).max(1)
}

struct Multiply<'a> {
    to: &'a mut [f32],
    pitch: usize,
    from: &'a [f32],
    /// Panels, one after the other, each `[tap][depth][panel_width]`.
    packed: &'a [f32],
    weight: &'a Weight<'a>,
    segments: &'a [Segment],
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::F32_LANES == 8 { self.run::<S, 2>(simd) } else { self.run::<S, 4>(simd) }
    }
}

impl Multiply<'_> {
    #[inline(always)]
    fn run<S: Simd, const VECTORS: usize>(mut self, simd: S) {
        let width = VECTORS * S::F32_LANES;
        let depth = self.weight.depth;
        for (index, panel) in self.packed.chunks_exact(depth * self.weight.taps * width).enumerate() {
            let column = index * width;
            let is_whole = column + width <= self.pitch;
            for segment in self.segments {
                let weights = &panel[segment.taps.start * depth * width..segment.taps.end * depth * width];
                let weights = S::as_simd_f32s(weights).0.as_chunks::<VECTORS>().0;
                for pairs in segment.pairs.chunks(TILE) {
                    if is_whole {
                        self.tile::<S, VECTORS, true>(simd, pairs, column, weights);
                    } else {
                        self.tile::<S, VECTORS, false>(simd, pairs, column, weights);
                    }
                }
            }
        }
    }

    /// Adds one segment's products to the columns of up to [`TILE`] pixels.
    #[inline(always)]
    fn tile<S: Simd, const VECTORS: usize, const WHOLE: bool>(
        &mut self,
        simd: S,
        pairs: &[Pair],
        column: usize,
        weights: &[[S::f32s; VECTORS]],
    ) {
        let width = if WHOLE { VECTORS * S::F32_LANES } else { self.pitch - column };
        let mut rows = [&self.from[..0]; TILE];
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; TILE];
        for (tile_row, (row, sums)) in rows.iter_mut().zip(&mut sums).enumerate() {
            // A short tile repeats its last pixel and drops the result.
            let pair = pairs[tile_row.min(pairs.len() - 1)];
            *row = &self.from[pair.from as usize..][..weights.len()];
            let to = &self.to[pair.to as usize + column..][..width];
            *sums = load::<S, VECTORS, WHOLE>(simd, to);
        }
        for (depth, weights) in weights.iter().enumerate() {
            for (row, sums) in rows.iter().zip(&mut sums) {
                let value = simd.splat_f32s(row[depth]);
                for (sum, &weight) in sums.iter_mut().zip(weights) {
                    *sum = simd.mul_add_e_f32s(value, weight, *sum);
                }
            }
        }
        for (pair, sums) in pairs.iter().zip(sums) {
            store::<S, VECTORS, WHOLE>(simd, sums, &mut self.to[pair.to as usize + column..][..width]);
        }
    }
}

/// Vectors from the start of `values`; missing numbers are 0.
#[inline(always)]
fn load<S: Simd, const VECTORS: usize, const WHOLE: bool>(simd: S, values: &[f32]) -> [S::f32s; VECTORS] {
    let mut loaded = [simd.splat_f32s(0.0); VECTORS];
    if WHOLE {
        loaded.copy_from_slice(&S::as_simd_f32s(values).0[..VECTORS]);
    } else {
        for (vector, values) in loaded.iter_mut().zip(values.chunks(S::F32_LANES)) {
            *vector = simd.partial_load_f32s(values);
        }
    }
    loaded
}

/// The way back; what does not fit is dropped.
#[inline(always)]
fn store<S: Simd, const VECTORS: usize, const WHOLE: bool>(
    simd: S,
    vectors: [S::f32s; VECTORS],
    values: &mut [f32],
) {
    if WHOLE {
        S::as_mut_simd_f32s(values).0[..VECTORS].copy_from_slice(&vectors);
    } else {
        for (vector, values) in vectors.into_iter().zip(values.chunks_mut(S::F32_LANES)) {
            simd.partial_store_f32s(values, vector);
        }
    }
}

/// `gradient[output, input, tap] = Σ_pairs x[from, input] · dy[to, output]`, shape `[outputs, inputs, taps]`.
fn correlate(grid: &Grid, x: &[f32], dy: &[f32], shape: [usize; 3], gradient: &mut [f32]) {
    assert!(x.len().max(dy.len()) <= u32::MAX as usize, "a batch of at most 2^32 numbers");
    let [outputs, inputs, taps] = shape;
    let width = panel_width();
    let tiles_of_inputs = inputs.div_ceil(TILE);
    // [panel][tile of inputs][tap], each TILE by width numbers: the taps of a tile read the same inputs.
    let tiles = outputs.div_ceil(width) * taps * tiles_of_inputs;
    let mut values = Buffer::new(tiles * TILE * width);

    // Each tile sums over all pixels in order, so how tiles are dealt to threads decides no bit.
    let tiles_of_task = tiles.div_ceil(2 * rayon::current_num_threads());
    let arch = Arch::new();
    values.par_chunks_mut(tiles_of_task * TILE * width).enumerate().for_each(|(task, sums)| {
        let first_tile = task * tiles_of_task;
        sums.fill(0.0);
        arch.dispatch(Correlate { grid, x, dy, inputs, outputs, taps, tiles_of_inputs, first_tile, sums });
    });

    let (panel_length, row_length) = (taps * tiles_of_inputs * TILE * width, inputs * taps);
    let panels = values.par_chunks(panel_length);
    panels.zip(gradient.par_chunks_mut(width * row_length)).for_each(|(panel, rows)| {
        let mut block = [0.0; TRANSPOSED * MOST_WIDTH];
        for start in (0..row_length).step_by(TRANSPOSED) {
            let places = start..row_length.min(start + TRANSPOSED);
            for (place, values) in places.clone().zip(block.chunks_exact_mut(width)) {
                let (input, tap) = (place / taps, place % taps);
                let row = (input / TILE * taps + tap) * TILE + input % TILE;
                values.copy_from_slice(&panel[row * width..][..width]);
            }
            for (column, row) in rows.chunks_exact_mut(row_length).enumerate() {
                for (place, value) in row[places.clone()].iter_mut().enumerate() {
                    *value = block[place * width + column];
                }
            }
        }
    });
}

struct Correlate<'a> {
    grid: &'a Grid,
    x: &'a [f32],
    dy: &'a [f32],
    inputs: usize,
    outputs: usize,
    taps: usize,
    tiles_of_inputs: usize,
    first_tile: usize,
    sums: &'a mut [f32],
}

impl WithSimd for Correlate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::F32_LANES == 8 { self.run::<S, 2>(simd) } else { self.run::<S, 4>(simd) }
    }
}

impl Correlate<'_> {
    #[inline(always)]
    fn run<S: Simd, const VECTORS: usize>(mut self, simd: S) {
        let rows_of_chunk = CORRELATED_PIXELS.div_ceil(self.grid.to[1]);
        let row_length = self.grid.to[1] * self.grid.to_pitch;
        let columns = (0..self.grid.kernel[1]).map(|tap| self.grid.column_pairs(tap)).collect::<Vec<_>>();
        let mut pairs = vec![Vec::new(); self.taps];
        for start in (0..self.grid.rows()).step_by(rows_of_chunk) {
            let rows = start..self.grid.rows().min(start + rows_of_chunk);
            let dy = &self.dy[start * row_length..rows.end * row_length];
            for (tap, pairs) in pairs.iter_mut().enumerate() {
                let [row_tap, column_tap] = [tap / self.grid.kernel[1], tap % self.grid.kernel[1]];
                self.grid.pairs(row_tap, &columns[column_tap], &rows, pairs);
            }
            for index in 0..self.sums.len() / (TILE * VECTORS * S::F32_LANES) {
                let tile = self.first_tile + index;
                let (rest, tap) = (tile / self.taps, tile % self.taps);
                let (panel, tile_of_inputs) = (rest / self.tiles_of_inputs, rest % self.tiles_of_inputs);
                let pairs = &pairs[tap];
                let (column, input) = (panel * VECTORS * S::F32_LANES, tile_of_inputs * TILE);
                let place = Place { column, input, index };
                let has_all_columns = column + VECTORS * S::F32_LANES <= self.outputs;
                match (has_all_columns, input + TILE <= self.inputs) {
                    (true, true) => self.tile::<S, VECTORS, true, true>(simd, pairs, dy, place),
                    (true, false) => self.tile::<S, VECTORS, true, false>(simd, pairs, dy, place),
                    (false, true) => self.tile::<S, VECTORS, false, true>(simd, pairs, dy, place),
                    (false, false) => self.tile::<S, VECTORS, false, false>(simd, pairs, dy, place),
                }
            }
        }
    }

    /// Adds a chunk of pixels to the sums of [`TILE`] inputs and a panel's width of outputs.
    #[inline(always)]
    fn tile<S: Simd, const VECTORS: usize, const ALL_COLUMNS: bool, const ALL_INPUTS: bool>(
        &mut self,
        simd: S,
        pairs: &[Pair],
        dy: &[f32],
        place: Place,
    ) {
        let Place { column, input, index } = place;
        let width = if ALL_COLUMNS { VECTORS * S::F32_LANES } else { self.outputs - column };
        let inputs = if ALL_INPUTS { TILE } else { self.inputs - input };
        let tile_length = TILE * VECTORS * S::F32_LANES;
        let places = S::as_mut_simd_f32s(&mut self.sums[index * tile_length..][..tile_length]).0;
        let places = places.as_chunks_mut::<VECTORS>().0;
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; TILE];
        sums.copy_from_slice(places);
        for pair in pairs {
            let dy = load::<S, VECTORS, ALL_COLUMNS>(simd, &dy[pair.to as usize + column..][..width]);
            let x = &self.x[pair.from as usize + input..][..inputs];
            for (tile_row, sums) in sums.iter_mut().enumerate() {
                // A short tile repeats its last input; nobody reads the result.
                let value = simd.splat_f32s(x[if ALL_INPUTS { tile_row } else { tile_row.min(inputs - 1) }]);
                for (sum, dy) in sums.iter_mut().zip(dy) {
                    *sum = simd.mul_add_e_f32s(value, dy, *sum);
                }
            }
        }
        places.copy_from_slice(&sums);
    }
}

/// Where a tile lies: its first output and input, and its number in the task's sums.
#[derive(Clone, Copy)]
struct Place {
    column: usize,
    input: usize,
    index: usize,
}
