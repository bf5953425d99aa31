// Convolutions and their gradients by the kernels for GPUs, on a CPU, against sums that are written down as they are read.
//
// Compiled once for each kernel, tile and precision: KERNEL names the file, IS_WEIGHT says which of the two it is.

#include <cstdio>
#include <cstdlib>

#include "instructions.h"

#include "../../crates/simsiam/src/kernels/cube/cuda/tensor_cores.cuh"

#include KERNEL

struct Shape {
    int images, height, width, channels, output_channels, kernel, stride;
    int y_height() const { return (height + stride - 1) / stride; }
    int y_width() const { return (width + stride - 1) / stride; }
};

// Channels fill whole loads, as they do on a GPU. One tile and several, one tap and many, rows that end within a tile.
const Shape SHAPES[] = {
    {1, 1, 1, 8, 8, 1, 1},   {2, 9, 7, 8, 24, 7, 2},  {1, 7, 5, 24, 72, 3, 2}, {2, 4, 4, 72, 136, 1, 2},
    {5, 1, 1, 136, 64, 1, 1}, {1, 13, 2, 8, 16, 7, 1}, {3, 8, 8, 16, 64, 3, 1},
};

static uint32_t drawn = 1;

static float draw() {
    drawn = drawn * 1664525 + 1013904223;
    return (float)(drawn >> 8) / (1 << 24) - 0.5f;
}

#if BF16
static Number number(float value) { return (Number)to_bf16(value); }
static float value(Number number) { return of_bf16(number); }
const double TOLERANCE = 1.0 / 128; // outputs are rounded to 8 bits
#else
static Number number(float value) { return value; }
static float value(Number number) { return number; }
const double TOLERANCE = 1e-5;
#endif

static std::vector<Number> draws(size_t count) {
    std::vector<Number> numbers(count);
    for (Number &each : numbers)
        each = number(draw());
    return numbers;
}

static Divisor divisor(int by) {
    int bits = 0;
    while ((1LL << bits) < by)
        bits++;
    if (bits == 0)
        return {by, 0, -1};
    return {by, (Word)(((1ULL << (31 + bits)) + by - 1) / by), bits - 1};
}

// What was computed beside what should have been: the largest distance, relative to the largest number.
struct Check {
    double distance = 0, largest = 0;
    void see(double found, double expected) {
        // Not a number is as far away as can be.
        const double apart = std::fabs(found - expected);
        distance = apart <= distance ? distance : (apart == apart ? apart : INFINITY);
        largest = std::fmax(largest, std::fabs(expected));
    }
    bool holds() const { return distance <= TOLERANCE * largest; }
};

#if IS_WEIGHT

static Check weight_gradient(const Shape &shape, int parts) {
    const int taps = shape.kernel * shape.kernel, pixels = shape.images * shape.y_height() * shape.y_width();
    const auto x = draws((size_t)shape.images * shape.height * shape.width * shape.channels);
    const auto dy = draws((size_t)pixels * shape.output_channels);
    const int depth = 4 * CHUNK, part_pixels = ((pixels + parts - 1) / parts + depth - 1) / depth * depth;
    parts = (pixels + part_pixels - 1) / part_pixels;

    Parameters p = {shape.images, shape.height, shape.width, shape.channels, divisor(shape.y_height() * shape.y_width()),
                    divisor(shape.y_width()), shape.output_channels, shape.stride, taps, shape.output_channels, part_pixels, {}};
    for (int tap = 0; tap < taps; tap++)
        p.offsets[tap] = {tap / shape.kernel - shape.kernel / 2, tap % shape.kernel - shape.kernel / 2};
    const size_t weights = (size_t)shape.output_channels * taps * shape.channels;
    std::vector<float> sums(parts * weights, NAN);
    const unsigned across = (taps * shape.channels + COLUMNS - 1) / COLUMNS, down = (shape.output_channels + ROWS - 1) / ROWS;
    for (unsigned z = 0; z < (unsigned)parts; z++)
        for (unsigned y = 0; y < down; y++)
            for (unsigned column = 0; column < across; column++)
                run_block({column, y, z}, [&] { convolution_weight(x.data(), dy.data(), sums.data(), p); });

    Check check;
    for (size_t place = 0; place < weights; place++) {
        const int channel = place % shape.channels, tap = place / shape.channels % taps;
        const int out = place / shape.channels / taps;
        double expected = 0, found = 0;
        for (int part = 0; part < parts; part++)
            found += sums[part * weights + place];
        for (int pixel = 0; pixel < pixels; pixel++) {
            const int image = pixel / (shape.y_height() * shape.y_width());
            const int row = pixel / shape.y_width() % shape.y_height() * shape.stride + p.offsets[tap].dy;
            const int column = pixel % shape.y_width() * shape.stride + p.offsets[tap].dx;
            if (row < 0 || row >= shape.height || column < 0 || column >= shape.width)
                continue;
            const size_t x_pixel = ((size_t)image * shape.height + row) * shape.width + column;
            expected += (double)value(x[x_pixel * shape.channels + channel]) *
                        value(dy[(size_t)pixel * shape.output_channels + out]);
        }
        check.see(found, expected);
    }
    return check;
}

static bool check(const Shape &shape) {
    bool is_right = true;
    for (int parts : {1, 3})
        is_right &= weight_gradient(shape, parts).holds();
    return is_right;
}

#else

