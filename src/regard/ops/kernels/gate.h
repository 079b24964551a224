// What gates as large as their map need: a sigmoid, and walks along a row.
#pragma once
#include "map.h"

// 1 / x to 1e-7, for normal numbers of which it is one too. NaN passes.
inline Vector reciprocal(Vector x) {
#if defined(__AVX512F__)
    Vector y = (Vector)_mm512_rcp14_ps((__m512)x);
    return y + y * (1 - x * y);
#else
    return 1 / x;
#endif
}

// `value` between -most and most; NaN passes.
inline Vector clamp(Vector value, float most) {
#if defined(__AVX512F__)
    __m512 v = (__m512)value;  // the instructions keep a NaN in their second operand
    return (Vector)_mm512_min_ps(_mm512_set1_ps(most), _mm512_max_ps(_mm512_set1_ps(-most), v));
#elif defined(__AVX2__)
    __m256 v = (__m256)value;
    return (Vector)_mm256_min_ps(_mm256_set1_ps(most), _mm256_max_ps(_mm256_set1_ps(-most), v));
#else
    return value < -most ? spread(-most) : value > most ? spread(most) : value;
#endif
}

// 1 / (1 + exp(-u)), to 2e-7 of itself; 0 below -87. NaN passes.
inline Vector sigmoid(Vector u) {
    constexpr float MAGIC = 0x1.8p23f, MOST = 87;  // a sum with MAGIC is rounded to a whole number
    Vector a = clamp(u, MOST), shifted = MAGIC - a * 1.44269504f, n = shifted - MAGIC;
    Vector r = -a - n * 0.693359375f - n * -2.12194440e-4f;  // -a = n log 2 + r
    Vector q = (((r * 1.39262131e-3f + 8.36320315e-3f) * r + 4.16665561e-2f) * r + 1.66665763e-1f) * r + 0.5f;
    Vector e = (q * r + 1) * r + 1;
    Vector power = (Vector)(((Places)shifted + 127) << 23);
    return u < -MOST ? Vector{} : reciprocal(1 + e * power);
}

// How a walk takes numbers up and puts them down: whole vectors, whole lines past the cache, or the last n lanes.
struct Whole {
    static constexpr int n = W;
    template <class T> Vector load(const T *from) const { return ::load(from); }
    template <class T> void store(T *to, Vector value) const { ::store(to, value); }
    Vector keep(Vector value) const { return value; }
};

struct Past : Whole {
    template <class T> void store(T *to, Vector value) const { ::stream(to, value); }
};

struct Some {
    int n;
    template <class T> Vector load(const T *from) const { return ::load(from, n); }
    template <class T> void store(T *to, Vector value) const { ::store(to, n, value); }
    Vector keep(Vector value) const { return LANES < n ? value : Vector{}; }
};

// work(place, how) on n numbers, a vector at a time.
template <class Work> inline void each(Index n, Work work) {
    Index r = 0;
    for (; r + W <= n; r += W) work(r, Whole{});
    if (r < n) work(r, Some{(int)(n - r)});
}

// The same for a result in `to`, past the cache from its first whole line on where that is asked for.
template <class T, class Work> inline void each_into(const T *to, bool past, Index n, Work work) {
    if (!past) return each(n, work);
    Index r = (Index)(-(uintptr_t)to & (sizeof(Vector) - 1)) / (Index)sizeof(T) % W;
    if (r > n) r = n;
    if (r) work(0, Some{(int)r});
    for (; r + W <= n; r += W) work(r, Past{});
    if (r < n) work(r, Some{(int)(n - r)});
}

// The sum of each G neighbouring lanes of N vectors, in order; of G / N of them each where N is less.
template <int N, int G = W> inline Vector fold(const Vector *each) {
    if constexpr (N == 1) return *each;
    else {
        constexpr int GROUP = 2 * G / N, HALF = GROUP / 2;
        const Places first = LANES / HALF * GROUP + LANES % HALF, second = first + HALF;
        const Vector a = fold<N / 2, G>(each), b = fold<N / 2, G>(each + N / 2);
        return shuffle(a, b, first) + shuffle(a, b, second);
    }
}

// The pixels of an image, channels last, in tiles of one size, each whole on one thread: work(number, from, to).
struct Tiles {
    static constexpr Index TILE = 32768;  // numbers that stay in the second cache
    Index pixels, height, count;

    Tiles(Index pixels, Index channels)
        : pixels(pixels), height(TILE / channels > 1 ? TILE / channels : 1), count((pixels + height - 1) / height) {}
    template <class Work> void visit(int threads, Work work) const {
        share(count, threads, [&](Index tile) {
            const Index from = tile * height, to = from + height < pixels ? from + height : pixels;
            work(tile, from, to);
        });
    }
};

// The images of a batch, or where they are too few the tiles of one image after the other: work(image, threads inside).
template <class Work> inline void share_images(Index batch, int threads, Work work) {
    const bool whole = batch >= threads;
    share(batch, whole ? threads : 1, [&](Index image) { work(image, whole ? 1 : threads); });
}

// The sum of term(place, how) over n numbers.
template <class Term> inline float total(Index n, Term term) {
    Vector even = {}, odd = {};
    Index r = 0;
    for (; r + 2 * W <= n; r += 2 * W) even += term(r, Whole{}), odd += term(r + W, Whole{});
    if (r + W <= n) even += term(r, Whole{}), r += W;
    if (r < n) odd += term(r, Some{(int)(n - r)});
    return sum(even + odd);
}
