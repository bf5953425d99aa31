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
// Defined by whoever compiles this: BF16, CACHED, ROWS, COLUMNS, WARP_ROWS, WARP_COLUMNS, STAGES.

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

#define THREADS 128
#define ROW_BYTES 64
#define ROW_CHUNKS 4
#define DEPTH (ROW_CHUNKS * CHUNK)
#define WARPS_ACROSS (COLUMNS / WARP_COLUMNS)
#define ROW_TILES (WARP_ROWS / 16)
#define COLUMN_TILES (WARP_COLUMNS / 8)
#define ROW_COPIES (ROWS * ROW_CHUNKS / THREADS)
#define COLUMN_COPIES (COLUMNS * ROW_CHUNKS / THREADS)
#define STAGE_BYTES ((ROWS + COLUMNS) * ROW_BYTES)
#define OUTPUT_PITCH (COLUMNS + CHUNK)

__device__ __forceinline__ int chunk_place(int row, int chunk) {
    return row * ROW_BYTES + ((chunk ^ ((row >> 1) & 3)) * 16);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    convolution(const Number *__restrict__ x, const Number *__restrict__ weight, Number *__restrict__ y,
                const __grid_constant__ Parameters parameters) {
    __shared__ __align__(128) unsigned char buffers[STAGES * STAGE_BYTES];
    const Parameters &p = parameters;
    const Phase &phase = p.phases[blockIdx.z];
    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    // All tiles along one axis, columns first: along the others a grid has no room for those of a large batch.
    const int tiles_across = (p.output_channels + COLUMNS - 1) / COLUMNS;
    const int first_row = blockIdx.x / tiles_across * ROWS, first_column = blockIdx.x % tiles_across * COLUMNS;
    const int rows = p.images * p.grid_pixels.divisor;

    // What this thread copies: one chunk of every 32nd row of both tiles. Rows outside get an image that is nowhere.
    const int chunk = thread & (ROW_CHUNKS - 1), copied_row = thread / ROW_CHUNKS;
    int row_y[ROW_COPIES], row_x[ROW_COPIES], row_image[ROW_COPIES];
#pragma unroll
    for (int i = 0; i < ROW_COPIES; i++) {
        const int row = first_row + copied_row + i * (THREADS / ROW_CHUNKS);
        const int image = divide(row, p.grid_pixels), pixel = row - image * p.grid_pixels.divisor;
        const int pixel_y = divide(pixel, p.grid_width);
        row_y[i] = row < rows ? pixel_y * p.stride : -(1 << 20);
        row_x[i] = (pixel - pixel_y * p.grid_width.divisor) * p.stride;
        row_image[i] = image * p.height;
    }
    const int weight_pitch = p.weight_taps * p.channels;
    const Number *weight_rows[COLUMN_COPIES];
    bool has_column[COLUMN_COPIES];
#pragma unroll
    for (int i = 0; i < COLUMN_COPIES; i++) {
        const int column = first_column + copied_row + i * (THREADS / ROW_CHUNKS);
        has_column[i] = column < p.output_channels;
        weight_rows[i] = weight + (has_column[i] ? (size_t)column * weight_pitch : 0);
    }

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
#pragma unroll
        for (int i = 0; i < ROW_COPIES; i++) {
            const int pixel_y = row_y[i] + at.dy, pixel_x = row_x[i] + at.dx;
            const bool is_pixel = is_inside && (unsigned)pixel_y < (unsigned)p.height &&
                                  (unsigned)pixel_x < (unsigned)p.width;
            const size_t pixel = (size_t)(row_image[i] + pixel_y) * p.width + pixel_x;
            const Number *from = is_pixel ? x + pixel * p.channels + channel : x;
            copy_pixel_chunk(tile + chunk_place(copied_row + i * (THREADS / ROW_CHUNKS), chunk), from, is_pixel);
        }
#pragma unroll
        for (int i = 0; i < COLUMN_COPIES; i++) {
            const bool is_weight = is_inside && has_column[i];
            const Number *from = is_weight ? weight_rows[i] + (size_t)at.place * p.channels + channel : weight;
            const int row = ROWS + copied_row + i * (THREADS / ROW_CHUNKS);
            copy_chunk(tile + chunk_place(row, chunk), from, is_weight);
        }
        channel += DEPTH;
        while (channel >= p.channels) {
            channel -= p.channels;
            tap++;
        }
    };

    float sums[ROW_TILES][COLUMN_TILES][4] = {};
    const int warp_row = warp / WARPS_ACROSS * WARP_ROWS, warp_column = warp % WARPS_ACROSS * WARP_COLUMNS;

#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) {
        if (stage < stages)
            copy_stage(stage);
        end_of_stage();
    }
    for (int stage = 0; stage < stages; stage++) {
        wait_for_stages<STAGES - 2>();
        __syncthreads();
        if (stage + STAGES - 1 < stages)
            copy_stage((stage + STAGES - 1) % STAGES);
        end_of_stage();
        const Word tile = shared + stage % STAGES * STAGE_BYTES;
#pragma unroll
        for (int step = 0; step < 2; step++) {
            Word a[ROW_TILES][4], b[COLUMN_TILES][2];
#pragma unroll
            for (int i = 0; i < ROW_TILES; i++) {
                const int row = warp_row + i * 16 + (lane & 15);
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
    }

    // Through shared memory, a part of the rows at a time, so that whole lines are written.
    wait_for_stages<0>();
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
                    const int row = warp_row + i * 16 + half * 8 + (lane >> 2) - pass_first;
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
