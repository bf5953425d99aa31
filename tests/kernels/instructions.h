// What `instructions.cuh` has, on a CPU: the threads of a block are fibers, which take turns wherever they would wait for
// each other. Layouts are those of the PTX ISA ("Warp Level Matrix Instructions" and "Asynchronous Warpgroup Level
// Matrix Instructions").
//
// A copy or a product that was started may be done at once or as late as its wait allows: is_late says which, and kernels
// must not notice.

#pragma once

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))

typedef unsigned int Word;
typedef unsigned long long Descriptor;

struct float2 {
    float x, y;
};
struct uint4 {
    Word x, y, z, w;
};
static float2 make_float2(float x, float y) { return {x, y}; }
static float __uint_as_float(Word word) {
    float number;
    memcpy(&number, &word, 4);
    return number;
}
static Word __umulhi(Word a, Word b) { return (Word)(((unsigned long long)a * b) >> 32); }
static int min(int a, int b) { return a < b ? a : b; }

struct Place {
    unsigned x, y, z;
};
static Place blockIdx, threadIdx;

const int BLOCK = 128, WARP = 32, FIBER_BYTES = 256 * 1024;

struct Barrier {
    int size, waiting = 0;
    unsigned round = 0;
};

struct Fiber {
    ucontext_t context; // as it begins
    jmp_buf rest;       // where it goes on
    bool is_begun;
    std::vector<char> stack = std::vector<char>(FIBER_BYTES);
    bool is_done = true;
    std::vector<std::vector<std::function<void()>>> stages; // the last one is not ended yet
    std::vector<std::function<void()>> products;
};

static Fiber fibers[BLOCK];
static jmp_buf turns;
static Barrier of_block{BLOCK}, of_warps[BLOCK / WARP] = {{WARP}, {WARP}, {WARP}, {WARP}};
static bool is_late;
static unsigned char *shared_memory;

static Fiber &fiber() { return fibers[threadIdx.x]; }
static int lane() { return threadIdx.x % WARP; }
static int warp() { return threadIdx.x / WARP; }

static void wait_at(Barrier &barrier) {
    const unsigned round = barrier.round;
    if (++barrier.waiting == barrier.size) {
        barrier.waiting = 0;
        barrier.round++;
    }
    while (barrier.round == round)
        if (!_setjmp(fiber().rest))
            _longjmp(turns, 1);
}

static void __syncthreads() { wait_at(of_block); }

static std::function<void()> block_work;

static void run_fiber() {
    block_work();
    fiber().is_done = true;
    _longjmp(turns, 1);
}

// Lets a thread go on until it waits. Contexts are only for the beginning: to change from one to another, a kernel is asked.
static void take_turn(Fiber &next) {
    if (_setjmp(turns))
        return;
    if (next.is_begun)
        _longjmp(next.rest, 1);
    next.is_begun = true;
    setcontext(&next.context);
}

// Lets the threads of one block do `work` to its end.
static void run_block(Place block, std::function<void()> work) {
    blockIdx = block;
    block_work = work;
    for (unsigned i = 0; i < BLOCK; i++) {
        Fiber &each = fibers[i];
        getcontext(&each.context);
        each.context.uc_stack.ss_sp = each.stack.data();
        each.context.uc_stack.ss_size = each.stack.size();
        each.is_begun = false;
        each.stages.assign(1, {});
        each.products.clear();
        each.is_done = false;
        makecontext(&each.context, run_fiber, 0);
    }
    for (bool is_any = true; is_any;) {
        is_any = false;
        for (unsigned i = 0; i < BLOCK; i++)
            if (!fibers[i].is_done) {
                threadIdx = {i, 0, 0};
                take_turn(fibers[i]);
                is_any = true;
            }
    }
}

// The first place of shared memory is not zero, and as aligned as the array is.
const Word SHARED_START = 4096;

static Word shared_address(const void *pointer) {
    if (!shared_memory)
        shared_memory = (unsigned char *)pointer;
    return SHARED_START + (Word)((unsigned char *)pointer - shared_memory);
}

static unsigned char *shared_at(Word address) { return shared_memory + (address - SHARED_START); }

static void copy_16_bytes(Word to, const void *from, bool is_inside) {
    auto copy = [=] {
        if (is_inside)
            memcpy(shared_at(to), from, 16);
        else
            memset(shared_at(to), 0, 16);
    };
    if (is_late)
        fiber().stages.back().push_back(copy);
    else
        copy();
}

static void copy_16_bytes_cached(Word to, const void *from, bool is_inside) { copy_16_bytes(to, from, is_inside); }

static void end_of_stage() { fiber().stages.push_back({}); }

template <int PENDING> void wait_for_stages() {
    auto &stages = fiber().stages;
    while ((int)stages.size() - 1 > PENDING) {
        for (auto &copy : stages.front())
            copy();
        stages.erase(stages.begin());
    }
}

// What the other lanes of a warp hand over.
static Word handed[BLOCK / WARP][WARP][6];

