// Loads and products that both convolution kernels are made of.
//
// An operand's tile lies in shared memory in chunks of 16 bytes: 8 numbers of bf16 or 4 of f32. Tensor cores multiply
// bf16 as it is. Of f32 they take only the 11 leading bits (TF32), so each number is cut into two such parts, and
// three of the four products of parts are added up: that is as good as f32 (Ootomo & Yokota 2022, arXiv 2203.03341).

#if BF16
typedef unsigned short Number;
#define CHUNK 8
#else
typedef float Number;
#define CHUNK 4
#endif

typedef unsigned int Word;

__device__ __forceinline__ Word shared_address(const void *pointer) {
    return static_cast<Word>(__cvta_generic_to_shared(pointer));
}

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

// Starts to copy one chunk, or zeros where `is_inside` is false.
__device__ __forceinline__ void copy_chunk(Word to, const Number *from, bool is_inside) {
    const int bytes = is_inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes));
}

// The same of pixels, which other taps will want again.
__device__ __forceinline__ void copy_pixel_chunk(Word to, const Number *from, bool is_inside) {
    const int bytes = is_inside ? 16 : 0;
#if CACHED
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes));
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes));
#endif
}

__device__ __forceinline__ void end_of_stage() { asm volatile("cp.async.commit_group;\n" ::); }

template <int PENDING> __device__ __forceinline__ void wait_for_stages() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING));
}

__device__ __forceinline__ void load_fragments(Word fragments[4], Word address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
                 : "r"(address));
}

__device__ __forceinline__ void load_fragments_transposed(Word fragments[4], Word address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
                 : "r"(address));
}

__device__ __forceinline__ Word load_word(Word address) {
    Word word;
    asm volatile("ld.shared.b32 %0, [%1];\n" : "=r"(word) : "r"(address));
    return word;
}

#if BF16

__device__ __forceinline__ void multiply_add(float sums[4], const Word a[4], const Word b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#else

__device__ __forceinline__ void multiply_add_tf32(float sums[4], const Word a[4], const Word b[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <int COUNT> __device__ __forceinline__ void cut(Word *leading, Word *rest, const Word *numbers) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        asm volatile("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(leading[i]) : "f"(__uint_as_float(numbers[i])));
        const float remainder = __uint_as_float(numbers[i]) - __uint_as_float(leading[i]);
        asm volatile("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(rest[i]) : "f"(remainder));
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

// Two numbers of bf16, rounded to the nearest.
__device__ __forceinline__ Word packed(float low, float high) {
    Word word;
    asm volatile("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
