//! Convolutions on NVIDIA's tensor cores: which kernel, of what tile, is told what.
//!
//! The kernels are CUDA C++, because they place every byte of shared memory and every fragment by hand. They want
//! channels-last operands whose channels fill whole loads of 16 bytes; [`layout::filled`] makes them so.

use std::sync::LazyLock;

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::tensor::CubeTensor;

use super::cuda::{Parameters, Source};
use super::launch::{floats, load_numbers, with_shape};
use super::layout;

/// Threads of a block, which both kernels are written for.
const THREADS: u32 = 128;

/// Blocks that fill a large GPU once, two for each of its multiprocessors.
const BLOCKS: usize = 264;

/// Channels below which pixels go through the first-level cache.
const CACHED_CHANNELS: usize = 32;

/// Taps that the kernels have room for: a 7x7 kernel's.
const MAX_TAPS: usize = 49;

/// Whether Hopper's own instructions multiply bf16. On a CPU their kernels are right (`tests/kernels/`); they have not run
/// on a GPU yet, so they are asked for.
static WARPGROUPS: LazyLock<bool> =
    LazyLock::new(|| std::env::var_os("SIMSIAM_WARPGROUPS").is_some_and(|value| value == "1"));

static CONVOLUTION: LazyLock<Source> = LazyLock::new(|| {
    let text = concat!(
        include_str!("cuda/instructions.cuh"),
        include_str!("cuda/tensor_cores.cuh"),
        include_str!("cuda/convolution.cu")
    );
    Source::new("convolution", text, THREADS)
});

static WEIGHT: LazyLock<Source> = LazyLock::new(|| {
    let text = concat!(
        include_str!("cuda/instructions.cuh"),
        include_str!("cuda/tensor_cores.cuh"),
        include_str!("cuda/convolution_weight.cu")
    );
    Source::new("convolution_weight", text, THREADS)
});

/// What a block makes at once, and each of its four warps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Tile {
    rows: usize,
    columns: usize,
    warp_rows: usize,
    warp_columns: usize,
    /// As many as 48 KiB of shared memory hold, which is what a block may have without asking.
    stages: usize,
}

impl Tile {
    const SQUARE: Tile = Tile { rows: 128, columns: 128, warp_rows: 64, warp_columns: 64, stages: 3 };
    const HIGH: Tile = Tile { rows: 128, columns: 64, warp_rows: 64, warp_columns: 32, stages: 4 };
    const WIDE: Tile = Tile { rows: 64, columns: 128, warp_rows: 32, warp_columns: 64, stages: 4 };

    fn count(&self, rows: usize, columns: usize) -> [usize; 2] {
        [columns.div_ceil(self.columns), rows.div_ceil(self.rows)]
    }

    /// What the kernels are compiled for.
    fn defines(&self, x: &CubeTensor) -> [(&'static str, usize); 8] {
        // Few channels: then many taps want the same few bytes.
        let is_cached = x.shape()[3] < CACHED_CHANNELS;
        [
            ("BF16", usize::from(x.dtype == DType::BF16)),
            ("CACHED", usize::from(is_cached)),
            ("WARPGROUPS", usize::from(*WARPGROUPS)),
            ("ROWS", self.rows),
            ("COLUMNS", self.columns),
            ("WARP_ROWS", self.warp_rows),
            ("WARP_COLUMNS", self.warp_columns),
            ("STAGES", self.stages),
        ]
    }
}

/// A place of a kernel, and what it adds to a pixel's.
#[derive(Clone, Copy)]
struct Tap {
    offset: [i32; 2],
    place: usize,
}

/// The taps that output pixels of one remainder see.
struct Phase {
    y_offset: [usize; 2],
    taps: Vec<Tap>,
}

/// How a product is laid over images.
struct Product {
    /// From one output pixel to the next in the input.
    stride: usize,
    /// From one pixel of a phase to the next in the output.
    y_step: usize,
    phases: Vec<Phase>,
}

impl Product {
    /// Of a convolution padded by half its kernel.
    fn forward(kernel: usize, stride: usize) -> Product {
        let taps = (0..kernel * kernel).map(|place| {
            let padding = (kernel / 2) as i32;
            Tap { offset: [(place / kernel) as i32 - padding, (place % kernel) as i32 - padding], place }
        });
        Product { stride, y_step: 1, phases: vec![Phase { y_offset: [0; 2], taps: taps.collect() }] }
    }

