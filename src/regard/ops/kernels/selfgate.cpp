// selfgate: every number of a map weighed by a sigmoid of its distance from its channel's mean.
//
// u = curve d^2 + slope d + shift with d = (x - mean) / deviation;  y = x (rest + strength sigmoid(u)), where rest is
// 1 - strength while the gate fades in, else 0; what is added to dx because the mean and the deviation move with x is a
// line in d. As d counts in deviations, and the mean is corrected by what is left of it, neither large values nor large
// offsets harm. Traffic: reads x once and writes y; backward reads x and dy once and writes dx, as long as a channel
// (channels last: an image) stays in the caches. Every sum is taken in an order that does not depend on the threads.
#include <vector>

#include "gate.h"

struct SelfGate {
    int32_t bfloat16, threads, last, shuffle, stream, energetic, fades, unused;
    float energy, epsilon;
    Index batch, channels, pixels, period;  // the parameters repeat after `period` channels
    const void *x, *dy;
    void *y;                                // the result, or the gradient of x
    const float *slope, *level, *bias, *strength;  // each may be null
    float *stats;  // [2][batch][channels]: mean, sum of squared deviations
    float *sums;   // [4][batch][channels]: the gradients of slope, level, bias, strength
};
SHARED(SelfGate)

namespace {

constexpr int ROWS = 4;  // at a time, channels first
constexpr int WIDE = 4;  // vectors at a time
constexpr int PAIR = 2;  // ... where much is known of each
constexpr int FEW = 8;   // pixels at a time, channels last
constexpr Index SHORT = 512;  // channels below which memory is fastest in its own order, a pixel after the other

// What is known of one channel of one image.
struct Channel {
    float mean, inverse, curve, slope, shift;  // inverse: 1 / deviation
    float bent, tilt;                          // of what the gate adds to dx, a line in d
    Strength strength;
    float level, count, freedom;               // of the pixels

    Channel(const SelfGate &a, Index image, Index channel) {
        const Index at = image * a.channels + channel, k = channel % a.period;
        const float deviations = a.stats[a.batch * a.channels + at];
        mean = a.stats[at];
        count = (float)a.pixels, freedom = a.pixels > 1 ? count - 1 : 1;
        const float variance = deviations / count + a.epsilon;
        inverse = 1 / std::sqrt(variance);
        level = a.level ? a.level[k] : 0;
        curve = a.energetic && inverse > 0 ? variance / (4 * (deviations / freedom + a.energy)) : 0;
        slope = a.slope ? a.slope[k] : 0;
        shift = level * mean + (a.bias ? a.bias[k] : 0) + (a.energetic ? 0.5f : 0);
        strength = strength_of(a);
        bent = 2 * curve * inverse * strength.factor, tilt = slope * inverse * strength.factor;
    }
};

// The gates of as many numbers as a vector, or a few, have. G: of what differs from channel to channel.
template <class G> struct Gate {
    G mean, inverse, curve, slope, shift, bent, tilt;
    Strength strength;

    template <class V> V distance(V x) const { return (x - mean) * inverse; }
    template <class V> V sigmoid(V d) const { return ::sigmoid((curve * d + slope) * d + shift); }
    template <class V> V factor(V g) const { return g * strength.factor + strength.rest; }
};

constexpr int KNOWN = 7;  // numbers of a channel

Gate<Vector> gate_of(const Channel &c) {
    return {spread(c.mean), spread(c.inverse), spread(c.curve), spread(c.slope), spread(c.shift),
            spread(c.bent), spread(c.tilt),    c.strength};
}
template <class Lanes> auto gate_of(const float *known, Index channels, Lanes lanes, Strength strength) {
    auto of = [=](int k) { return lanes.load(known + k * channels); };
    return Gate<decltype(of(0))>{of(0), of(1), of(2), of(3), of(4), of(5), of(6), strength};
}

// What the gradients of a gate are made of: h = dy x sigmoid', moved: of the strength, and the gradient as if the
// mean stood still.
template <class V> struct Slope {
    V d, h, moved, still;

    template <class G> Slope(const Gate<G> &gate, V x, V dy) : d(gate.distance(x)) {
        const V g = gate.sigmoid(d), given = dy * x;
        moved = given * g - given * gate.strength.fading, h = (given - given * g) * g;
        still = dy * gate.factor(g) + h * (gate.bent * d + gate.tilt);
    }
};
template <class G, class V> Slope(const Gate<G> &, V, V) -> Slope<V>;

template <class V> struct Sums {
    V h = {}, hd = {}, hdd = {}, moved = {};

    template <class More> void add(const Slope<More> &s) {
        const More by = s.h * s.d;
        h = h + as(s.h), hd = hd + as(by), hdd = hdd + as(by * s.d), moved = moved + as(s.moved);
    }
    template <class More> static V as(More more) {  // the vectors of a pack may go to one sum
        if constexpr (std::is_same_v<V, More>) return more;
        else return joined(more);
    }
};

// Sums over the pixels of a channel: to the gradients of its parameters, and to the line that is added to dx.
struct Line {
    float constant, factor;

