// Integer dot products: up to 32 rows of activations times 32 output channels, summed in int32.
//
// Weights. w[n][k] is int8. Channels stand in panels of 16; within a panel, k goes in groups of four:
//
//     packed[n / 16][k / 4][n % 16][k % 4]          (k padded with zeros to a multiple of 64, n to 32)
//
// One row of 64 bytes, 16 channels by 4 k, is what one AVX-512 instruction multiplies, half of it what one AVX2
// instruction does, and 16 such rows (k = 64) are one AMX tile. So one layout serves all paths.
//
// Activations. q in [-127, 127] is stored as u = q + 128, because vpdpbusd (VNNI) multiplies unsigned by signed:
//
//     sum (u - 128) w = sum u w - 128 sum w
//
// The last term is known when the weights are packed: `start` = -128 sum_k w[n][k] is where each sum begins.
//
// This file is compiled once for each path; the compiler's flags decide which code is left.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __x86_64__
#include <immintrin.h>
#endif

static inline int32_t four_bytes(const uint8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return x;
}

#if defined(__AMX_INT8__)

#include <sys/syscall.h>
#include <unistd.h>

// A thread must say how large its tiles are before it uses them: here all eight are 16 rows of 64 bytes.
// Tiles given back (released) keep the next change of threads cheap.
struct Tiles {
    struct alignas(64) Config {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    Tiles() {
        static const Config config;  // static: GCC does not see that the instruction reads more than its first bytes
        _tile_loadconfig(&config);
    }
    ~Tiles() { _tile_release(); }
};

// Linux gives a process the 8 KiB of tile registers only if it asks: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA).
static inline bool allowed() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

// out[r][n] = start[n] + sum_k a[r][k] w[n][k]. Four tiles of sums (2 of rows by 2 of channels): each tile of
// activations and of weights, once loaded, is used twice. `a` and `out` must have room for rows up to a multiple of 16.
static inline void dot32(const uint8_t* a, long lda, int rows, const int8_t* w, int k, const int32_t* start,
                         int32_t* out, long ldo) {
    const int8_t* w1 = w + 16L * k;
    _tile_loadd(0, start, 0);  // a stride of 0: every row of the tile begins with the same 16 numbers
    _tile_loadd(1, start + 16, 0);
    if (rows <= 16) {
        for (int i = 0; i < k; i += 64) {
            _tile_loadd(4, a + i, lda);
            _tile_loadd(6, w + 16L * i, 64);
            _tile_loadd(7, w1 + 16L * i, 64);
            _tile_dpbusd(0, 4, 6);
            _tile_dpbusd(1, 4, 7);
        }
    } else {
        _tile_loadd(2, start, 0);
        _tile_loadd(3, start + 16, 0);
        for (int i = 0; i < k; i += 64) {
            _tile_loadd(4, a + i, lda);
            _tile_loadd(6, w + 16L * i, 64);
            _tile_dpbusd(0, 4, 6);
            _tile_loadd(7, w1 + 16L * i, 64);
            _tile_dpbusd(1, 4, 7);
            _tile_loadd(5, a + 16 * lda + i, lda);
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
        }
        _tile_stored(2, out + 16 * ldo, 4 * ldo);
        _tile_stored(3, out + 16 * ldo + 16, 4 * ldo);
    }
    _tile_stored(0, out, 4 * ldo);
    _tile_stored(1, out + 16, 4 * ldo);
}

#else

struct Tiles {
    Tiles() {}  // nothing to configure
};
static inline bool allowed() { return true; }

#if defined(__AVX512VNNI__)

#define MOST_ROWS 8
// R rows at a time: 2 R sums stay in registers, and each 64 bytes of weights are multiplied with R rows.
template <int R>
static inline void dot_rows(const uint8_t* a, long lda, const int8_t* w, int k, const int32_t* start, int32_t* out,
                            long ldo) {
    __m512i sums[R][2];
    for (int r = 0; r < R; r++)
        for (int h = 0; h < 2; h++) sums[r][h] = _mm512_loadu_si512(start + 16 * h);
    for (int i = 0; i < k; i += 4) {
        __m512i w0 = _mm512_loadu_si512(w + 16L * i), w1 = _mm512_loadu_si512(w + 16L * k + 16L * i);
        for (int r = 0; r < R; r++) {
            __m512i x = _mm512_set1_epi32(four_bytes(a + r * lda + i));
            sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], x, w0);
            sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], x, w1);
        }
    }
    for (int r = 0; r < R; r++)
        for (int h = 0; h < 2; h++) _mm512_storeu_si512(out + r * ldo + 16 * h, sums[r][h]);
}

