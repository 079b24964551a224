// selfgate: every number of a map weighed by a sigmoid of its distance from its channel's mean.
//
// u = curve d^2 + tilt d + shift with d = x - mean;  y = x (1 + strength (sigmoid(u) - 1)); what is added to dx because
// the mean and the variance move with x is a line in d. Traffic: reads x once and writes y; backward reads x and dy
// once and writes dx, as long as a channel (channels last: an image) stays in the caches. Every sum is taken in an
// order that does not depend on the threads.
#include <vector>

#include "gate.h"

struct SelfGate {
    int32_t bfloat16, threads, last, shuffle, stream, energetic;
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
constexpr int FEW = 8;   // pixels at a time, channels last
constexpr Index SHORT = 512;  // channels below which memory is fastest in its own order, a pixel after the other

// What is known of one channel of one image.
struct Channel {
    float mean, curve, tilt, shift, deviations;
    float inverse, level, count, freedom;  // 1 / standard deviation; of the pixels

    Channel(const SelfGate &a, Index image, Index channel) {
        const Index at = image * a.channels + channel, k = channel % a.period;
        mean = a.stats[at], deviations = a.stats[a.batch * a.channels + at];
        count = (float)a.pixels, freedom = a.pixels > 1 ? count - 1 : 1;
        inverse = 1 / std::sqrt(deviations / count + a.epsilon);
        level = a.level ? a.level[k] : 0;
        curve = a.energetic ? 1 / (4 * (deviations / freedom + a.energy)) : 0;
        tilt = a.slope ? a.slope[k] * inverse : 0;
        shift = level * mean + (a.bias ? a.bias[k] : 0) + (a.energetic ? 0.5f : 0);
    }
};

// The gates of as many numbers as a vector has.
struct Gate {
    Vector mean, curve, tilt, shift;
    float strength, rest;

    Gate(const Channel &c, const SelfGate &a)
        : mean(spread(c.mean)), curve(spread(c.curve)), tilt(spread(c.tilt)), shift(spread(c.shift)),
          strength(a.strength ? *a.strength : 1), rest(1 - strength) {}
    template <class Lanes>
    Gate(const float *known, Index channels, Lanes lanes, float strength)
        : mean(lanes.load(known)), curve(lanes.load(known + channels)), tilt(lanes.load(known + 2 * channels)),
          shift(lanes.load(known + 3 * channels)), strength(strength), rest(1 - strength) {}

    Vector sigmoid(Vector d) const { return ::sigmoid((curve * d + tilt) * d + shift); }
    Vector factor(Vector d) const { return rest + strength * sigmoid(d); }
};

// What the gradients of a gate are made of: h = dy x sigmoid' strength, and the gradient as if the mean stood still.
struct Slope {
    Vector d, h, still, strength;

    Slope(const Gate &gate, Vector x, Vector dy) : d(x - gate.mean) {
        Vector g = gate.sigmoid(d);
        h = dy * x * gate.strength * g * (1 - g);
        still = dy * (gate.rest + gate.strength * g) + h * (2 * gate.curve * d + gate.tilt);
        strength = dy * x * (g - 1);
    }
};

struct Sums {
    Vector h = {}, hd = {}, hdd = {}, strength = {};

    void add(const Slope &s) { h += s.h, hd += s.h * s.d, hdd += s.h * s.d * s.d, strength += s.strength; }
};

// Sums over the pixels of a channel: to the gradients of its parameters, and to the line that is added to dx.
struct Line {
    float constant, factor;

