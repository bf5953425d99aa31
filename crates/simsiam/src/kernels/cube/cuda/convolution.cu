// A convolution as a product of matrices that are never written down (implicit GEMM): every output pixel is a row,
// every output channel a column, and the sum runs over taps (places of the kernel) and input channels.
//
//     y[pixel, out] = sum over taps and channels of x[pixel + tap, channel] * weight[out, tap, channel]
//
// The same kernel computes the gradient of a convolution's input, which is a convolution of the output's gradient.
// Where the convolution strides, that gradient falls into phases: input pixels whose coordinates leave the same
// remainder see the same taps.
//
// A block of 128 threads makes a tile of ROWS pixels by COLUMNS channels. Tiles of both operands stream through STAGES
// buffers in shared memory, 64 bytes of every row at a time, whose chunks are placed so that neither copies nor
// reads meet in a bank.
//
// Defined by whoever compiles this: BF16, CACHED, WARPGROUPS, ROWS, COLUMNS, WARP_ROWS, WARP_COLUMNS, STAGES.

struct Phase {
    int y_offset, x_offset; // of the output pixels in `y`
    int first_tap, taps;
};

struct Tap {
    int dy, dx; // from the output pixel, times stride, to the input's
    int place;  // in the weight
};

struct Parameters {
    int images;
    int height, width, channels; // of the input
    Divisor grid_pixels, grid_width; // output pixels of one phase
    int stride;                  // from one to the next in the input
    int y_height, y_width, y_step, output_channels;
    int weight_taps;
    Phase phases[4];
    Tap taps[49];
};

#define ROW_BYTES 64
#define ROW_CHUNKS 4
#define DEPTH (ROW_CHUNKS * CHUNK)
#define ROW_COPIES (ROWS * ROW_CHUNKS / THREADS)
#define COLUMN_COPIES (COLUMNS * ROW_CHUNKS / THREADS)
#define STAGE_BYTES ((ROWS + COLUMNS) * ROW_BYTES)
#define OUTPUT_PITCH (COLUMNS + CHUNK)

__device__ __forceinline__ int chunk_place(int row, int chunk) {
    return row * ROW_BYTES + ((chunk ^ ((row >> 1) & 3)) * 16);
}

// Of rows whose chunks are placed so: eight of them, then the next eight.
__device__ __forceinline__ Descriptor rows_descriptor(Word address) {
    return descriptor(address, 16, 8 * ROW_BYTES, 2);
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_BLOCKS)
    convolution(const Number *__restrict__ x, const Number *__restrict__ weight, Number *__restrict__ y,
                const __grid_constant__ Parameters parameters) {
    __shared__ __align__(1024) unsigned char buffers[STAGES * STAGE_BYTES];
    const Parameters &p = parameters;
    const Phase &phase = p.phases[blockIdx.z];
    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    // All tiles along one axis, columns first: along the others a grid has no room for those of a large batch.
    const int tiles_across = (p.output_channels + COLUMNS - 1) / COLUMNS;
    const int first_row = blockIdx.x / tiles_across * ROWS, first_column = blockIdx.x % tiles_across * COLUMNS;
    const int rows = p.images * p.grid_pixels.divisor;

    // What this thread copies: one chunk of every 32nd row of both tiles. Rows outside get an image that is nowhere.
    const int chunk = thread & (ROW_CHUNKS - 1), copied_row = thread / ROW_CHUNKS;
    int row_y[ROW_COPIES], row_x[ROW_COPIES];
    const Number *row_pixels[ROW_COPIES];
#pragma unroll
    for (int i = 0; i < ROW_COPIES; i++) {
        const int row = first_row + copied_row + i * (THREADS / ROW_CHUNKS);
        const int image = divide(row, p.grid_pixels), pixel = row - image * p.grid_pixels.divisor;
        const int pixel_y = divide(pixel, p.grid_width);
        row_y[i] = row < rows ? pixel_y * p.stride : -(1 << 20);
        row_x[i] = (pixel - pixel_y * p.grid_width.divisor) * p.stride;
        row_pixels[i] = x + ((size_t)image * p.height * p.width + pixel_y * p.stride * p.width + row_x[i]) * p.channels;
    }
    const int weight_pitch = p.weight_taps * p.channels, copied_column = first_column + copied_row;

    // Where in taps and channels this thread's chunk of the next stage lies.
    const int depth = phase.taps * p.channels;
    const int stages = (depth + DEPTH - 1) / DEPTH;
    int channel = chunk * CHUNK, tap = 0;
    while (channel >= p.channels) {
        channel -= p.channels;
        tap++;
    }
    const Word shared = shared_address(buffers);

    auto copy_stage = [&](int buffer) {
        const bool is_inside = tap < phase.taps;
        const Tap &at = p.taps[phase.first_tap + (is_inside ? tap : 0)];
        const Word tile = shared + buffer * STAGE_BYTES;
        const int tap_place = (at.dy * p.width + at.dx) * p.channels + channel;
        const int weight_place = copied_column * weight_pitch + at.place * p.channels + channel;
#pragma unroll
        for (int i = 0; i < ROW_COPIES; i++) {
            const int pixel_y = row_y[i] + at.dy, pixel_x = row_x[i] + at.dx;
            const bool is_pixel = is_inside && (unsigned)pixel_y < (unsigned)p.height &&
                                  (unsigned)pixel_x < (unsigned)p.width;
            const Number *from = is_pixel ? row_pixels[i] + tap_place : x;
            copy_pixel_chunk(tile + chunk_place(copied_row + i * (THREADS / ROW_CHUNKS), chunk), from, is_pixel);
        }
#pragma unroll
        for (int i = 0; i < COLUMN_COPIES; i++) {
            const int below = i * (THREADS / ROW_CHUNKS);
            const bool is_weight = is_inside && copied_column + below < p.output_channels;
            const Number *from = is_weight ? weight + weight_place + below * weight_pitch : weight;
            copy_16_bytes(tile + chunk_place(ROWS + copied_row + below, chunk), from, is_weight);
        }
        channel += DEPTH;
        while (channel >= p.channels) {
            channel -= p.channels;
            tap++;
        }
    };

    float sums[ROW_TILES][COLUMN_TILES][4] = {};
    const int warp_row = FIRST_ROW(warp), warp_column = FIRST_COLUMN(warp);
#if BY_WARPGROUP
    auto multiply_stage = [&](Word tile) {
        begin_products();
#pragma unroll
        for (int step = 0; step < 2; step++)
#pragma unroll
            for (int i = 0; i < ROW_TILES; i++)
                multiply_add_group<0>(sums[i], rows_descriptor(tile + i * ROW_TILES_APART * ROW_BYTES + step * 32),
                                      rows_descriptor(tile + ROWS * ROW_BYTES + step * 32));
        end_products();
    };
#else
    auto multiply_stage = [&](Word tile) {
#pragma unroll
        for (int step = 0; step < 2; step++) {
            Word a[ROW_TILES][4], b[COLUMN_TILES][2];
#pragma unroll
            for (int i = 0; i < ROW_TILES; i++) {
                const int row = warp_row + i * ROW_TILES_APART + (lane & 15);
                load_fragments(a[i], tile + chunk_place(row, step * 2 + (lane >> 4)));
            }
#pragma unroll
            for (int j = 0; j < COLUMN_TILES; j += 2) {
                const int row = ROWS + warp_column + j * 8 + (lane & 7) + ((lane >> 4) << 3);
                load_fragments(b[j], tile + chunk_place(row, step * 2 + ((lane >> 3) & 1)));
            }
#pragma unroll
            for (int i = 0; i < ROW_TILES; i++)
#pragma unroll
                for (int j = 0; j < COLUMN_TILES; j++)
                    multiply_add(sums[i][j], a[i], b[j]);
        }
    };
#endif

#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) {
        if (stage < stages)
            copy_stage(stage);
        end_of_stage();
    }
    for (int stage = 0; stage < stages; stage++) {
        wait_for_stages<STAGES - 2>();
        show_copies();
        wait_for_products();
        __syncthreads();
        const Word tile = shared + stage % STAGES * STAGE_BYTES;
        if (BY_WARPGROUP)
            multiply_stage(tile);
        if (stage + STAGES - 1 < stages)
            copy_stage((stage + STAGES - 1) % STAGES);
        end_of_stage();
        if (!BY_WARPGROUP)
            multiply_stage(tile);
    }

    // Through shared memory, a part of the rows at a time, so that whole lines are written.
    wait_for_stages<0>();
    wait_for_products();
    __syncthreads();
    Number *output = reinterpret_cast<Number *>(buffers);
