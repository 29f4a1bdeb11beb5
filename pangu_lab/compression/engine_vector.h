// Floating-point work between the integer products, on whole vectors: quantize, GELU, LayerNorm, powers of two.
//
// The compilers' own vector types become AVX-512, AVX2, SSE or NEON registers; no intrinsics are needed. Rows are padded
// with zeros to a multiple of 16 numbers, so no loop has a remainder.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint8_t Bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

static inline Floats load(const float* p) { return *(const Floats*)p; }
static inline void store(float* p, Floats x) { *(Floats*)p = x; }
static inline Floats all(float x) { return x - Floats{}; }
static inline Floats to_float(Ints x) { return __builtin_convertvector(x, Floats); }
// NaN compares as false, so these keep a NaN that comes first.
static inline Floats at_least(Floats x, float low) { return x < low ? all(low) : x; }
static inline Floats at_most(Floats x, float high) { return x > high ? all(high) : x; }

// One number of a vector: quarters first, for a chain through all lanes, one by one, would take longer than a row's work.
typedef float Four __attribute__((vector_size(16)));
typedef int32_t FourInts __attribute__((vector_size(16)));

template <typename Part, typename Whole, typename Combine>
static inline auto folded(Whole x, Combine combine) {
    Part all, part;
    std::memcpy(&all, &x, sizeof all);
    for (size_t i = sizeof all; i < sizeof x; i += sizeof all) {
        std::memcpy(&part, reinterpret_cast<const char*>(&x) + i, sizeof part);
        all = combine(all, part);
    }
    return all;
}

static inline float sum(Floats x) {
    const Four s = folded<Four>(x, [](Four a, Four b) { return a + b; });
    return (s[0] + s[1]) + (s[2] + s[3]);
}
static inline float maximum(Floats x) {
    const Four s = folded<Four>(x, [](Four a, Four b) { return a > b ? a : b; });
    return std::max(std::max(s[0], s[1]), std::max(s[2], s[3]));
}
static inline int32_t maximum(Ints x) {
    const FourInts s = folded<FourInts>(x, [](FourInts a, FourInts b) { return a > b ? a : b; });
    return std::max(std::max(s[0], s[1]), std::max(s[2], s[3]));
}

// Adding 1.5 * 2^23 leaves no bit for fractions: the sum is rounded, half to even, and its lowest bits are the integer.
const float MAGIC = 12582912.0f;
const int32_t MAGIC_BITS = 0x4B400000;

static inline Ints nearest_integer(Floats x) {
    // A product must be rounded before it comes here: the compiler may not fuse that product with this sum.
#if defined(__x86_64__)
    __asm__("" : "+v"(x));
#elif defined(__aarch64__)
    __asm__("" : "+w"(x));
#endif
    return (Ints)(x + MAGIC) - MAGIC_BITS;
}
static inline void store_bytes(uint8_t* p, Ints x) { *(Bytes*)p = __builtin_convertvector(x & 255, Bytes); }

// The largest |x| of n numbers, as the bits of a float: read as integers, the bits of positive floats are in the same
// order, infinity above all numbers and NaN above infinity, so that neither is overlooked.
static inline float largest(const float* x, int n) {
    Ints most = {};
    for (int i = 0; i < n; i += LANES) {
        Ints bits = (Ints)load(x + i) & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    const int32_t best = maximum(most);
    float f;
    std::memcpy(&f, &best, 4);
    return f;
}

// The scale for a largest magnitude. Below 1e-30 all is rounded to 0, with scale 1; a row that is not finite gets NaN.
static inline float scale_of(float magnitude) {
    if (!(magnitude <= 3.4028235e38f)) return NAN;
    return magnitude < 1e-30f ? 1.0f : magnitude / 127.0f;
}

// q = round(x / scale) + 128 of n numbers, bytes up to k filled with 0 + 128; returns the scale. With given > 0 that is
// the scale (static quantization) and q is clamped; otherwise it is largest |x| / 127.
static inline float quantize_row(const float* x, int n, uint8_t* q, int k, float given) {
    float magnitude = largest(x, n), scale = scale_of(magnitude);
    if (given > 0 && !std::isnan(scale)) scale = given;
    const float inverse = std::isnan(scale) ? 0.0f : 1.0f / scale;
    for (int i = 0; i < n; i += LANES) {
        Floats y = load(x + i) * inverse;
        if (given > 0) y = at_most(at_least(y, -127.0f), 127.0f);
        store_bytes(q + i, nearest_integer(y) + 128);
    }
    std::memset(q + n, 128, k - n);
    return scale;
}

// x Phi(x). Phi(x) - 1/2 is odd: x times a polynomial in u = 2 (x / 5.2)^2 - 1, fitted for the smallest error of GELU.
// Beyond 5.2 Phi is 0 or 1 to 1e-7. The error is below 2e-6 for |x| < 8 (tests/test_int8_engine.py measures it).
static inline Floats gelu(Floats x) {
    const float c[13] = {0.13594994f,   -0.067743406f, 0.050030168f,  -0.039941292f, 0.031907253f,   -0.024593459f, 0.018387225f,
                         -0.013103194f, 0.0075576683f, -0.0035058958f, 0.0028538026f, -0.0025036389f, 0.00085868483f};
    Floats inside = at_most(at_least(x, -5.2f), 5.2f);
    Floats u = inside * inside * (2.0f / (5.2f * 5.2f)) - 1.0f, p = all(c[12]);
    for (int i = 11; i >= 0; i--) p = p * u + c[i];
    return x * (p * inside + 0.5f);
}

// 2^t for t in [-126, 127] to 4e-6: the integer part goes into the exponent's bits, a polynomial does the rest.
static inline Floats power_of_two(Floats t) {
    Floats shifted = t + MAGIC, f = t - (shifted - MAGIC);
    Floats p = all(0.0095605105f);
    p = p * f + 0.055917040f;
    p = p * f + 0.24024981f;
    p = p * f + 0.69312197f;
    p = p * f + 0.99999917f;
    return (Floats)((Ints)p + ((Ints)shifted << 23));  // MAGIC's own bits fall out on the left
}

// LayerNorm of a row of d numbers, padded with zeros to n: y = (x - mean) / sqrt(variance + eps) * weight + bias.
static inline void layer_norm(const float* x, int d, int n, const float* weight, const float* bias, float eps, float* y) {
    Floats total = {}, squares = {};
    for (int i = 0; i < n; i += LANES) total += load(x + i);
    const float mean = sum(total) / d;
    for (int i = 0; i < n; i += LANES) {
        Floats centered = load(x + i) - mean;
        squares += centered * centered;
    }
    const float variance = (sum(squares) - (n - d) * mean * mean) / d;  // the padding's share taken off
    const float factor = 1.0f / std::sqrt(variance + eps);
    for (int i = 0; i < n; i += LANES) store(y + i, (load(x + i) - mean) * factor * load(weight + i) + load(bias + i));
}