    Line(const SelfGate &a, Index image, Index channel, float h, float hd, float hdd, float strength) {
        const Channel c(a, image, channel);
        const Index at = image * a.channels + channel, step = a.batch * a.channels;
        const float found[4] = {hd * c.inverse, h * c.mean, h, strength};
        for (int k = 0; k < 4; k++) a.sums[k * step + at] = found[k];
        constant = (h * (c.level - c.tilt) - 2 * hd * c.curve) / c.count;
        factor = -8 * c.curve * c.curve * hdd / c.freedom - c.tilt * c.inverse * c.inverse * hd / c.count;
    }
};

// Where a channel of the map goes in the result: the two halves may take turns.
inline Index place(const SelfGate &a, Index channel) {
    const Index half = a.channels / 2;
    return a.shuffle ? channel % half * 2 + channel / half : channel;
}

// --- channels first: a channel is a row ------------------------------------------------------------------------------

// A few rows at a time: what one waits for, the others bridge.
template <class T> void gate_rows(const SelfGate &a, Index from, Index to) {
    const Index pixels = a.pixels;
    const T *x = (const T *)a.x + from * pixels;
    float *mean = a.stats + from, *deviations = mean + a.batch * a.channels;
    const bool past = a.stream;
    for (Index row = 0; row < to - from; row++) {
        mean[row] = total(pixels, [&](Index r, auto lanes) { return lanes.load(x + row * pixels + r); });
        mean[row] /= (float)pixels;
    }
    for (Index row = 0; row < to - from; row++) {
        const float centre = mean[row];
        deviations[row] = total(pixels, [&](Index r, auto lanes) {
            Vector d = lanes.keep(lanes.load(x + row * pixels + r) - centre);
            return d * d;
        });
    }
    for (Index row = from; row < to; row++, x += pixels) {
        const Index image = row / a.channels, channel = row % a.channels;
        T *y = (T *)a.y + (image * a.channels + place(a, channel)) * pixels;
        const Channel known(a, image, channel);
        const Gate gate(known, a);
        const bool one = known.curve == 0 && known.tilt == 0;  // for every pixel
        const Vector factor = gate.factor(Vector{});
        const T *next = x + ROWS * pixels;  // memory works while the gates are computed
        if (one)
            each_into(y, past, pixels, [=](Index r, auto lanes) {
                __builtin_prefetch(next + r);
                lanes.store(y + r, factor * lanes.load(x + r));
            });
        else
            each_into(y, past, pixels, [=](Index r, auto lanes) {
                __builtin_prefetch(next + r);
                const Vector value = lanes.load(x + r);
                lanes.store(y + r, value * gate.factor(value - gate.mean));
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
    const Gate gate(Channel(a, image, channel), a);
    Sums sums;
    float *keep = still.data();
    each(a.pixels, [&](Index r, auto lanes) {
        const Slope slope(gate, lanes.load(x + r), lanes.load(dy + r));
        sums.add(slope);
        lanes.store(keep + r, slope.still);
    });
    const Line line(a, image, channel, sum(sums.h), sum(sums.hd), sum(sums.hdd), sum(sums.strength));
    each_into(dx, a.stream, a.pixels, [&](Index r, auto lanes) {
        Vector d = lanes.load(x + r) - gate.mean;
        lanes.store(dx + r, lanes.load(keep + r) + line.constant + line.factor * d);
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

// Mean and squared deviations of every channel, tile by tile and then joined, so that nothing cancels.
template <class T> void measure_image(const SelfGate &a, Index image, const Tiles &tiles, int threads) {
    const Index channels = a.channels;
    const int most = channels < SHORT ? 1 : FEW;
    const T *x = (const T *)a.x + image * a.pixels * channels;
    float *mean = a.stats + image * channels, *deviations = mean + a.batch * channels;
    std::vector<float> partial(tiles.count * 2 * channels);
    tiles.visit(threads, [&](Index tile, Index from, Index to) {
        float *m = &partial[tile * 2 * channels], *v = m + channels;
        for (Index p = from; p < to; p += most) {
            const int few = to - p < most ? (int)(to - p) : most;
            each(channels, [&](Index r, auto lanes) {
                Vector total = lanes.load(m + r);
                for (int k = 0; k < few; k++) total += lanes.load(x + (p + k) * channels + r);
                lanes.store(m + r, total);
            });
        }
        each(channels, [&](Index r, auto lanes) { lanes.store(m + r, lanes.load(m + r) / (float)(to - from)); });
        for (Index p = from; p < to; p += most) {
            const int few = to - p < most ? (int)(to - p) : most;
            each(channels, [&](Index r, auto lanes) {
                Vector squares = lanes.load(v + r), centre = lanes.load(m + r);
                for (int k = 0; k < few; k++) {
                    Vector d = lanes.load(x + (p + k) * channels + r) - centre;
                    squares += d * d;
                }
                lanes.store(v + r, squares);
            });
        }
    });
    each(channels, [&](Index r, auto lanes) {
        Vector centre = {}, squares = {};
        for (Index tile = 0, before = 0; tile < tiles.count; tile++, before += tiles.height) {
            const float count = (float)(tiles.pixels - before < tiles.height ? tiles.pixels - before : tiles.height);
            const float share = count / (count + (float)before);
            const float *m = &partial[tile * 2 * channels + r];
            Vector delta = lanes.load(m) - centre;
            centre += delta * share;
            squares += lanes.load(m + channels) + delta * delta * (share * (float)before);
        }
        lanes.store(mean + r, centre), lanes.store(deviations + r, squares);
    });
}

// What is known of every channel of an image: [4][channels], as in `Gate`.
std::vector<float> channels_of(const SelfGate &a, Index image) {
    std::vector<float> known(4 * a.channels);
    for (Index c = 0; c < a.channels; c++) {
        const Channel channel(a, image, c);
        const float found[4] = {channel.mean, channel.curve, channel.tilt, channel.shift};
        for (int k = 0; k < 4; k++) known[k * a.channels + c] = found[k];
    }
    return known;
}

template <class T> void gate_image(const SelfGate &a, Index image, int threads) {
    const Tiles tiles(a.pixels, a.channels);
    measure_image<T>(a, image, tiles, threads);
    const std::vector<float> channel = channels_of(a, image);
    const Index channels = a.channels;
    const float *known = channel.data(), strength = a.strength ? *a.strength : 1;
    const bool past = a.stream;
    tiles.visit(threads, [&](Index, Index from, Index to) {
        std::vector<float> turns(a.shuffle ? channels : 0);
        float *turn = turns.data();
        for (Index p = from; p < to; p++) {
            const T *x = (const T *)a.x + (image * a.pixels + p) * channels;
            T *y = (T *)a.y + (image * a.pixels + p) * channels;
            auto weigh = [=](Index r, auto lanes) {
                const Vector value = lanes.load(x + r);
                const Gate gate(known + r, channels, lanes, strength);
                return value * gate.factor(value - gate.mean);
            };
            if (turn) {
                each(channels, [=](Index r, auto lanes) { lanes.store(turn + r, weigh(r, lanes)); });
                interleave(y, turn, channels / 2);
            } else {
                each_into(y, past, channels, [=](Index r, auto lanes) { lanes.store(y + r, weigh(r, lanes)); });
            }
        }
    });
}

template <class T, class D> void differentiate_image(const SelfGate &a, Index image, int threads) {
    const Tiles tiles(a.pixels, a.channels);
    const std::vector<float> channel = channels_of(a, image);
    const Index channels = a.channels;
    const int most = channels < SHORT ? 1 : FEW;
    const float *known = channel.data(), strength = a.strength ? *a.strength : 1;
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
            each(channels, [=](Index r, auto lanes) {
                const Gate gate(known + r, channels, lanes, strength);
                Sums sums;
                for (int k = 0; k < few; k++)
                    sums.add(Slope(gate, lanes.load(x + (p + k) * channels + r), lanes.load(dy + k * channels + r)));
                const Vector found[4] = {sums.h, sums.hd, sums.hdd, sums.strength};
                for (int k = 0; k < 4; k++) {
                    float *sum = into + k * channels + r;
                    lanes.store(sum, lanes.load(sum) + found[k]);
                }
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
            each_into(into, past, channels, [=](Index r, auto lanes) {
                const Gate gate(known + r, channels, lanes, strength);
                const Slope slope(gate, lanes.load(row + r), lanes.load(dy + r));
                Vector value = slope.still + lanes.load(line + r) + lanes.load(line + channels + r) * slope.d;
                lanes.store(into + r, value);
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