    Line(const SelfGate &a, Index image, Index channel, float h, float hd, float hdd, float moved) {
        const Channel c(a, image, channel);
        const Index at = image * a.channels + channel, step = a.batch * a.channels;
        for (float *sum : {&h, &hd, &hdd}) *sum *= c.strength.factor;
        const float found[4] = {hd, h * c.mean, h, moved};
        for (int k = 0; k < 4; k++) a.sums[k * step + at] = found[k];
        constant = (h * (c.level - c.slope * c.inverse) - 2 * hd * c.curve * c.inverse) / c.count;
        factor = -(8 * c.curve * c.curve * hdd / c.freedom + c.slope * hd / c.count) * c.inverse;
    }
};

// Where a channel of the map goes in the result: the two halves may take turns.
inline Index place(const SelfGate &a, Index channel) {
    const Index half = a.channels / 2;
    return a.shuffle ? channel % half * 2 + channel / half : channel;
}

// --- channels first: a channel is a row ------------------------------------------------------------------------------

// Mean and squared deviations of a row. The first mean is as exact as a sum of large numbers, what is left of it as one
// of small numbers.
template <class T> void measure_row(const T *x, Index pixels, float &mean, float &deviations) {
    const float count = (float)pixels;
    const float first = total<WIDE>(pixels, [=](Index r, auto lanes) { return lanes.load(x + r); }) / count;
    Vector left = {}, squares = {};
    each<WIDE>(pixels, [&](Index r, auto lanes) {
        const auto d = lanes.keep(lanes.load(x + r) - first);
        left += joined(d), squares += joined(d * d);
    });
    const float rest = sum(left) / count, found = sum(squares) - rest * rest * count;
    mean = first + rest, deviations = found < 0 ? 0 : found;
}

// A few rows at a time: what one waits for, the others bridge.
template <class T> void gate_rows(const SelfGate &a, Index from, Index to) {
    const Index pixels = a.pixels;
    const T *x = (const T *)a.x + from * pixels;
    float *mean = a.stats + from, *deviations = mean + a.batch * a.channels;
    const bool past = a.stream;
    for (Index row = 0; row < to - from; row++) measure_row(x + row * pixels, pixels, mean[row], deviations[row]);
    for (Index row = from; row < to; row++, x += pixels) {
        const Index image = row / a.channels, channel = row % a.channels;
        T *y = (T *)a.y + (image * a.channels + place(a, channel)) * pixels;
        const Channel known(a, image, channel);
        const Gate<Vector> gate = gate_of(known);
        const bool one = known.curve == 0 && known.slope == 0;  // for every pixel
        const Vector factor = gate.factor(gate.sigmoid(Vector{}));
        const T *next = x + ROWS * pixels;  // memory works while the gates are computed
        if (one)
            each_into(y, past, pixels, [=](Index r, auto lanes) {
                __builtin_prefetch(next + r);
                lanes.store(y + r, factor * lanes.load(x + r));
            });
        else
            each_into<WIDE>(y, past, pixels, [=](Index r, auto lanes) {
                for (int k = 0; k < lanes.n; k += W) __builtin_prefetch(next + r + k);
                const auto value = lanes.load(x + r);
                lanes.store(y + r, value * gate.factor(gate.sigmoid(gate.distance(value))));
            });
    }
}

template <class T> void differentiate_row(const SelfGate &a, Index image, Index channel) {
    thread_local std::vector<float> still;
    still.resize(a.pixels);
    const Index at = image * a.channels + channel;
    const T *x = (const T *)a.x + at * a.pixels;
    const T *dy = (const T *)a.dy + (image * a.channels + place(a, channel)) * a.pixels;
    T *dx = (T *)a.y + at * a.pixels;
    const Gate<Vector> gate = gate_of(Channel(a, image, channel));
    Sums<Vector> sums;
    float *keep = still.data();
    each<WIDE>(a.pixels, [&](Index r, auto lanes) {
        const Slope slope(gate, lanes.load(x + r), lanes.load(dy + r));
        sums.add(slope);
        lanes.store(keep + r, slope.still);
    });
    const Line line(a, image, channel, sum(sums.h), sum(sums.hd), sum(sums.hdd), sum(sums.moved));
    each_into(dx, a.stream, a.pixels, [&](Index r, auto lanes) {
        lanes.store(dx + r, lanes.load(keep + r) + line.constant + line.factor * gate.distance(lanes.load(x + r)));
    });
}

template <class T> void differentiate_rows(const SelfGate &a, Index from, Index to) {
    for (Index row = from; row < to; row++) differentiate_row<T>(a, row / a.channels, row % a.channels);
}

// --- channels last: an image is rows of pixels, each with a number of every channel ----------------------------------

// The two halves of a row taking turns, and back.
template <class T> void interleave(T *to, const float *from, Index half) {
    const Places low = LANES / 2 + (LANES & 1) * W, high = low + W / 2;
    each(half, [&](Index r, auto lanes) {
        const Vector first = lanes.load(from + r), second = lanes.load(from + half + r);
        const int n = 2 * lanes.n;
        store(to + 2 * r, n < W ? n : W, shuffle(first, second, low));
        if (n > W) store(to + 2 * r + W, n - W, shuffle(first, second, high));
    });
}
template <class T> void separate(float *to, const T *from, Index half) {
    const Places even = LANES * 2, odd = even + 1;
    each(half, [&](Index r, auto lanes) {
        const int n = 2 * lanes.n;
        const Vector low = load(from + 2 * r, n < W ? n : W), high = n > W ? load(from + 2 * r + W, n - W) : Vector{};
        lanes.store(to + r, shuffle(low, high, even));
        lanes.store(to + half + r, shuffle(low, high, odd));
    });
}

// Mean and squared deviations of every channel, tile by tile and then joined: each mean is corrected by what is left of
// it, and what stands between two of them is small.
template <class T> void measure_image(const SelfGate &a, Index image, const Tiles &tiles, int threads) {
    const Index channels = a.channels;
    const int most = channels < SHORT ? 1 : FEW;
    const T *x = (const T *)a.x + image * a.pixels * channels;
    float *mean = a.stats + image * channels, *deviations = mean + a.batch * channels;
    std::vector<float> partial(tiles.count * 3 * channels);
    tiles.visit(threads, [&](Index tile, Index from, Index to) {
        float *m = &partial[tile * 3 * channels], *v = m + channels, *left = v + channels;
        const float count = (float)(to - from);
        for (Index p = from; p < to; p += most) {
            const int few = to - p < most ? (int)(to - p) : most;
            each(channels, [&](Index r, auto lanes) {
                Vector total = lanes.load(m + r);
                for (int k = 0; k < few; k++) total += lanes.load(x + (p + k) * channels + r);
                lanes.store(m + r, total);
            });
        }
        each(channels, [&](Index r, auto lanes) { lanes.store(m + r, lanes.load(m + r) / count); });
        for (Index p = from; p < to; p += most) {
            const int few = to - p < most ? (int)(to - p) : most;
            each(channels, [&](Index r, auto lanes) {
                Vector squares = lanes.load(v + r), rest = lanes.load(left + r), centre = lanes.load(m + r);
                for (int k = 0; k < few; k++) {
                    Vector d = lanes.load(x + (p + k) * channels + r) - centre;
                    squares += d * d, rest += d;
                }
                lanes.store(v + r, squares), lanes.store(left + r, rest);
            });
        }
        each(channels, [&](Index r, auto lanes) {
            const Vector rest = lanes.load(left + r) / count, found = lanes.load(v + r) - rest * rest * count;
            lanes.store(left + r, rest), lanes.store(v + r, found < 0 ? Vector{} : found);
        });
    });
    each(channels, [&](Index r, auto lanes) {
        const Vector first = lanes.load(&partial[r]);
        Vector centre = {}, squares = {};  // centre: beyond the first
        for (Index tile = 0, before = 0; tile < tiles.count; tile++, before += tiles.height) {
            const float count = (float)(tiles.pixels - before < tiles.height ? tiles.pixels - before : tiles.height);
            const float share = count / (count + (float)before);
            const float *m = &partial[tile * 3 * channels + r];
            const Vector delta = lanes.load(m) - first + lanes.load(m + 2 * channels) - centre;
            centre += delta * share;
            squares += lanes.load(m + channels) + delta * delta * (share * (float)before);
        }
        lanes.store(mean + r, first + centre), lanes.store(deviations + r, squares);
    });
}

// What is known of every channel of an image: [KNOWN][channels], as in `Gate`.
std::vector<float> channels_of(const SelfGate &a, Index image) {
    std::vector<float> known(KNOWN * a.channels);
    for (Index c = 0; c < a.channels; c++) {
        const Channel of(a, image, c);
        const float found[KNOWN] = {of.mean, of.inverse, of.curve, of.slope, of.shift, of.bent, of.tilt};
        for (int k = 0; k < KNOWN; k++) known[k * a.channels + c] = found[k];
    }
    return known;
}

template <class T> void gate_image(const SelfGate &a, Index image, int threads) {
    const Tiles tiles(a.pixels, a.channels);
    measure_image<T>(a, image, tiles, threads);
    const std::vector<float> channel = channels_of(a, image);
    const Index channels = a.channels;
    const float *known = channel.data();
    const Strength strength = strength_of(a);
    const bool past = a.stream;
    tiles.visit(threads, [&](Index, Index from, Index to) {
        std::vector<float> turns(a.shuffle ? channels : 0);
        float *turn = turns.data();
        for (Index p = from; p < to; p++) {
            const T *x = (const T *)a.x + (image * a.pixels + p) * channels;
            T *y = (T *)a.y + (image * a.pixels + p) * channels;
            auto weigh = [=](Index r, auto lanes) {
                const auto value = lanes.load(x + r);
                const auto gate = gate_of(known + r, channels, lanes, strength);
                return value * gate.factor(gate.sigmoid(gate.distance(value)));
            };
            if (turn) {
                each<WIDE>(channels, [=](Index r, auto lanes) { lanes.store(turn + r, weigh(r, lanes)); });
                interleave(y, turn, channels / 2);
            } else {
                each_into<WIDE>(y, past, channels, [=](Index r, auto lanes) { lanes.store(y + r, weigh(r, lanes)); });
            }
        }
    });
}

template <class T, class D> void differentiate_image(const SelfGate &a, Index image, int threads) {
    const Tiles tiles(a.pixels, a.channels);
    const std::vector<float> channel = channels_of(a, image);
    const Index channels = a.channels;
    const int most = channels < SHORT ? 1 : FEW;
    const float *known = channel.data();
    const Strength strength = strength_of(a);
    const bool past = a.stream;
    const T *x = (const T *)a.x + image * a.pixels * channels, *given = (const T *)a.dy + image * a.pixels * channels;
    T *dx = (T *)a.y + image * a.pixels * channels;
    std::vector<float> partial(tiles.count * 4 * channels), lines(2 * channels);
    float *line = lines.data();
    // the gradients of a few pixels, each channel in the place that it has in x
    auto arranged = [&](std::vector<float> &turns, Index p, int few) {
        if (!a.shuffle) return (const D *)(given + p * channels);
        turns.resize(FEW * channels);
        for (int k = 0; k < few; k++) separate(&turns[k * channels], given + (p + k) * channels, channels / 2);
        return (const D *)turns.data();
    };
    tiles.visit(threads, [&](Index tile, Index from, Index to) {
        std::vector<float> turns;
        float *into = &partial[tile * 4 * channels];
        for (Index p = from; p < to; p += most) {
            const int few = to - p < most ? (int)(to - p) : most;
            const D *dy = arranged(turns, p, few);
            each<PAIR>(channels, [=](Index r, auto lanes) {
                const auto gate = gate_of(known + r, channels, lanes, strength);
                Sums<decltype(lanes.load(x))> sums;
                for (int k = 0; k < few; k++)
                    sums.add(Slope(gate, lanes.load(x + (p + k) * channels + r), lanes.load(dy + k * channels + r)));
                auto add = [=](int k, auto found) {
                    float *sum = into + k * channels + r;
                    lanes.store(sum, lanes.load(sum) + found);
                };
                add(0, sums.h), add(1, sums.hd), add(2, sums.hdd), add(3, sums.moved);
            });
        }
    });
    for (Index tile = 1; tile < tiles.count; tile++)
        for (Index r = 0; r < 4 * channels; r++) partial[r] += partial[tile * 4 * channels + r];
    for (Index c = 0; c < channels; c++) {
        const float *sum = &partial[c];
        const Line found(a, image, c, sum[0], sum[channels], sum[2 * channels], sum[3 * channels]);
        line[c] = found.constant, line[channels + c] = found.factor;
    }
    tiles.visit(threads, [&](Index, Index from, Index to) {
        std::vector<float> turns;
        for (Index p = from; p < to; p++) {
            const D *dy = arranged(turns, p, 1);
            const T *row = x + p * channels;
            T *into = dx + p * channels;
            each_into<WIDE>(into, past, channels, [=](Index r, auto lanes) {
                const auto gate = gate_of(known + r, channels, lanes, strength);
                const Slope slope(gate, lanes.load(row + r), lanes.load(dy + r));
                lanes.store(into + r, slope.still + lanes.load(line + r) + lanes.load(line + channels + r) * slope.d);
            });
        }
    });
}

// ---------------------------------------------------------------------------------------------------------------------

template <class T> void run(const SelfGate &a) {
    const bool little = a.batch * a.channels * a.pixels < LITTLE;
    const int threads = little ? 1 : a.threads;
    if (a.last)
        return share_images(a.batch, threads, [&](Index image, int inside) {
            if (!a.dy) gate_image<T>(a, image, inside);
            else if (a.shuffle) differentiate_image<T, float>(a, image, inside);
            else differentiate_image<T, T>(a, image, inside);
        });
    const Index rows = a.batch * a.channels, parts = rows < 8 * threads ? rows : 8 * threads;
    share(parts, threads, [&](Index part) {
        const Index last = rows * (part + 1) / parts;
        for (Index row = rows * part / parts; row < last; row += ROWS)
            (a.dy ? differentiate_rows<T> : gate_rows<T>)(a, row, row + ROWS < last ? row + ROWS : last);
    });
}

} // namespace

extern "C" __attribute__((visibility("default"))) void regard_selfgate(const SelfGate *plan, void *const *) {
    plan->bfloat16 ? run<Bfloat16>(*plan) : run<float>(*plan);
}
