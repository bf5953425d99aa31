// Copies many vectors to their places in one: gradients are many, and a launch for each would take longer than the copy.
//
// Part by part, `to[offset..] = part`; of a part that is mixed, which holds two halves, the first times a weight plus
// the second. Defined by whoever compiles this: nothing.

#define PARTS 32

struct Part {
    unsigned offset; // of more than 2^31 numbers, a network of the largest sizes has some
    int length, is_mixed;
};

struct Parameters {
    float first_weight;
    Part parts[PARTS];
};

#define EACH(m)                                                                                                     \
    m(0) m(1) m(2) m(3) m(4) m(5) m(6) m(7) m(8) m(9) m(10) m(11) m(12) m(13) m(14) m(15) m(16) m(17) m(18) m(19)  \
        m(20) m(21) m(22) m(23) m(24) m(25) m(26) m(27) m(28) m(29) m(30) m(31)

#define ARGUMENT(i) const float *__restrict__ part##i,
#define CHOICE(i)                                                                                                   \
    case i:                                                                                                         \
        from = part##i;                                                                                             \
        break;

extern "C" __global__ void gather(EACH(ARGUMENT) float *__restrict__ to,
                                  const __grid_constant__ Parameters parameters) {
    const float *from;
    switch (blockIdx.y) {
        EACH(CHOICE)
    default:
        return;
    }
    const Part part = parameters.parts[blockIdx.y];
    to += part.offset;
    const int first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
    if (part.is_mixed) {
        for (int place = first; place < part.length; place += step)
            to[place] = from[place] * parameters.first_weight + from[part.length + place];
    } else if ((part.offset | part.length) % 4 == 0 && reinterpret_cast<size_t>(from) % 16 == 0) {
        for (int place = first; place < part.length / 4; place += step)
            reinterpret_cast<float4 *>(to)[place] = reinterpret_cast<const float4 *>(from)[place];
    } else {
        for (int place = first; place < part.length; place += step)
            to[place] = from[place];
    }
}
