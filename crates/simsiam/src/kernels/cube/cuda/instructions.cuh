// The instructions that C++ has no words for, one a function. `tests/kernels/` has them for a CPU.
//
// Whoever compiles this may define WARPGROUPS as 1, for GPUs that have such instructions.

typedef unsigned int Word;
typedef unsigned long long Descriptor;

#if WARPGROUPS && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#undef WARPGROUPS
#define WARPGROUPS 0
#endif

__device__ __forceinline__ Word shared_address(const void *pointer) {
    return static_cast<Word>(__cvta_generic_to_shared(pointer));
}

// Starts to copy 16 bytes, or to write as many zeros where `is_inside` is false.
__device__ __forceinline__ void copy_16_bytes(Word to, const void *from, bool is_inside) {
    const int bytes = is_inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes));
}

// The same through the first-level cache.
__device__ __forceinline__ void copy_16_bytes_cached(Word to, const void *from, bool is_inside) {
    const int bytes = is_inside ? 16 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes));
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

__device__ __forceinline__ void multiply_add_bf16(float sums[4], const Word a[4], const Word b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void multiply_add_tf32(float sums[4], const Word a[4], const Word b[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The nearest number of 11 bits.
__device__ __forceinline__ Word tf32(float number) {
    Word word;
    asm volatile("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(word) : "f"(number));
    return word;
}

// Two numbers of bf16, rounded to the nearest.
__device__ __forceinline__ Word packed(float low, float high) {
    Word word;
    asm volatile("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

#if WARPGROUPS

// Lets tensor cores see what was copied.
__device__ __forceinline__ void show_copies() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }

__device__ __forceinline__ void end_products() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }

__device__ __forceinline__ void wait_for_products() { asm volatile("wgmma.wait_group.sync.aligned 0;\n" ::: "memory"); }

#define FOUR(j) "+f"(sums[j][0]), "+f"(sums[j][1]), "+f"(sums[j][2]), "+f"(sums[j][3])

// Starts 64 rows by 64 columns, 16 products for each sum. Sums lie as those of `multiply_add_bf16`, 16 rows a warp.
template <int TRANSPOSED>
__device__ __forceinline__ void multiply_add_group(float (&sums)[8][4], Descriptor a, Descriptor b) {
    asm volatile("{.reg .pred adds; setp.eq.u32 adds, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "%32, %33, adds, 1, 1, %34, %34;}\n"
                 : FOUR(0), FOUR(1), FOUR(2), FOUR(3), FOUR(4), FOUR(5), FOUR(6), FOUR(7)
                 : "l"(a), "l"(b), "n"(TRANSPOSED));
}

// The same of 128 columns.
template <int TRANSPOSED>
__device__ __forceinline__ void multiply_add_group(float (&sums)[16][4], Descriptor a, Descriptor b) {
    asm volatile("{.reg .pred adds; setp.eq.u32 adds, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
                 "%64, %65, adds, 1, 1, %66, %66;}\n"
                 : FOUR(0), FOUR(1), FOUR(2), FOUR(3), FOUR(4), FOUR(5), FOUR(6), FOUR(7), FOUR(8), FOUR(9), FOUR(10),
                   FOUR(11), FOUR(12), FOUR(13), FOUR(14), FOUR(15)
                 : "l"(a), "l"(b), "n"(TRANSPOSED));
}

#else

// Nothing goes on by itself.
__device__ __forceinline__ void show_copies() {}
__device__ __forceinline__ void wait_for_products() {}

#endif
