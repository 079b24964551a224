// agree: the pixels of a group of channels weighed by how well they agree with the group's average.
//
// t = sum_c x_c mean(x_c) over the group's channels, standardised over the pixels to s;
// y = x (1 + strength (sigmoid(weight s + bias) - 1)). Traffic: reads x once and writes y; backward reads x and dy once
// and writes dx, as long as a group stays in the second cache. A group is taken whole by one thread.
#include <vector>

#include "gate.h"

struct Agree {
    int32_t bfloat16, threads, stream, unbiased;
    float epsilon, unused;
    Index batch, groups, width, pixels;  // width: channels of a group
    const void *x, *dy;
    void *y;                // the result, or the gradient of x
    const float *weight, *bias, *strength;  // strength may be null
    float *means;   // [batch][groups][width]
    float *scales;  // [2][batch][groups]: mean and standard deviation of t
    float *sums;    // [3][batch][groups]: the gradients of weight, bias, strength
};

namespace {

constexpr int FEW = 4;           // channels at a time

// A group of one image, and what is known of it.
template <class T> struct Group {
    const Agree &a;
    Index at, pixels;  // at: its number, counted over the images
    const T *x, *dy;
    T *y;
    float *means;
    float weight, bias, strength;

    Group(const Agree &a, Index at) : a(a), at(at), pixels(a.pixels), means(a.means + at * a.width) {
        const Index first = at * a.width * pixels;
        x = (const T *)a.x + first, dy = (const T *)a.dy + first, y = (T *)a.y + first;
        weight = a.weight[at % a.groups], bias = a.bias[at % a.groups], strength = a.strength ? *a.strength : 1;
    }
    float &mean() const { return a.scales[at]; }
    float &deviation() const { return a.scales[a.batch * a.groups + at]; }
    float freedom() const { return a.unbiased && pixels > 1 ? (float)pixels - 1 : (float)pixels; }
    float scale() const { return 1 / (deviation() + a.epsilon); }
};

// room for `count` numbers for each pixel, kept by each thread
inline float *room(Index pixels, int count) {
    thread_local std::vector<float> numbers;
    numbers.resize(pixels * count);
    return numbers.data();
}

// To each number of `into` what some channels hold at its pixel: term(channel, place, lanes), a few channels at a time.
template <class Term> inline void collect(Index width, Index pixels, float *into, Term term) {
    Index c = 0;
    for (; c + FEW <= width; c += FEW)
        each(pixels, [=](Index r, auto lanes) {
            Vector total = c ? lanes.load(into + r) : Vector{};
            for (int k = 0; k < FEW; k++) total += term(c + k, r, lanes);
            lanes.store(into + r, total);
        });
    for (; c < width; c++)
        each(pixels, [=](Index r, auto lanes) {
            lanes.store(into + r, (c ? lanes.load(into + r) : Vector{}) + term(c, r, lanes));
        });
}

template <class T> void gate_group(const Group<T> &g) {
    const Index pixels = g.pixels;
    const float strength = g.strength, bias = g.bias, count = (float)pixels;
    const bool past = g.a.stream;
    const T *x = g.x;
    float *means = g.means, *t = room(pixels, 1);  // later the gate
    for (Index c = 0; c < g.a.width; c++)
        means[c] = total(pixels, [=](Index r, auto lanes) { return lanes.load(x + c * pixels + r); }) / count;
    collect(g.a.width, pixels, t, [=](Index c, Index r, auto lanes) {
        return means[c] * lanes.load(x + c * pixels + r);
    });
    const float mean = g.mean() = total(pixels, [=](Index r, auto lanes) { return lanes.load(t + r); }) / count;
    const float squares = total(pixels, [=](Index r, auto lanes) {
        Vector d = lanes.keep(lanes.load(t + r) - mean);
        return d * d;
    });
    g.deviation() = std::sqrt(squares / g.freedom());
    const float tilt = g.weight * g.scale();
    each(pixels, [=](Index r, auto lanes) {
        Vector mask = sigmoid((lanes.load(t + r) - mean) * tilt + bias);
        lanes.store(t + r, 1 - strength + strength * mask);
    });
    for (Index c = 0; c < g.a.width; c++, x += pixels) {
        T *y = g.y + c * pixels;
        const T *next = x + g.a.width * pixels;  // memory works on the next group
        each_into(y, past, pixels, [=](Index r, auto lanes) {
            __builtin_prefetch(next + r);
            lanes.store(y + r, lanes.load(x + r) * lanes.load(t + r));
        });
    }
}

template <class T> void differentiate_group(const Group<T> &g) {
    const Index pixels = g.pixels;
    const float strength = g.strength, bias = g.bias, count = (float)pixels, mean = g.mean();
    const float tilt = g.weight * g.scale(), *means = g.means;
    const bool past = g.a.stream;
    const T *x = g.x, *dy = g.dy;
    float *d = room(pixels, 3), *dt = d + pixels, *gate = dt + pixels;
    collect(g.a.width, pixels, d, [=](Index c, Index r, auto lanes) {
        return means[c] * lanes.load(x + c * pixels + r);
    });
    collect(g.a.width, pixels, gate, [=](Index c, Index r, auto lanes) {  // its gradient
        return lanes.load(x + c * pixels + r) * lanes.load(dy + c * pixels + r);
    });
    Vector h = {}, hd = {}, faded = {};
    each(pixels, [&](Index r, auto lanes) {
        Vector distance = lanes.load(d + r) - mean, given = lanes.load(gate + r);
        Vector mask = sigmoid(distance * tilt + bias), slope = given * strength * mask * (1 - mask);
        h += slope, hd += slope * distance, faded += given * (mask - 1);
        lanes.store(d + r, distance), lanes.store(dt + r, slope);
        lanes.store(gate + r, 1 - strength + strength * mask);
    });
    const float shared = sum(h) / count, product = sum(hd);
    const float found[3] = {product * g.scale(), sum(h), sum(faded)};
    for (int k = 0; k < 3; k++) g.a.sums[k * g.a.batch * g.a.groups + g.at] = found[k];
    const float factor = g.deviation() > 0 ? tilt * g.scale() * product / (g.deviation() * g.freedom()) : 0;
    each(pixels, [=](Index r, auto lanes) {
        lanes.store(dt + r, tilt * (lanes.load(dt + r) - shared) - factor * lanes.load(d + r));
    });
    for (Index c = 0; c < g.a.width; c++, x += pixels, dy += pixels) {
        T *dx = g.y + c * pixels;
        const float mean = means[c];
        const float through = total(pixels, [=](Index r, auto lanes) {  // the channel's mean
            return lanes.load(dt + r) * lanes.load(x + r);
        }) / count;
        each_into(dx, past, pixels, [=](Index r, auto lanes) {
            lanes.store(dx + r, lanes.load(dy + r) * lanes.load(gate + r) + mean * lanes.load(dt + r) + through);
        });
    }
}

template <class T> void run(const Agree &a) {
    const Index groups = a.batch * a.groups;
    const int threads = groups * a.width * a.pixels < LITTLE ? 1 : a.threads;
    const Index parts = groups < 8 * threads ? groups : 8 * threads;
    share(parts, threads, [&](Index part) {
        for (Index at = groups * part / parts; at < groups * (part + 1) / parts; at++)
            (a.dy ? differentiate_group<T> : gate_group<T>)(Group<T>(a, at));
    });
}

} // namespace

extern "C" __attribute__((visibility("default"))) void regard_agree(const Agree *plan, void *const *) {
    plan->bfloat16 ? run<Bfloat16>(*plan) : run<float>(*plan);
}