// A grid of blocks over all phases of a product.
static std::vector<Number> run(const std::vector<Number> &x, const std::vector<Number> &weight, const Parameters &p,
                               int phases) {
    std::vector<Number> y((size_t)p.images * p.y_height * p.y_width * p.output_channels, number(NAN));
    const unsigned rows = p.images * p.grid_pixels.divisor;
    const unsigned tiles = (rows + ROWS - 1) / ROWS * ((p.output_channels + COLUMNS - 1) / COLUMNS);
    for (unsigned z = 0; z < (unsigned)phases; z++)
        for (unsigned tile = 0; tile < tiles; tile++)
            run_block({tile, 0, z}, [&] { convolution(x.data(), weight.data(), y.data(), p); });
    return y;
}

static Check forward(const Shape &shape) {
    const int taps = shape.kernel * shape.kernel, padding = shape.kernel / 2;
    const auto x = draws((size_t)shape.images * shape.height * shape.width * shape.channels);
    const auto weight = draws((size_t)shape.output_channels * taps * shape.channels);
    Parameters p = {shape.images, shape.height, shape.width, shape.channels, divisor(shape.y_height() * shape.y_width()),
                    divisor(shape.y_width()), shape.stride, shape.y_height(), shape.y_width(), 1, shape.output_channels, taps,
                    {{0, 0, 0, taps}}, {}};
    for (int tap = 0; tap < taps; tap++)
        p.taps[tap] = {tap / shape.kernel - padding, tap % shape.kernel - padding, tap};
    const auto y = run(x, weight, p, 1);

    Check check;
    for (size_t place = 0; place < y.size(); place++) {
        const int out = place % shape.output_channels, column = place / shape.output_channels % shape.y_width();
        const int row = place / shape.output_channels / shape.y_width() % shape.y_height();
        const int image = place / shape.output_channels / shape.y_width() / shape.y_height();
        double expected = 0;
        for (int tap = 0; tap < taps; tap++) {
            const int x_row = row * shape.stride + p.taps[tap].dy, x_column = column * shape.stride + p.taps[tap].dx;
            if (x_row < 0 || x_row >= shape.height || x_column < 0 || x_column >= shape.width)
                continue;
            for (int channel = 0; channel < shape.channels; channel++)
                expected += (double)value(x[(((size_t)image * shape.height + x_row) * shape.width + x_column) * shape.channels + channel]) *
                            value(weight[((size_t)out * taps + tap) * shape.channels + channel]);
        }
        check.see(value(y[place]), expected);
    }
    return check;
}

// The gradient of an input with `channels` of the shape's output channels, and the other way round: `dy` has the shape's
// channels.
static Check data_gradient(const Shape &shape) {
    const int taps = shape.kernel * shape.kernel, padding = shape.kernel / 2, stride = shape.stride;
    const auto dy = draws((size_t)shape.images * shape.y_height() * shape.y_width() * shape.channels);
    const auto weight = draws((size_t)shape.output_channels * taps * shape.channels);
    const int grid_height = (shape.height + stride - 1) / stride, grid_width = (shape.width + stride - 1) / stride;
    Parameters p = {shape.images, shape.y_height(), shape.y_width(), shape.channels, divisor(grid_height * grid_width),
                    divisor(grid_width), 1, shape.height, shape.width, stride, shape.output_channels, taps, {}, {}};
    int count = 0;
    for (int phase = 0; phase < stride * stride; phase++) {
        const int remainder[2] = {phase / stride, phase % stride}, first = count;
        for (int place = 0; place < taps; place++) {
            const int down = remainder[0] + padding - place / shape.kernel, right = remainder[1] + padding - place % shape.kernel;
            if (down % stride == 0 && right % stride == 0)
                p.taps[count++] = {down / stride, right / stride, place};
        }
        p.phases[phase] = {remainder[0], remainder[1], first, count - first};
    }
    const auto dx = run(dy, weight, p, stride * stride);

    Check check;
    for (size_t place = 0; place < dx.size(); place++) {
        const int channel = place % shape.output_channels, column = place / shape.output_channels % shape.width;
        const int row = place / shape.output_channels / shape.width % shape.height;
        const int image = place / shape.output_channels / shape.width / shape.height;
        double expected = 0;
        for (int tap = 0; tap < taps; tap++) {
            // Output pixels that saw this one through the tap.
            const int y_row = row + padding - tap / shape.kernel, y_column = column + padding - tap % shape.kernel;
            if (y_row % stride || y_column % stride || y_row < 0 || y_column < 0 || y_row / stride >= shape.y_height() ||
                y_column / stride >= shape.y_width())
                continue;
            const size_t pixel = ((size_t)image * shape.y_height() + y_row / stride) * shape.y_width() + y_column / stride;
            for (int out = 0; out < shape.channels; out++)
                expected += (double)value(dy[pixel * shape.channels + out]) *
                            value(weight[((size_t)channel * taps + tap) * shape.channels + out]);
        }
        check.see(value(dx[place]), expected);
    }
    return check;
}

static bool check(const Shape &shape) { return forward(shape).holds() & data_gradient(shape).holds(); }

#endif

int main() {
    int wrong = 0;
    for (const Shape &shape : SHAPES)
        for (bool late : {false, true}) {
            is_late = late;
            if (check(shape))
                continue;
            wrong++;
            printf("wrong: %d images, %d by %d, %d channels to %d, kernel %d, stride %d, copies and products %s\n", shape.images,
                   shape.height, shape.width, shape.channels, shape.output_channels, shape.kernel, shape.stride,
                   late ? "as late as they may be" : "at once");
        }
    return wrong ? EXIT_FAILURE : EXIT_SUCCESS;
}