    /// Of the gradient of such a convolution's input.
    fn data_gradient(kernel: usize, stride: usize) -> Product {
        let padding = kernel / 2;
        // What output pixel, counted from that of the same phase, saw this one at a place along one axis.
        let seen_from = |remainder: usize, place: usize| {
            let distance = (remainder + padding) as i32 - place as i32;
            (distance % stride as i32 == 0).then_some(distance / stride as i32)
        };
        let phase = |remainder: [usize; 2]| {
            let taps = (0..kernel * kernel).filter_map(|place| {
                let offset =
                    [seen_from(remainder[0], place / kernel)?, seen_from(remainder[1], place % kernel)?];
                Some(Tap { offset, place })
            });
            Phase { y_offset: remainder, taps: taps.collect() }
        };
        let phases = (0..stride * stride).map(|index| phase([index / stride, index % stride])).collect();
        Product { stride: 1, y_step: stride, phases }
    }
}

/// `x: [n, h, w, in]`, `weight: [out, in, kernel, kernel]` `-> [n, h / stride, w / stride, out]`, and `x` as
/// [`weight_gradient`] reads it.
pub(super) fn forward(x: CubeTensor, weight: &CubeTensor, stride: usize) -> [CubeTensor; 2] {
    let [out, _, kernel, _] = weight.shape().dims();
    let dtype = x.dtype;
    let x = layout::filled(x, dtype);
    let [images, height, width, _] = x.shape().dims();
    let y = Shape::from([images, height.div_ceil(stride), width.div_ceil(stride), out]);
    let weight = layout::filled(permuted(weight, [0, 2, 3, 1]), dtype);
    [multiply(&x, &weight, &Product::forward(kernel, stride), y), x]
}

/// The gradient of an input `[n, h, w, in]` of which all but the channels is given.
pub(super) fn data_gradient(
    [images, height, width]: [usize; 3],
    weight: &CubeTensor,
    stride: usize,
    dy: CubeTensor,
) -> CubeTensor {
    let [_, channels, kernel, _] = weight.shape().dims();
    let dtype = dy.dtype;
    let dy = layout::filled(dy, dtype);
    let weight = layout::filled(permuted(weight, [1, 2, 3, 0]), dtype);
    let x = Shape::from([images, height, width, channels]);
    multiply(&dy, &weight, &Product::data_gradient(kernel, stride), x)
}

/// `x: [n, h, w, in]`, `weight: [out, kernel, kernel, in]`, both filled, `-> y`.
fn multiply(x: &CubeTensor, weight: &CubeTensor, product: &Product, y: Shape) -> CubeTensor {
    let [images, height, width, out] = y.dims();
    let rows = images * height.div_ceil(product.y_step) * width.div_ceil(product.y_step);
    let tile = tile_of_product(rows, out, product.phases.len());
    multiply_in(tile, x, weight, product, y)
}

/// The fastest by measurement: large tiles read the least, if there are enough of them to keep the GPU busy.
fn tile_of_product(rows: usize, out: usize, phases: usize) -> Tile {
    let blocks = Tile::SQUARE.count(rows, out).iter().product::<usize>() * phases;
    match (out > Tile::HIGH.columns, blocks >= BLOCKS / 2) {
        (false, _) => Tile::HIGH,
        (true, true) => Tile::SQUARE,
        (true, false) => Tile::WIDE,
    }
}

fn multiply_in(tile: Tile, x: &CubeTensor, weight: &CubeTensor, product: &Product, y: Shape) -> CubeTensor {
    let [images, height, width, channels] = x.shape().dims();
    let [_, y_height, y_width, out] = y.dims();
    let grid = [y_height.div_ceil(product.y_step), y_width.div_ceil(product.y_step)];
    let (rows, phases) = (images * grid[0] * grid[1], product.phases.len());

    let mut parameters = Parameters::default();
    parameters.push([images, height, width, channels]);
    parameters.push_divisor(grid[0] * grid[1]);
    parameters.push_divisor(grid[1]);
    parameters.push([product.stride]);
    let [_, kernel_height, kernel_width, _] = weight.shape().dims();
    parameters.push([y_height, y_width, product.y_step, out, kernel_height * kernel_width]);
    let mut taps: Vec<Tap> = Vec::new();
    for phase in &product.phases {
        parameters.push([phase.y_offset[0], phase.y_offset[1], taps.len(), phase.taps.len()]);
        taps.extend(&phase.taps);
    }
    const MAX_PHASES: usize = 4;
    assert!(phases <= MAX_PHASES && taps.len() <= MAX_TAPS, "kernels are at most 7x7, and strides at most 2");
    parameters.push(vec![0; (MAX_PHASES - phases) * 4]);
    for tap in &taps {
        parameters.push_signed(tap.offset);
        parameters.push([tap.place]);
    }
    parameters.push(vec![0; (MAX_TAPS - taps.len()) * 3]);

    let y = with_shape(x, y);
    let tiles = tile.count(rows, out).iter().product();
    CONVOLUTION.launch(&tile.defines(x), [tiles, 1, phases], &[x, weight, &y], parameters);
    y
}

/// The gradient of `weight: [out, in, kernel, kernel]` from a filled `x` and the output's gradient.
pub(super) fn weight_gradient(x: &CubeTensor, weight: Shape, stride: usize, dy: CubeTensor) -> CubeTensor {
    let tile = if weight[0] > Tile::WIDE.rows { Tile::SQUARE } else { Tile::WIDE };
    // A single tap waits for memory, and more blocks do not help it.
    let blocks = if weight[2] == 1 { BLOCKS } else { 4 * BLOCKS };
    weight_gradient_in(tile, blocks, x, weight, stride, dy)
}

/// With as many parts of the pixels as make about `blocks` blocks, none of them short.
fn weight_gradient_in(
    tile: Tile,
    blocks: usize,
    x: &CubeTensor,
    weight: Shape,
    stride: usize,
    dy: CubeTensor,
) -> CubeTensor {
    let dy = layout::filled(dy, x.dtype);
    let [images, height, width, channels] = x.shape().dims();
    let [_, y_height, y_width, y_channels] = dy.shape().dims();
    let [out, _, kernel, _] = weight.dims();
    let (taps, pixels) = (kernel * kernel, images * y_height * y_width);
    assert!(taps <= MAX_TAPS, "kernels are at most 7x7");

    let [across, down] = tile.count(out, taps * channels);
    let depth = 4 * load_numbers(x.dtype);
    let wanted = blocks.div_ceil(across * down).min(pixels.div_ceil(40 * depth));
    let part_pixels = pixels.div_ceil(wanted.max(1)).next_multiple_of(depth);
    let parts = pixels.div_ceil(part_pixels);

    let mut parameters = Parameters::default();
    parameters.push([images, height, width, channels]);
    parameters.push_divisor(y_height * y_width);
    parameters.push_divisor(y_width);
    parameters.push([y_channels, stride, taps, out, part_pixels]);
    for tap in &Product::forward(kernel, stride).phases[0].taps {
        parameters.push_signed(tap.offset);
    }
    parameters.push(vec![0; (MAX_TAPS - taps) * 2]);

    let sums = floats(x, [parts * out * taps * channels]);
    WEIGHT.launch(&tile.defines(x), [across, down, parts], &[x, &dy, &sums], parameters);
    layout::weight_gradient(sums, parts, weight)
}

/// A view with its axes in another order.
fn permuted(tensor: &CubeTensor, axes: [usize; 4]) -> CubeTensor {
    burn_cubecl::ops::permute(tensor.clone(), &axes)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use burn::tensor::Tensor;
    use burn_cubecl::CubeBackend;
    use cubecl::future::block_on;

    use super::*;
    use crate::DeviceName;

    /// Images, side, channels, output channels, kernel, stride: what a ResNet-18 and a ResNet-50 are made of.
    const SHAPES: [[usize; 6]; 17] = [
        [512, 96, 8, 64, 7, 2],
        [512, 24, 64, 64, 3, 1],
        [512, 24, 64, 128, 3, 2],
        [512, 12, 128, 128, 3, 1],
        [512, 12, 128, 256, 3, 2],
        [512, 6, 256, 256, 3, 1],
        [512, 6, 256, 512, 3, 2],
        [512, 3, 512, 512, 3, 1],
        [512, 1, 2048, 2048, 1, 1],
        [1024, 32, 64, 64, 3, 1],
        [1024, 16, 128, 128, 3, 1],
        [1024, 8, 256, 256, 3, 1],
        [1024, 4, 512, 512, 3, 1],
        [512, 24, 64, 256, 1, 1],
        [512, 24, 256, 64, 1, 1],
        [512, 12, 512, 128, 1, 1],
        [512, 6, 1024, 256, 1, 1],
    ];

    /// TFLOP/s of every tile on every shape, in bf16.
    #[test]
    #[ignore = "a measurement, on a GPU"]
    fn tiles() {
        let device = DeviceName::Cuda.open(&std::env::temp_dir()).unwrap();
        let noise = |shape: [usize; 4]| {
            let uniform = burn::tensor::Distribution::Uniform(-1.0, 1.0);
            let tensor = Tensor::<4>::random(shape, uniform, &device).cast(DType::BF16);
            tensor.try_into_primitive::<CubeBackend>().unwrap()
        };
        for [images, side, channels, out, kernel, stride] in SHAPES {
            let y_side = side.div_ceil(stride);
            let x = noise([images, side, side, channels]);
            let weight = noise([out, kernel, kernel, channels]);
            let dy = noise([images, y_side, y_side, out]);
            let flops = 2.0 * (images * y_side * y_side * out * kernel * kernel * channels) as f64;
            let time = |work: &dyn Fn()| {
                work();
                block_on(x.client.sync()).unwrap();
                let begin = Instant::now();
                (0..8).for_each(|_| work());
                block_on(x.client.sync()).unwrap();
                flops / (begin.elapsed().as_secs_f64() / 8.0) / 1e12
            };
            print!("{images} {side:2} {channels:4} {out:4} {kernel} {stride}: forward");
            for tile in [Tile::SQUARE, Tile::HIGH, Tile::WIDE] {
                let product = Product::forward(kernel, stride);
                let y = Shape::from([images, y_side, y_side, out]);
                print!(" {:4.0}", time(&|| drop(multiply_in(tile, &x, &weight, &product, y.clone()))));
            }
            if channels > 8 {
                let turned = noise([channels, kernel, kernel, out]);
                print!(" | data");
                for tile in [Tile::SQUARE, Tile::HIGH, Tile::WIDE] {
                    let product = Product::data_gradient(kernel, stride);
                    let dx = Shape::from([images, side, side, channels]);
                    print!(" {:4.0}", time(&|| drop(multiply_in(tile, &dy, &turned, &product, dx.clone()))));
                }
            }
            print!(" | weight");
            for (tile, blocks) in [Tile::SQUARE, Tile::WIDE]
                .into_iter()
                .flat_map(|tile| [BLOCKS, 2 * BLOCKS, 4 * BLOCKS].map(|blocks| (tile, blocks)))
            {
                let shape = Shape::from([out, channels, kernel, kernel]);
                print!(
                    " {:4.0}",
                    time(&|| drop(weight_gradient_in(tile, blocks, &x, shape.clone(), stride, dy.clone())))
                );
            }
            println!();
        }
    }
}
