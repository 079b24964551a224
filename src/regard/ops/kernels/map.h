// What the kernels share: vectors of floats, maps of float or bfloat16, and operands that broadcast.
//
// A map is X[n0][n1][n2][n3] in the order of memory; its last axis is dense. The innermost loops run over n3 in vectors
// as wide as the machine's. Sums are taken in float.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

using Index = int64_t;
#if defined(__AVX512F__)
constexpr int W = 16;  // lanes
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;  // the generic level: what SSE2 and NEON have, without a line for either
#endif

typedef float Vector __attribute__((vector_size(4 * W)));
typedef int32_t Places __attribute__((vector_size(4 * W)));
typedef uint32_t Bits __attribute__((vector_size(4 * W)));
typedef uint16_t Halves __attribute__((vector_size(2 * W)));

struct Bfloat16 {
    uint16_t bits;
};

// Lets Python ask for the size of a struct that it fills in, to compare it with its own when it loads the library.
#define SHARED(Struct) \
    extern "C" { __attribute__((visibility("default"))) int32_t regard_sizeof_##Struct = sizeof(Struct); }

// A small tensor beside a map: stride 0 along the axes in which it has one number. stride[3] is 0 or 1.
struct Operand {
    const float *data;
    Index stride[4];
};

// A map itself; stride[3] is 1.
struct Map {
    void *data;
    Index stride[4];
};

inline Vector spread(float value) { return value - Vector{}; }

inline Vector load(const float *from) {
    Vector value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline Vector load(const Bfloat16 *from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return (Vector)(__builtin_convertvector(halves, Bits) << 16);
}

inline void store(float *to, Vector value) { std::memcpy(to, &value, sizeof value); }

inline Halves rounded(Vector value) {  // to the nearest, ties to even; NaN stays NaN
    Bits bits = (Bits)value;
    Bits up = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Bits nan = Bits{} + 0x7fc0;
    return __builtin_convertvector((Bits)(value != value ? (Vector)nan : (Vector)up), Halves);
}

inline void store(Bfloat16 *to, Vector value) {
    Halves halves = rounded(value);
    std::memcpy(to, &halves, sizeof halves);
}

#if defined(__AVX512F__)
const Places LANES = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(__AVX2__)
const Places LANES = {0, 1, 2, 3, 4, 5, 6, 7};
#else
const Places LANES = {0, 1, 2, 3};
#endif

// result[i] = places[i] < W ? first[places[i]] : second[places[i] - W], by places that the compiler knows
inline Vector shuffle(Vector first, Vector second, Places places) {
#if defined(__clang__)
    Vector result;
    for (int i = 0; i < W; i++) result[i] = places[i] < W ? first[places[i]] : second[places[i] - W];
    return result;
#else
    return (Vector)__builtin_shuffle(first, second, places);
#endif
}
inline Vector shuffle(Vector only, Places places) { return shuffle(only, only, places); }

// The last n <= W numbers of a row; the other lanes come as 0.
inline Vector load(const float *from, int n) {
#if defined(__AVX512F__)
    return (Vector)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), from);
#elif defined(__AVX2__)
    return (Vector)_mm256_maskload_ps(from, (__m256i)(LANES < n));
#else
    Vector value = {};
    std::memcpy(&value, from, n * sizeof *from);
    return value;
#endif
}

inline Vector load(const Bfloat16 *from, int n) {
    Halves halves = {};
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    halves = (Halves)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), from);
#else
    std::memcpy(&halves, from, n * sizeof *from);
#endif
    return (Vector)(__builtin_convertvector(halves, Bits) << 16);
}

inline void store(float *to, int n, Vector value) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << n) - 1), (__m512)value);
#elif defined(__AVX2__)
    _mm256_maskstore_ps(to, (__m256i)(LANES < n), (__m256)value);
#else
    std::memcpy(to, &value, n * sizeof *to);
#endif
}

