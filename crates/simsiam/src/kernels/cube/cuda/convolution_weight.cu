// The gradient of a convolution's weight as a product of matrices that are never written down: every output channel is
// a row, every pair of tap and input channel a column, and the sum runs over output pixels.
//
//     gradient[out, tap, channel] = sum over pixels of dy[pixel, out] * x[pixel + tap, channel]
//
// The pixels are shared out among gridDim.z blocks for each tile. Each writes its own sums, `[part, out, tap, channel]`,
// which another kernel adds up in a fixed order.
//
// Tiles lie in shared memory as in global memory, a pixel's numbers side by side, and are transposed on their way to
// the tensor cores. Defined by whoever compiles this: BF16, CACHED, WARPGROUPS, ROWS, COLUMNS, WARP_ROWS, WARP_COLUMNS,
// STAGES.

struct Tap {
    int dy, dx; // from the output pixel, times stride, to the input's
};

struct Parameters {
    int images;
    int height, width, channels;          // of the input
    Divisor y_pixels, y_width;            // of the output's gradient
    int y_channels;                       // as it lies in memory
    int stride;
    int taps;
    int output_channels;                  // of the weight
    int part_pixels;
    Tap offsets[49];
};

#define DEPTH (CHUNK * 4)
#define A_CHUNKS (ROWS / CHUNK)
#define B_CHUNKS (COLUMNS / CHUNK)
#define A_COPIES (DEPTH * A_CHUNKS / THREADS)
#define B_COPIES (DEPTH * B_CHUNKS / THREADS)
#define A_BYTES (DEPTH * A_CHUNKS * 16)
#define STAGE_BYTES (A_BYTES + DEPTH * B_CHUNKS * 16)

// Of bf16, 128 bytes of every pixel lie together.
#define BLOCK_BYTES (DEPTH * 128)

template <int CHUNKS> __device__ __forceinline__ int chunk_place(int pixel, int chunk) {
#if BF16
    return (chunk >> 3) * BLOCK_BYTES + pixel * 128 + (((chunk & 7) ^ (pixel & 7)) * 16);
#else
    return pixel * CHUNKS * 16 + ((chunk ^ ((pixel & 3) << 1)) * 16);
#endif
}

// The fragments of rows `first` to `first + 15` of an operand, at eight bytes' worth of pixels each.
template <int CHUNKS> __device__ __forceinline__ void load_rows(Word fragments[4], Word tile, int step, int first, int lane) {
#if BF16
    const int pixel = step * 16 + (lane & 7) + ((lane >> 4) << 3);
    load_fragments_transposed(fragments, tile + chunk_place<CHUNKS>(pixel, first / CHUNK + ((lane >> 3) & 1)));
#else
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int pixel = step * 8 + (lane & 3) + (i >> 1) * 4, row = first + (lane >> 2) + (i & 1) * 8;
        fragments[i] = load_word(tile + chunk_place<CHUNKS>(pixel, row / CHUNK) + row % CHUNK * 4);
    }
#endif
}

// The same of columns `first` to `first + 15`: two fragments for the first eight, two for the others.
template <int CHUNKS> __device__ __forceinline__ void load_columns(Word fragments[4], Word tile, int step, int first, int lane) {
#if BF16
    const int pixel = step * 16 + (lane & 7) + (((lane >> 3) & 1) << 3);
    load_fragments_transposed(fragments, tile + chunk_place<CHUNKS>(pixel, first / CHUNK + (lane >> 4)));
#else
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int pixel = step * 8 + (lane & 3) + (i & 1) * 4, column = first + (lane >> 2) + (i >> 1) * 8;
        fragments[i] = load_word(tile + chunk_place<CHUNKS>(pixel, column / CHUNK) + column % CHUNK * 4);
    }
#endif
}

