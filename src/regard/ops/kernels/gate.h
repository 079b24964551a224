// What gates as large as their map need: a sigmoid, and walks along a row.
#pragma once
#include <type_traits>

#include "map.h"

// What a gate g is multiplied with and what is added: while it fades in 1 + strength (g - 1), else strength g.
struct Strength {
    float factor, rest, fading;  // fading: 1, or 0
};
template <class Plan> Strength strength_of(const Plan &a) {
    const float factor = a.strength ? *a.strength : 1, fading = a.strength && a.fades ? 1 : 0;
    return {factor, fading > 0 ? 1 - factor : 0, fading};
}

// 2, 4, ... vectors that are computed side by side: each step of a long formula waits for the one before it, and a
// processor looks only so far ahead for something else to do.
template <class Half> struct Pack {
    Half low, high;
};
template <int N> struct Vectors {
    using Type = Pack<typename Vectors<N / 2>::Type>;
};
template <> struct Vectors<1> {
    using Type = Vector;
};

// One number, or one vector, beside a pack is the same for all of it.
template <class T> struct Parts {
    static constexpr bool PACK = false;
    static T low(T all) { return all; }
    static T high(T all) { return all; }
};
template <> struct Parts<int> {
    static constexpr bool PACK = false;
    static float low(int all) { return (float)all; }
    static float high(int all) { return (float)all; }
};
template <class Half> struct Parts<Pack<Half>> {
    static constexpr bool PACK = true;
    static Half low(const Pack<Half> &pack) { return pack.low; }
    static Half high(const Pack<Half> &pack) { return pack.high; }
};

template <class F, class... Each> inline auto apply(F f, Each... each) {
    if constexpr ((Parts<Each>::PACK || ...))
        return Pack<decltype(apply(f, Parts<Each>::low(each)...))>{apply(f, Parts<Each>::low(each)...),
                                                                   apply(f, Parts<Each>::high(each)...)};
    else return f(each...);
}

#define REGARD_EACH(SIGN)                                                                                              \
    template <class A, class B, class = std::enable_if_t<Parts<A>::PACK || Parts<B>::PACK>>                            \
    inline auto operator SIGN(A a, B b) {                                                                              \
        return Pack<decltype(Parts<A>::low(a) SIGN Parts<B>::low(b))>{Parts<A>::low(a) SIGN Parts<B>::low(b),          \
                                                                     Parts<A>::high(a) SIGN Parts<B>::high(b)};        \
    }
REGARD_EACH(+)
REGARD_EACH(-)
REGARD_EACH(*)
#undef REGARD_EACH

// The sum of the vectors.
inline Vector joined(Vector a) { return a; }
template <class Half> inline Vector joined(Pack<Half> pack) { return joined(pack.low + pack.high); }

// 1 / x to 1e-7, for normal numbers of which it is one too. NaN passes.
inline Vector reciprocal(Vector x) {
#if defined(__AVX512F__)
    Vector y = (Vector)_mm512_rcp14_ps((__m512)x);
    return y + y * (1 - x * y);
#else
    return 1 / x;
#endif
}

// `value`, or `most` where it is above; NaN passes.
inline Vector below(Vector value, float most) {
#if defined(__AVX512F__)
    return (Vector)_mm512_min_ps(_mm512_set1_ps(most), (__m512)value);  // which keeps a NaN in its second operand
#elif defined(__AVX2__)
    return (Vector)_mm256_min_ps(_mm256_set1_ps(most), (__m256)value);
#else
    return value > most ? spread(most) : value;
#endif
}