inline void store(Bfloat16 *to, int n, Vector value) {
    Halves halves = rounded(value);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    _mm256_mask_storeu_epi16(to, (__mmask16)((1u << n) - 1), (__m256i)halves);
#else
    std::memcpy(to, &halves, n * sizeof *to);
#endif
}

// Past the cache: for results that are too large to be found there again. `to` is aligned.
inline void stream(float *to, Vector value) {
#if defined(__AVX512F__)
    _mm512_stream_ps(to, (__m512)value);
#elif defined(__AVX2__)
    _mm256_stream_ps(to, (__m256)value);
#else
    store(to, value);
#endif
}

inline void stream(Bfloat16 *to, Vector value) { store(to, value); }

inline void finish_streams() {
#if defined(__AVX512F__) || defined(__AVX2__)
    _mm_sfence();
#endif
}

inline float sum(Vector value) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)value);
#elif !defined(__AVX2__)
    return (value[0] + value[2]) + (value[1] + value[3]);
#else
    return ((value[0] + value[4]) + (value[2] + value[6])) + ((value[1] + value[5]) + (value[3] + value[7]));
#endif
}

// Torch's maximum: a NaN is above everything, and the first of equals stays.
inline bool beats(float value, float best) { return value > best || (value != value && best == best); }

inline Vector larger(Vector best, Vector value) {
#if defined(__AVX512F__)
    __m512 v = (__m512)value;  // the instruction drops a NaN in its first operand and keeps one in its second
    return (Vector)_mm512_mask_mov_ps(_mm512_max_ps(v, (__m512)best), _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), v);
#else
    return ((value > best) | (value != value)) ? value : best;
#endif
}

inline void larger(Vector &best, Places &index, Vector value, Places place) {
#if defined(__AVX512F__)
    __m512 v = (__m512)value, b = (__m512)best;
    __mmask16 up = _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(b, b, _CMP_ORD_Q), v, b, _CMP_NLE_UQ);
    best = (Vector)_mm512_mask_mov_ps(b, up, v);
    index = (Places)_mm512_mask_mov_epi32((__m512i)index, up, (__m512i)place);
#else
    Places up = (value > best) | ((value != value) & (best == best));
    best = up ? value : best;
    index = up ? place : index;
#endif
}

inline float max(Vector value) {
#if defined(__AVX512F__)
    __m512 v = (__m512)value;
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return nan ? std::numeric_limits<float>::quiet_NaN() : _mm512_reduce_max_ps(v);
#else
    float best[W];
    std::memcpy(best, &value, sizeof value);
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++) best[i] = beats(best[i + half], best[i]) ? best[i + half] : best[i];
    return best[0];
#endif
}

inline int32_t first(Places index, Vector value, float best) {  // the least index among the lanes that hold the best
    Places held = best == best ? value == best : value != value;
    Places candidates = held ? index : Places{} + INT32_MAX;
#if defined(__AVX512F__)
    return _mm512_reduce_min_epi32((__m512i)candidates);
#else
    int32_t least[W];
    std::memcpy(least, &candidates, sizeof candidates);
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++) least[i] = least[i + half] < least[i] ? least[i + half] : least[i];
    return least[0];
#endif
}

constexpr float LEAST = -std::numeric_limits<float>::infinity();

// A plan is made once for each combination of shapes; it holds the numbers of its pointers, counted from 1 (0: none).
template <class... Pointers> inline void resolve(void *const *pointers, Pointers &...each) {
    ((each = each ? (Pointers)pointers[(uintptr_t)each - 1] : nullptr), ...);
}

constexpr Index LITTLE = 16384;  // steps of work for which no thread is worth waking

// Runs work(0) .. work(items - 1) on the threads that torch brought, each item whole on one thread.
template <class Work>
inline void share(Index items, [[maybe_unused]] int threads, Work work) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1 && items > 1)
    for (Index item = 0; item < items; item++) {
        work(item);
        finish_streams();  // once: it waits for memory
    }
}
