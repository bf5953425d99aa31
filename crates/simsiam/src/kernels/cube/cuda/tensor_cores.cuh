// Loads and products that both convolution kernels are made of.
//
// An operand's tile lies in shared memory in chunks of 16 bytes: 8 numbers of bf16 or 4 of f32. Tensor cores multiply
// bf16 as it is. Of f32 they take only the 11 leading bits (TF32), so each number is cut into two such parts, and
// three of the four products of parts are added up: that is as good as f32 (Ootomo & Yokota 2022, arXiv 2203.03341).
//
// Hopper's tensor cores can multiply bf16 straight from shared memory, for four warps at once, while the warps go on (PTX
// ISA, "Asynchronous Warpgroup Level Matrix Instructions"). BY_WARPGROUP says that they do.

#if BF16
typedef unsigned short Number;
#define CHUNK 8
#else
typedef float Number;
#define CHUNK 4
#endif

#define BY_WARPGROUP (BF16 && WARPGROUPS)

#define THREADS 128

// How the sums of a block's tile are dealt to its four warps: tiles of 16 rows by 8 columns, ROW_TILES_APART rows from one of a
// warp to its next.
#if BY_WARPGROUP
// All warps make all columns, each of them 16 of every 64 rows.
#define ROW_TILES (ROWS / 64)
#define ROW_TILES_APART 64
#define COLUMN_TILES (COLUMNS / 8)
#define FIRST_ROW(warp) ((warp) * 16)
#define FIRST_COLUMN(warp) 0
// As many as keep their sums in registers.
#define RESIDENT_BLOCKS (ROWS * COLUMNS > 128 * 64 ? 3 : 4)
#else
#define WARPS_ACROSS (COLUMNS / WARP_COLUMNS)
#define ROW_TILES (WARP_ROWS / 16)
#define ROW_TILES_APART 16
#define COLUMN_TILES (WARP_COLUMNS / 8)
#define FIRST_ROW(warp) ((warp) / WARPS_ACROSS * WARP_ROWS)
#define FIRST_COLUMN(warp) ((warp) % WARPS_ACROSS * WARP_COLUMNS)
#define RESIDENT_BLOCKS 1
#endif

// A divisor that is known before the kernel starts: a quotient costs a product and a shift (Granlund & Montgomery
// 1994). For dividends below 2^31.
struct Divisor {
    int divisor;
    Word factor;
    int shift; // beyond 32, or -1 to divide by one
};

__device__ __forceinline__ int divide(int dividend, const Divisor &by) {
    return by.shift < 0 ? dividend : (int)(__umulhi((Word)dividend, by.factor) >> by.shift);
}

// Starts to copy a chunk of pixels, which other taps will want again.
__device__ __forceinline__ void copy_pixel_chunk(Word to, const Number *from, bool is_inside) {
#if CACHED
    copy_16_bytes_cached(to, from, is_inside);
#else
    copy_16_bytes(to, from, is_inside);
#endif
}

#if BF16

__device__ __forceinline__ void multiply_add(float sums[4], const Word a[4], const Word b[2]) {
    multiply_add_bf16(sums, a, b);
}

#else

template <int COUNT> __device__ __forceinline__ void cut(Word *leading, Word *rest, const Word *numbers) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        leading[i] = tf32(__uint_as_float(numbers[i]));
        rest[i] = tf32(__uint_as_float(numbers[i]) - __uint_as_float(leading[i]));
    }
}

__device__ __forceinline__ void multiply_add(float sums[4], const Word a[4], const Word b[2]) {
    Word a_leading[4], a_rest[4], b_leading[2], b_rest[2];
    cut<4>(a_leading, a_rest, a);
    cut<2>(b_leading, b_rest, b);
    multiply_add_tf32(sums, a_rest, b_leading);
    multiply_add_tf32(sums, a_leading, b_rest);
    multiply_add_tf32(sums, a_leading, b_leading);
}

#endif

// Where an operand's tile lies, as a warpgroup's instruction is told: in units of 16 bytes its place and two distances,
// and how its chunks are placed (1: each XOR bits 7 to 9 of its address, 2: XOR bits 7 and 8).
__device__ __forceinline__ Descriptor descriptor(Word address, int leading_bytes, int stride_bytes, int placing) {
    return ((address & 0x3ffff) >> 4) | (Descriptor)(leading_bytes >> 4) << 16 |
           (Descriptor)(stride_bytes >> 4) << 32 | (Descriptor)placing << 62;
}