// Of 128 bytes of eight pixels, which are followed by those of the next eight; the next 128 bytes of a pixel lie a block
// further.
__device__ __forceinline__ Descriptor pixels_descriptor(Word address) {
    return descriptor(address, BLOCK_BYTES, 8 * 128, 1);
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_BLOCKS)
    convolution_weight(const Number *__restrict__ x, const Number *__restrict__ dy, float *__restrict__ sums_of_parts,
                       const __grid_constant__ Parameters parameters) {
    __shared__ __align__(1024) unsigned char buffers[STAGES * STAGE_BYTES];
    const Parameters &p = parameters;
    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    const int first_row = blockIdx.y * ROWS, first_column = blockIdx.x * COLUMNS;
    const int columns = p.taps * p.channels;
    const int pixels = p.images * p.y_pixels.divisor;
    const int first_pixel = blockIdx.z * p.part_pixels;
    const int end_pixel = min(first_pixel + p.part_pixels, pixels);

    // What this thread copies: one chunk of output channels, one of a tap's input channels, of some pixels.
    const int a_chunk = thread % A_CHUNKS, a_pixel = thread / A_CHUNKS;
    const int b_chunk = thread % B_CHUNKS, b_pixel = thread / B_CHUNKS;
    const int a_channel = first_row + a_chunk * CHUNK;
    const bool has_a = a_channel < p.y_channels;
    const int column = first_column + b_chunk * CHUNK;
    const bool has_b = column < columns;
    const int tap = has_b ? column / p.channels : 0, b_channel = has_b ? column - tap * p.channels : 0;
    const int dy_of_tap = p.offsets[tap].dy, dx_of_tap = p.offsets[tap].dx;
    const Word shared = shared_address(buffers);

    auto copy_stage = [&](int buffer, int stage) {
        const Word tile = shared + buffer * STAGE_BYTES;
        const int stage_pixel = first_pixel + stage * DEPTH;
#pragma unroll
        for (int i = 0; i < A_COPIES; i++) {
            const int place = a_pixel + i * (THREADS / A_CHUNKS), pixel = stage_pixel + place;
            const bool is_inside = has_a && pixel < end_pixel;
            const Number *from = is_inside ? dy + (size_t)pixel * p.y_channels + a_channel : dy;
            copy_16_bytes(tile + chunk_place<A_CHUNKS>(place, a_chunk), from, is_inside);
        }
#pragma unroll
        for (int i = 0; i < B_COPIES; i++) {
            const int place = b_pixel + i * (THREADS / B_CHUNKS), pixel = stage_pixel + place;
            const int image = divide(pixel, p.y_pixels), rest = pixel - image * p.y_pixels.divisor;
            const int row = divide(rest, p.y_width);
            const int pixel_y = row * p.stride + dy_of_tap;
            const int pixel_x = (rest - row * p.y_width.divisor) * p.stride + dx_of_tap;
            const bool is_inside = has_b && pixel < end_pixel && (unsigned)pixel_y < (unsigned)p.height &&
                                   (unsigned)pixel_x < (unsigned)p.width;
            const size_t x_pixel = ((size_t)image * p.height + pixel_y) * p.width + pixel_x;
            const Number *from = is_inside ? x + x_pixel * p.channels + b_channel : x;
            copy_pixel_chunk(tile + A_BYTES + chunk_place<B_CHUNKS>(place, b_chunk), from, is_inside);
        }
    };

    float sums[ROW_TILES][COLUMN_TILES][4] = {};
    const int warp_row = FIRST_ROW(warp), warp_column = FIRST_COLUMN(warp);
#if BY_WARPGROUP
    auto multiply_stage = [&](Word a_tile, Word b_tile) {
        begin_products();
#pragma unroll
        for (int step = 0; step < 2; step++)
#pragma unroll
            for (int i = 0; i < ROW_TILES; i++)
                multiply_add_group<1>(sums[i], pixels_descriptor(a_tile + i * BLOCK_BYTES + step * 16 * 128),
                                      pixels_descriptor(b_tile + step * 16 * 128));
        end_products();
    };
#else
    auto multiply_stage = [&](Word a_tile, Word b_tile) {
#pragma unroll
        for (int step = 0; step < 2; step++) {
            Word a[ROW_TILES][4], b[COLUMN_TILES][2];
#pragma unroll
            for (int i = 0; i < ROW_TILES; i++)
                load_rows<A_CHUNKS>(a[i], a_tile, step, warp_row + i * ROW_TILES_APART, lane);
#pragma unroll
            for (int j = 0; j < COLUMN_TILES; j += 2)
                load_columns<B_CHUNKS>(b[j], b_tile, step, warp_column + j * 8, lane);
#pragma unroll
            for (int i = 0; i < ROW_TILES; i++)
#pragma unroll
                for (int j = 0; j < COLUMN_TILES; j++)
                    multiply_add(sums[i][j], a[i], b[j]);
        }
    };
#endif
    const int stages = first_pixel < end_pixel ? (end_pixel - first_pixel + DEPTH - 1) / DEPTH : 0;

#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) {
        if (stage < stages)
            copy_stage(stage, stage);
        end_of_stage();
    }
    for (int stage = 0; stage < stages; stage++) {
        wait_for_stages<STAGES - 2>();
        show_copies();
        wait_for_products();
        __syncthreads();
        const Word a_tile = shared + stage % STAGES * STAGE_BYTES, b_tile = a_tile + A_BYTES;
        if (BY_WARPGROUP)
            multiply_stage(a_tile, b_tile);
        if (stage + STAGES - 1 < stages)
            copy_stage((stage + STAGES - 1) % STAGES, stage + STAGES - 1);
        end_of_stage();
        if (!BY_WARPGROUP)
            multiply_stage(a_tile, b_tile);
    }
    wait_for_products();

    float *part = sums_of_parts + (size_t)blockIdx.z * p.output_channels * columns;
#pragma unroll
    for (int i = 0; i < ROW_TILES; i++)
#pragma unroll
        for (int j = 0; j < COLUMN_TILES; j++)
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int row = first_row + warp_row + i * ROW_TILES_APART + (k >> 1) * 8 + (lane >> 2);
                const int column = first_column + warp_column + j * 8 + (lane & 3) * 2 + (k & 1);
                if (row < p.output_channels && column < columns)
                    part[(size_t)row * columns + column] = sums[i][j][k];
            }
}