static void hand_over(const Word *words, int count) {
    memcpy(handed[warp()][lane()], words, count * sizeof(Word));
    wait_at(of_warps[warp()]);
}

static void all_taken() { wait_at(of_warps[warp()]); }

static void load_fragments(Word fragments[4], Word address) {
    hand_over(&address, 1);
    for (int matrix = 0; matrix < 4; matrix++)
        memcpy(&fragments[matrix], shared_at(handed[warp()][matrix * 8 + lane() / 4][0]) + lane() % 4 * 4, 4);
    all_taken();
}

static void load_fragments_transposed(Word fragments[4], Word address) {
    hand_over(&address, 1);
    for (int matrix = 0; matrix < 4; matrix++) {
        uint16_t halves[2];
        for (int half = 0; half < 2; half++) {
            const Word row = handed[warp()][matrix * 8 + lane() % 4 * 2 + half][0];
            memcpy(&halves[half], shared_at(row) + lane() / 4 * 2, 2);
        }
        fragments[matrix] = halves[0] | (Word)halves[1] << 16;
    }
    all_taken();
}

static Word load_word(Word address) {
    Word word;
    memcpy(&word, shared_at(address), 4);
    return word;
}

static float of_bf16(Word bits) { return __uint_as_float((bits & 0xffff) << 16); }

static Word to_bf16(float number) {
    Word word;
    memcpy(&word, &number, 4);
    return (word + 0x7fff + (word >> 16 & 1)) >> 16;
}

static Word packed(float low, float high) { return to_bf16(low) | to_bf16(high) << 16; }

static Word tf32(float number) {
    Word word;
    memcpy(&word, &number, 4);
    return (word + 0x1000) & ~0x1fffu;
}

static void hand_over_operands(const Word a[4], const Word b[2]) {
    const Word words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    hand_over(words, 6);
}

static void multiply_add_bf16(float sums[4], const Word a[4], const Word b[2]) {
    hand_over_operands(a, b);
    for (int i = 0; i < 4; i++) {
        const int row = lane() / 4, column = lane() % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            const int holder = k % 8 / 2, part = k / 8;
            const Word a_word = handed[warp()][row * 4 + holder][part * 2 + i / 2];
            const Word b_word = handed[warp()][column * 4 + holder][4 + part];
            sums[i] += of_bf16(k % 2 ? a_word >> 16 : a_word) * of_bf16(k % 2 ? b_word >> 16 : b_word);
        }
    }
    all_taken();
}

static void multiply_add_tf32(float sums[4], const Word a[4], const Word b[2]) {
    hand_over_operands(a, b);
    for (int i = 0; i < 4; i++) {
        const int row = lane() / 4, column = lane() % 4 * 2 + i % 2;
        for (int k = 0; k < 8; k++) {
            const Word a_word = handed[warp()][row * 4 + k % 4][k / 4 * 2 + i / 2];
            const Word b_word = handed[warp()][column * 4 + k % 4][4 + k / 4];
            sums[i] += __uint_as_float(a_word) * __uint_as_float(b_word);
        }
    }
    all_taken();
}

static void show_copies() {}
static void begin_products() {}
static void end_products() {}

static void wait_for_products() {
    for (auto &product : fiber().products)
        product();
    fiber().products.clear();
}

// Number `k` of row (or column) `index` of an operand in shared memory.
static float at_descriptor(Descriptor operand, bool is_transposed, int index, int k) {
    const Word start = (operand & 0x3fff) << 4;
    const Word leading = (operand >> 16 & 0x3fff) << 4, stride = (operand >> 32 & 0x3fff) << 4;
    const int placing = operand >> 62;
    const int chunk_bits = placing == 1 ? 3 : 2; // 128 or 64 bytes of rows
    Word address;
    if (is_transposed) {
        const int together = 8 << chunk_bits;
        address = start + index / together * leading + k / 8 * stride + k % 8 * together * 2 + index % together * 2;
    } else {
        address = start + index / 8 * stride + index % 8 * (16 << chunk_bits) + k * 2;
    }
    address ^= (address >> 7 & ((1 << chunk_bits) - 1)) << 4;
    uint16_t bits;
    memcpy(&bits, shared_at(address), 2);
    return of_bf16(bits);
}

template <int TRANSPOSED, int COLUMN_TILES>
void multiply_add_group(float (&sums)[COLUMN_TILES][4], Descriptor a, Descriptor b) {
    float(*to)[4] = sums;
    const int first_row = warp() * 16 + lane() / 4, first_column = lane() % 4 * 2;
    auto product = [=] {
        for (int j = 0; j < COLUMN_TILES; j++)
            for (int i = 0; i < 4; i++)
                for (int k = 0; k < 16; k++)
                    to[j][i] += at_descriptor(a, TRANSPOSED, first_row + i / 2 * 8, k) *
                                at_descriptor(b, TRANSPOSED, first_column + j * 8 + i % 2, k);
    };
    if (is_late)
        fiber().products.push_back(product);
    else
        product();
}