#elif defined(__AVX2__)

#define MOST_ROWS 4
// 16 registers of 32 bytes: 4 rows by 16 channels, one panel after the other.
template <int R>
static inline void dot_rows(const uint8_t* a, long lda, const int8_t* w, int k, const int32_t* start, int32_t* out,
                            long ldo) {
    for (int panel = 0; panel < 2; panel++, w += 16L * k, start += 16, out += 16) {
        __m256i sums[R][2];
        for (int r = 0; r < R; r++)
            for (int h = 0; h < 2; h++)
#ifdef __AVXVNNI__
                sums[r][h] = _mm256_loadu_si256((const __m256i*)(start + 8 * h));
#else
                sums[r][h] = _mm256_setzero_si256();
#endif
        for (int i = 0; i < k; i += 4) {
            __m256i w0 = _mm256_loadu_si256((const __m256i*)(w + 16L * i));
            __m256i w1 = _mm256_loadu_si256((const __m256i*)(w + 16L * i + 32));
            for (int r = 0; r < R; r++) {
                __m256i x = _mm256_set1_epi32(four_bytes(a + r * lda + i));
#ifdef __AVXVNNI__
                sums[r][0] = _mm256_dpbusd_avx_epi32(sums[r][0], x, w0);
                sums[r][1] = _mm256_dpbusd_avx_epi32(sums[r][1], x, w1);
#else
                // vpmaddubsw adds two products in 16 bits and saturates: 2 * 255 * 127 would be too much. Back to
                // q = u - 128, then |q| and the sign moved to w: 2 * 127 * 127 = 32,258 fits, and the sum is exact.
                const __m256i ones = _mm256_set1_epi16(1);
                x = _mm256_xor_si256(x, _mm256_set1_epi8(-128));
                __m256i magnitude = _mm256_abs_epi8(x);
                __m256i p0 = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(w0, x));
                __m256i p1 = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(w1, x));
                sums[r][0] = _mm256_add_epi32(sums[r][0], _mm256_madd_epi16(p0, ones));
                sums[r][1] = _mm256_add_epi32(sums[r][1], _mm256_madd_epi16(p1, ones));
#endif
            }
        }
        for (int r = 0; r < R; r++)
            for (int h = 0; h < 2; h++) _mm256_storeu_si256((__m256i*)(out + r * ldo + 8 * h), sums[r][h]);
    }
}

#else

#define MOST_ROWS 1
// Any processor: plain loops.
template <int R>
static inline void dot_rows(const uint8_t* a, long, const int8_t* w, int k, const int32_t* start, int32_t* out, long) {
    for (int panel = 0; panel < 2; panel++, w += 16L * k, start += 16, out += 16) {
        int32_t sums[16];
        for (int n = 0; n < 16; n++) sums[n] = start[n];
        for (int i = 0; i < k; i += 4)
            for (int n = 0; n < 16; n++)
                for (int j = 0; j < 4; j++) sums[n] += int32_t(a[i + j]) * w[16L * i + 4 * n + j];
        std::memcpy(out, sums, sizeof sums);
    }
}

#endif

// out[r][n] = sum_k (a[r][k] - 128) w[n][k] for `rows` rows and 32 channels.
static inline void dot32(const uint8_t* a, long lda, int rows, const int8_t* w, int k, const int32_t* start,
                         int32_t* out, long ldo) {
    int r = 0;
    for (; r + MOST_ROWS <= rows; r += MOST_ROWS) dot_rows<MOST_ROWS>(a + r * lda, lda, w, k, start, out + r * ldo, ldo);
    if (MOST_ROWS > 4 && r + 4 <= rows) {
        dot_rows<4>(a + r * lda, lda, w, k, start, out + r * ldo, ldo);
        r += 4;
    }
    for (; r < rows; r++) dot_rows<1>(a + r * lda, lda, w, k, start, out + r * ldo, ldo);
}

#endif
