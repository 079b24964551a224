// What the kernels share: vectors of floats, maps of float or bfloat16, and operands that broadcast.
//
// A map is X[n0][n1][n2][n3] in the order of memory; its last axis is dense. The innermost loops run over n3 in vectors
// as wide as the machine's. Sums are taken in float.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

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

// n <= W numbers in pieces whose size the compiler knows: copy(first, size), with 8, 4, 2 or 1 as `size()`.
template <class Copy> inline void pieces(int n, Copy copy) {
    int at = 0;
    if (W >= 8 && (n & 8)) copy(0, std::integral_constant<int, 8>{}), at = 8;
    if (n & 4) copy(at, std::integral_constant<int, 4>{}), at += 4;
    if (n & 2) copy(at, std::integral_constant<int, 2>{}), at += 2;
    if (n & 1) copy(at, std::integral_constant<int, 1>{});
}

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
    pieces(n, [&](int at, auto size) { std::memcpy((char *)&halves + 2 * at, from + at, 2 * size()); });
#endif
    return (Vector)(__builtin_convertvector(halves, Bits) << 16);
}

inline void store(float *to, int n, Vector value) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << n) - 1), (__m512)value);
#else  // AVX2 has an instruction for it, of dozens of steps where AMD made the processor
    pieces(n, [&](int at, auto size) { std::memcpy(to + at, (const char *)&value + 4 * at, 4 * size()); });
#endif
}

inline void store(Bfloat16 *to, int n, Vector value) {
    Halves halves = rounded(value);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    _mm256_mask_storeu_epi16(to, (__mmask16)((1u << n) - 1), (__m256i)halves);
#else
    pieces(n, [&](int at, auto size) { std::memcpy(to + at, (const char *)&halves + 2 * at, 2 * size()); });
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
#elif defined(__AVX2__)
    __m128 halves = _mm_add_ps(_mm256_castps256_ps128((__m256)value), _mm256_extractf128_ps((__m256)value, 1));
    halves = _mm_add_ps(halves, _mm_movehl_ps(halves, halves));
    return _mm_cvtss_f32(_mm_add_ss(halves, _mm_movehdup_ps(halves)));
#else
    return (value[0] + value[2]) + (value[1] + value[3]);
#endif
}

// Torch's maximum: a NaN is above everything, and the first of equals stays.
inline bool beats(float value, float best) { return value > best || (value != value && best == best); }

inline Vector larger(Vector best, Vector value) {
#if defined(__AVX512F__)
    __m512 v = (__m512)value;  // the instruction drops a NaN in its first operand and keeps one in its second
    return (Vector)_mm512_mask_mov_ps(_mm512_max_ps(v, (__m512)best), _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), v);
#elif defined(__AVX2__)
    __m256 v = (__m256)value;  // as above
    return (Vector)_mm256_blendv_ps(_mm256_max_ps(v, (__m256)best), v, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
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
#elif defined(__AVX2__)
    __m256 v = (__m256)value, b = (__m256)best;
    __m256 up = _mm256_and_ps(_mm256_cmp_ps(v, b, _CMP_NLE_UQ), _mm256_cmp_ps(b, b, _CMP_ORD_Q));
    best = (Vector)_mm256_blendv_ps(b, v, up);
    index = (Places)_mm256_blendv_ps((__m256)index, (__m256)place, up);
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
#elif defined(__AVX2__)
    __m256 v = (__m256)value;
    if (_mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q))) return std::numeric_limits<float>::quiet_NaN();
    __m128 best = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    best = _mm_max_ps(best, _mm_movehl_ps(best, best));
    return _mm_cvtss_f32(_mm_max_ss(best, _mm_movehdup_ps(best)));
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
#elif defined(__AVX2__)
    __m256i c = (__m256i)candidates;
    __m128i low = _mm_min_epi32(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1));
    low = _mm_min_epi32(low, _mm_shuffle_epi32(low, 0b01001110));
    return _mm_cvtsi128_si32(_mm_min_epi32(low, _mm_shuffle_epi32(low, 0b10110001)));
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