// 1 / (1 + exp(-u)), to 2e-7 of itself; 0 below -87. NaN passes.
template <class V> inline V sigmoid(V u) {
    constexpr float MAGIC = 0x1.8p23f, MOST = 87;  // a sum with MAGIC is rounded to a whole number
    const V a = apply([](Vector u) { return below(u, MOST); }, u);
    const V shifted = MAGIC - a * 1.44269504f, n = shifted - MAGIC;
    const V r = (n * -0.693359375f - a) - n * -2.12194440e-4f;  // -a = n log 2 + r
    const V q = (((r * 1.39262131e-3f + 8.36320315e-3f) * r + 4.16665561e-2f) * r + 1.66665763e-1f) * r + 0.5f;
    const V e = (q * r + 1) * r + 1;
    const V power = apply([](Vector shifted) { return (Vector)(((Places)shifted + 127) << 23); }, shifted);
    const V result = apply([](Vector x) { return reciprocal(x); }, 1 + e * power);
    return apply([](Vector u, Vector g) { return u < -MOST ? Vector{} : g; }, u, result);
}

// How a walk takes numbers up and puts them down: a few vectors, one, or the last n lanes; past the cache in whole lines.
template <int N> struct Several {
    static constexpr int n = N * W;
    using Half = std::conditional_t<N == 2, struct Whole, Several<N / 2>>;
    using V = typename Vectors<N>::Type;
    template <class T> V load(const T *from) const { return {Half{}.load(from), Half{}.load(from + n / 2)}; }
    template <class T> void store(T *to, V value) const {
        Half{}.store(to, value.low), Half{}.store(to + n / 2, value.high);
    }
    V keep(V value) const { return value; }
};

struct Whole {
    static constexpr int n = W;
    template <class T> Vector load(const T *from) const { return ::load(from); }
    template <class T> void store(T *to, Vector value) const { ::store(to, value); }
    Vector keep(Vector value) const { return value; }
};

struct Past : Whole {
    template <class T> void store(T *to, Vector value) const { ::stream(to, value); }
};

template <int N> struct SeveralPast : Several<N> {
    using Half = std::conditional_t<N == 2, Past, SeveralPast<N / 2>>;
    template <class T> void store(T *to, typename Several<N>::V value) const {
        Half{}.store(to, value.low), Half{}.store(to + N * W / 2, value.high);
    }
};

struct Some {
    int n;
    template <class T> Vector load(const T *from) const { return ::load(from, n); }
    template <class T> void store(T *to, Vector value) const { ::store(to, n, value); }
    Vector keep(Vector value) const { return LANES < n ? value : Vector{}; }
};

// work(place, how) on n numbers, N vectors at a time where there are so many.
template <int N = 1, class Work> [[gnu::flatten]] inline void each(Index n, Work work) {
    Index r = 0;
    if constexpr (N > 1)
        for (; r + N * W <= n; r += N * W) work(r, Several<N>{});
    for (; r + W <= n; r += W) work(r, Whole{});
    if (r < n) work(r, Some{(int)(n - r)});
}

// The same for a result in `to`, past the cache from its first whole line on where that is asked for.
template <int N = 1, class T, class Work> [[gnu::flatten]] inline void each_into(const T *to, bool past, Index n, Work work) {
    if (!past) return each<N>(n, work);
    Index r = (Index)(-(uintptr_t)to & (sizeof(Vector) - 1)) / (Index)sizeof(T) % W;
    if (r > n) r = n;
    if (r) work(0, Some{(int)r});
    if constexpr (N > 1)
        for (; r + N * W <= n; r += N * W) work(r, SeveralPast<N>{});
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

// The sum of term(place, how) over n numbers, N vectors at a time where there are so many.
template <int N = 2, class Term> [[gnu::flatten]] inline float total(Index n, Term term) {
    Vector even = {}, odd = {};
    Index r = 0;
    if constexpr (N > 2)
        for (; r + N * W <= n; r += N * W) even += joined(term(r, Several<N>{}));
    for (; r + 2 * W <= n; r += 2 * W) even += term(r, Whole{}), odd += term(r + W, Whole{});
    if (r + W <= n) even += term(r, Whole{}), r += W;
    if (r < n) odd += term(r, Some{(int)(n - r)});
    return sum(even + odd);
}