#if BF16
    const int passes = 1;
#else
    const int passes = 2;
#endif
    for (int pass = 0; pass < passes; pass++) {
        const int pass_rows = ROWS / passes, pass_first = pass * pass_rows;
#pragma unroll
        for (int i = 0; i < ROW_TILES; i++)
#pragma unroll
            for (int j = 0; j < COLUMN_TILES; j++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int row = warp_row + i * ROW_TILES_APART + half * 8 + (lane >> 2) - pass_first;
                    const int column = warp_column + j * 8 + (lane & 3) * 2;
                    if (row < 0 || row >= pass_rows)
                        continue;
                    Number *place = output + row * OUTPUT_PITCH + column;
#if BF16
                    *reinterpret_cast<Word *>(place) = packed(sums[i][j][half * 2], sums[i][j][half * 2 + 1]);
#else
                    *reinterpret_cast<float2 *>(place) = make_float2(sums[i][j][half * 2], sums[i][j][half * 2 + 1]);
#endif
                }
        __syncthreads();
        for (int index = thread; index < pass_rows * (COLUMNS / CHUNK); index += THREADS) {
            const int tile_row = index / (COLUMNS / CHUNK), tile_column = index % (COLUMNS / CHUNK) * CHUNK;
            const int row = first_row + pass_first + tile_row, column = first_column + tile_column;
            const int image = divide(row, p.grid_pixels), pixel = row - image * p.grid_pixels.divisor;
            const int grid_y = divide(pixel, p.grid_width), grid_x = pixel - grid_y * p.grid_width.divisor;
            const int pixel_y = grid_y * p.y_step + phase.y_offset;
            const int pixel_x = grid_x * p.y_step + phase.x_offset;
            if (row >= rows || column >= p.output_channels || pixel_y >= p.y_height || pixel_x >= p.y_width)
                continue;
            const size_t y_pixel = ((size_t)image * p.y_height + pixel_y) * p.y_width + pixel_x;
            Number *to = y + y_pixel * p.output_channels + column;
            const Number *from = output + tile_row * OUTPUT_PITCH + tile_column;
            if (p.output_channels % CHUNK == 0)
                *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(from);
            else
                for (int i = 0; i < CHUNK && column + i < p.output_channels; i++)
                    to[i] = from[i];
        }
        __syncthreads();
    }
}
