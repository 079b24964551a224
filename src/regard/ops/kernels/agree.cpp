// agree: the pixels of a group of channels weighed by how well they agree with the group's average.
//
// t = sum_c x_c mean(x_c) over the group's channels, standardised over the pixels to s, so that what all pixels share
// may be left out: here t = sum_c (x_c - mean(x_c)) mean(x_c);
// y = x (rest + strength sigmoid(weight s + bias)), where rest is 1 - strength while the gate fades in, else 0.
// Traffic: reads x once and writes y; backward reads x and dy once and writes dx, as long as a group (channels last: an
// image) stays in the caches. Channels first a group is taken whole by one thread; every sum is taken in an order that
// does not depend on the threads. What is summed over t is summed in double, from the first pixel's t on: t^2 is the
// fourth power of a map, and equal pixels have a deviation of exactly 0.
#include <vector>

#include "gate.h"

struct Agree {
    int32_t bfloat16, threads, stream, unbiased;
    float epsilon;
    int32_t last, fades, unused;  // last: channels
    Index batch, groups, width, pixels;  // width: channels of a group
    const void *x, *dy;
    void *y;                // the result, or the gradient of x
    const float *weight, *bias, *strength;  // strength may be null
    float *means;   // [batch][groups][width]
    float *scales;  // [2][batch][groups]: mean and standard deviation of t
    float *sums;    // [3][batch][groups]: the gradients of weight, bias, strength
};
SHARED(Agree)

namespace {

constexpr int FEW = 4;           // channels at a time

typedef float Half __attribute__((vector_size(2 * W)));
typedef double Doubles __attribute__((vector_size(4 * W)));

// W sums.
struct Sum {
    Doubles half[2] = {};

    void add(Vector value, Vector times) {
        Half a[2], b[2];
        std::memcpy(a, &value, sizeof value), std::memcpy(b, &times, sizeof times);
        for (int k = 0; k < 2; k++)
            half[k] += __builtin_convertvector(a[k], Doubles) * __builtin_convertvector(b[k], Doubles);
    }
    void add(Vector value) { add(value, spread(1)); }
    double total() const {
        const Doubles both = half[0] + half[1];
        double sum = 0;
        for (int k = 0; k < W / 2; k++) sum += both[k];
        return sum;
    }
};

// To W sums in memory.
inline void add(double *to, Vector value, Vector times) {
    Sum sum;
    std::memcpy(sum.half, to, sizeof sum.half);
    sum.add(value, times);
    std::memcpy(to, sum.half, sizeof sum.half);
}

// The standard deviation, from sums of distances and of their squares.
inline float spread_of(double distances, double squares, double count, double freedom) {
    const double sum = squares - distances * distances / count;
    return (float)std::sqrt((sum < 0 ? 0 : sum) / freedom);  // NaN stays NaN
}

// How far s is drawn back for each s: what moves the standard deviation, from the sum of slopes times s.
inline float pull(double product, float deviation, float epsilon, float freedom) {
    return deviation > 0 ? (float)(product * ((double)deviation + epsilon) / ((double)deviation * freedom)) : 0;
}

// A group of one image, and what is known of it.
template <class T> struct Group {
    const Agree &a;
    Index at, pixels;  // at: its number, counted over the images
    const T *x, *dy;
    T *y;
    float *means;
    float weight, bias;
    Strength strength;

    Group(const Agree &a, Index at) : a(a), at(at), pixels(a.pixels), means(a.means + at * a.width) {
        const Index first = at * a.width * pixels;
        x = (const T *)a.x + first, dy = (const T *)a.dy + first, y = (T *)a.y + first;
        weight = a.weight[at % a.groups], bias = a.bias[at % a.groups];
        strength = strength_of(a);
    }
    float &mean() const { return a.scales[at]; }
    float &deviation() const { return a.scales[a.batch * a.groups + at]; }
    float freedom() const { return a.unbiased && pixels > 1 ? (float)pixels - 1 : (float)pixels; }
    float scale() const { return 1 / (deviation() + a.epsilon); }
    float pull(double product) const { return ::pull(product, deviation(), a.epsilon, freedom()); }
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
    const Strength strength = g.strength;
    const float bias = g.bias, count = (float)pixels;
    const bool past = g.a.stream;
    const T *x = g.x;
    float *means = g.means, *t = room(pixels, 1);  // later the gate
    for (Index c = 0; c < g.a.width; c++)
        means[c] = total(pixels, [=](Index r, auto lanes) { return lanes.load(x + c * pixels + r); }) / count;
    collect(g.a.width, pixels, t, [=](Index c, Index r, auto lanes) {
        return means[c] * (lanes.load(x + c * pixels + r) - means[c]);
    });
    const float first = *t;
    Sum distances, squares;
    each(pixels, [&](Index r, auto lanes) {
        const Vector d = lanes.keep(lanes.load(t + r) - first);
        distances.add(d), squares.add(d, d);
    });
    const float mean = g.mean() = (float)(first + distances.total() / count);
    g.deviation() = spread_of(distances.total(), squares.total(), count, g.freedom());
    const float tilt = g.weight * g.scale();
    each(pixels, [=](Index r, auto lanes) {
        Vector mask = sigmoid((lanes.load(t + r) - mean) * tilt + bias);
        lanes.store(t + r, strength.rest + strength.factor * mask);
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
    const Strength strength = g.strength;
    const float weight = g.weight, bias = g.bias, count = (float)pixels, mean = g.mean();
    const float scale = g.scale(), *means = g.means;
    const bool past = g.a.stream;
    const T *x = g.x, *dy = g.dy;
    float *s = room(pixels, 3), *dt = s + pixels, *gate = dt + pixels;
    collect(g.a.width, pixels, s, [=](Index c, Index r, auto lanes) {
        return means[c] * (lanes.load(x + c * pixels + r) - means[c]);
    });
    collect(g.a.width, pixels, gate, [=](Index c, Index r, auto lanes) {  // its gradient
        return lanes.load(x + c * pixels + r) * lanes.load(dy + c * pixels + r);
    });
    Sum sums[3];  // of slopes, of slopes times s, of what the strength moves
    each(pixels, [&](Index r, auto lanes) {
        const Vector moved = lanes.keep((lanes.load(s + r) - mean) * scale), given = lanes.load(gate + r);
        const Vector mask = sigmoid(moved * weight + bias), slope = given * strength.factor * mask * (1 - mask);
        sums[0].add(slope), sums[1].add(slope, moved), sums[2].add(given, mask - strength.fading);
        lanes.store(s + r, moved), lanes.store(dt + r, slope);
        lanes.store(gate + r, strength.rest + strength.factor * mask);
    });
    const double h = sums[0].total(), product = sums[1].total();
    const double found[3] = {product, h, sums[2].total()};
    for (int k = 0; k < 3; k++) g.a.sums[k * g.a.batch * g.a.groups + g.at] = (float)found[k];
    const float shared = (float)(h / count), pull = g.pull(product), tilt = weight * scale;
    each(pixels, [=](Index r, auto lanes) {
        lanes.store(dt + r, tilt * (lanes.load(dt + r) - shared - pull * lanes.load(s + r)));
    });
    for (Index c = 0; c < g.a.width; c++, x += pixels, dy += pixels) {
        T *dx = g.y + c * pixels;
        const float mean = means[c];
        const float through = total(pixels, [=](Index r, auto lanes) {  // the channel's mean; the sum of dt is 0
            return lanes.load(dt + r) * (lanes.load(x + r) - mean);
        }) / count;
        each_into(dx, past, pixels, [=](Index r, auto lanes) {
            lanes.store(dx + r, lanes.load(dy + r) * lanes.load(gate + r) + mean * lanes.load(dt + r) + through);
        });
    }
}

// --- channels last: an image is rows of pixels, each with a number of every channel ----------------------------------

// How the numbers of a pixel's channels are added up by groups, and the numbers of its groups are given to channels.
// WIDTH channels are a group; W stands for any multiple of W, 0 for any number.
template <int WIDTH> struct Groups {
    Index channels, width;
    std::vector<float> turn;  // a row of channels

    explicit Groups(const Agree &a) : channels(a.groups * a.width), width(a.width), turn(channels + W) {}

    // sums over each group of term(place, how)
    template <class Term> void collect(float *into, Term term) {
        if constexpr (WIDTH == 0) {
            each(channels, [&](Index r, auto lanes) { lanes.store(&turn[r], term(r, lanes)); });
            for (Index g = 0; g < channels / width; g++) {
                into[g] = 0;
                for (Index c = g * width; c < (g + 1) * width; c++) into[g] += turn[c];
            }
        } else {
            const Index step = WIDTH == W ? width : W;
            for (Index c = 0; c < channels; c += WIDTH * step, into += W) {
                Vector sums[WIDTH];
                for (int k = 0; k < WIDTH; k++) {
                    sums[k] = term(c + k * step, Whole{});
                    for (Index more = W; more < step; more += W) sums[k] += term(c + k * step + more, Whole{});
                }
                store(into, fold<WIDTH, WIDTH>(sums));
            }
        }
    }

    // work(place, how, what its group has): `of` may be read beyond its end
    template <class Work> void distribute(const float *of, Work work) {
        if constexpr (WIDTH == 0) {
            for (Index c = 0; c < channels; c++) turn[c] = of[c / width];
            each(channels, [&](Index r, auto lanes) { work(r, lanes, lanes.load(&turn[r])); });
        } else {
            each(channels, [&](Index r, auto lanes) {
                if (WIDTH == W) return work(r, lanes, spread(of[r / width]));
                const Vector some = load(of + r / WIDTH);
                work(r, lanes, shuffle(some, LANES / (WIDTH ? WIDTH : 1)));
            });
        }
    }
};

// Sums over the pixels of an image: add(pixel, sums) for the pixels of each tile, joined in order.
template <class Number, class Add>
std::vector<Number> over_pixels(const Tiles &tiles, int threads, Index count, Add add) {
    std::vector<Number> partial(tiles.count * count);
    tiles.visit(threads, [&](Index tile, Index from, Index to) { add(from, to, &partial[tile * count]); });
    for (Index tile = 1; tile < tiles.count; tile++)
        for (Index r = 0; r < count; r++) partial[r] += partial[tile * count + r];
    partial.resize(count + W);
    return partial;
}

template <class T, int WIDTH> void gate_image(const Agree &a, Index image, int threads) {
    const Index channels = a.groups * a.width, groups = a.groups, pixels = a.pixels;
    const Tiles tiles(pixels, channels);
    const T *x = (const T *)a.x + image * pixels * channels;
    T *y = (T *)a.y + image * pixels * channels;
    const Strength strength = strength_of(a);
    const float count = (float)pixels;
    const float freedom = a.unbiased && pixels > 1 ? count - 1 : count;
    const bool past = a.stream && channels % W == 0;  // whole lines
    float *means = a.means + image * channels;
    float *mean = a.scales + image * groups, *deviation = mean + a.batch * groups;
    std::vector<float> room(pixels * groups + W);
    float *t = room.data();
    const auto sums = over_pixels<float>(tiles, threads, channels, [=](Index from, Index to, float *sums) {
        for (Index p = from; p < to; p++)
            each(channels, [=](Index r, auto lanes) {
                lanes.store(sums + r, lanes.load(sums + r) + lanes.load(x + p * channels + r));
            });
    });
    for (Index c = 0; c < channels; c++) means[c] = sums[c] / count;
    std::vector<float> start(groups + W);
    float *first = start.data();
    auto collect = [=](Groups<WIDTH> &of, Index p, float *into) {
        of.collect(into, [=](Index r, auto lanes) {
            return lanes.load(means + r) * (lanes.load(x + p * channels + r) - lanes.load(means + r));
        });
    };
    Groups<WIDTH> once(a);
    collect(once, 0, first);
    const Index row = (groups + W - 1) / W * W;
    const auto totals = over_pixels<double>(tiles, threads, 2 * row, [=](Index from, Index to, double *sums) {
        Groups<WIDTH> of(a);
        for (Index p = from; p < to; p++) {
            collect(of, p, t + p * groups);
            each(groups, [=](Index r, auto lanes) {
                const Vector d = lanes.load(t + p * groups + r) - lanes.load(first + r);
                add(sums + r, d, spread(1)), add(sums + row + r, d, d);
            });
        }
    });
    std::vector<float> tilts(groups);
    for (Index g = 0; g < groups; g++) {
        mean[g] = (float)(first[g] + totals[g] / count);
        deviation[g] = spread_of(totals[g], totals[row + g], count, freedom);
        tilts[g] = a.weight[g] / (deviation[g] + a.epsilon);
    }
    const float *tilt = tilts.data();
    tiles.visit(threads, [=](Index, Index from, Index to) {
        Groups<WIDTH> of(a);
        std::vector<float> row(groups + W);
        float *gate = row.data();
        for (Index p = from; p < to; p++) {
            each(groups, [=](Index r, auto lanes) {
                const Vector d = lanes.load(t + p * groups + r) - lanes.load(mean + r);
                const Vector mask = sigmoid(d * lanes.load(tilt + r) + lanes.load(a.bias + r));
                lanes.store(gate + r, strength.rest + strength.factor * mask);
            });
            const T *from = x + p * channels;
            T *to = y + p * channels;
            of.distribute(gate, [=](Index r, auto lanes, Vector gate) {
                const Vector value = lanes.load(from + r) * gate;
                past && lanes.n == W ? stream(to + r, value) : lanes.store(to + r, value);
            });
        }
    });
}

template <class T, int WIDTH> void differentiate_image(const Agree &a, Index image, int threads) {
    const Index channels = a.groups * a.width, groups = a.groups, pixels = a.pixels;
    const Tiles tiles(pixels, channels);
    const T *x = (const T *)a.x + image * pixels * channels, *dy = (const T *)a.dy + image * pixels * channels;
    T *dx = (T *)a.y + image * pixels * channels;
    const Strength strength = strength_of(a);
    const float count = (float)pixels;
    const float freedom = a.unbiased && pixels > 1 ? count - 1 : count;
    const bool past = a.stream && channels % W == 0;  // whole lines
    const float *means = a.means + image * channels;
    const float *mean = a.scales + image * groups, *deviation = mean + a.batch * groups;
    std::vector<float> inverse(groups), rooms(3 * pixels * groups + W);
    for (Index g = 0; g < groups; g++) inverse[g] = 1 / (deviation[g] + a.epsilon);
    const float *scale = inverse.data();
    float *standard = rooms.data(), *slopes = standard + pixels * groups, *gates = slopes + pixels * groups;
    const Index row = (groups + W - 1) / W * W;
    const auto sums = over_pixels<double>(tiles, threads, 3 * row, [=](Index from, Index to, double *sums) {
        Groups<WIDTH> of(a);
        for (Index p = from; p < to; p++) {
            const T *from = x + p * channels, *given = dy + p * channels;
            float *s = standard + p * groups, *slope = slopes + p * groups, *gate = gates + p * groups;
            of.collect(s, [=](Index r, auto lanes) {
                return lanes.load(means + r) * (lanes.load(from + r) - lanes.load(means + r));
            });
            of.collect(gate, [=](Index r, auto lanes) { return lanes.load(from + r) * lanes.load(given + r); });
            each(groups, [=](Index r, auto lanes) {
                const Vector moved = (lanes.load(s + r) - lanes.load(mean + r)) * lanes.load(scale + r);
                const Vector mask = sigmoid(moved * lanes.load(a.weight + r) + lanes.load(a.bias + r));
                const Vector given = lanes.load(gate + r), h = given * strength.factor * mask * (1 - mask);
                add(sums + r, h, spread(1)), add(sums + row + r, h, moved);
                add(sums + 2 * row + r, given, mask - strength.fading);
                lanes.store(s + r, moved), lanes.store(slope + r, h);
                lanes.store(gate + r, strength.rest + strength.factor * mask);
            });
        }
    });
    std::vector<float> tilts(groups), pulls(groups), shares(groups);
    for (Index g = 0; g < groups; g++) {
        const double found[3] = {sums[row + g], sums[g], sums[2 * row + g]};
        for (int k = 0; k < 3; k++) a.sums[(k * a.batch + image) * groups + g] = (float)found[k];
        tilts[g] = a.weight[g] * scale[g];
        pulls[g] = pull(sums[row + g], deviation[g], a.epsilon, freedom);
        shares[g] = (float)(sums[g] / count);
    }
    const float *tilt = tilts.data(), *shared = shares.data(), *pulled = pulls.data();
    auto through = over_pixels<float>(tiles, threads, channels, [=](Index from, Index to, float *sums) {
        Groups<WIDTH> of(a);
        for (Index p = from; p < to; p++) {
            float *dt = slopes + p * groups;
            const float *s = standard + p * groups;
            each(groups, [=](Index r, auto lanes) {
                const Vector own = lanes.load(dt + r) - lanes.load(shared + r);
                lanes.store(dt + r, lanes.load(tilt + r) * (own - lanes.load(pulled + r) * lanes.load(s + r)));
            });
            of.distribute(dt, [=](Index r, auto lanes, Vector dt) {  // the sum of dt is 0
                const Vector d = lanes.load(x + p * channels + r) - lanes.load(means + r);
                lanes.store(sums + r, lanes.load(sums + r) + dt * d);
            });
        }
    });
    for (float &sum : through) sum /= count;
    const float *constant = through.data();
    tiles.visit(threads, [=](Index, Index from, Index to) {
        Groups<WIDTH> of(a), also(a);
        std::vector<float> row(channels);
        float *kept = row.data();
        for (Index p = from; p < to; p++) {
            const T *given = dy + p * channels;
            T *into = dx + p * channels;
            of.distribute(gates + p * groups, [=](Index r, auto lanes, Vector gate) {
                lanes.store(kept + r, lanes.load(given + r) * gate + lanes.load(constant + r));
            });
            also.distribute(slopes + p * groups, [=](Index r, auto lanes, Vector dt) {
                const Vector value = lanes.load(kept + r) + lanes.load(means + r) * dt;
                past && lanes.n == W ? stream(into + r, value) : lanes.store(into + r, value);
            });
        }
    });
}

template <class T, int WIDTH> void run_images(const Agree &a, int threads) {
    share_images(a.batch, threads, [&](Index image, int inside) {
        (a.dy ? differentiate_image<T, WIDTH> : gate_image<T, WIDTH>)(a, image, inside);
    });
}

// ---------------------------------------------------------------------------------------------------------------------

template <class T> void run(const Agree &a) {
    const Index groups = a.batch * a.groups;
    const int threads = groups * a.width * a.pixels < LITTLE ? 1 : a.threads;
    if (a.last) {
        if (a.groups % W) return run_images<T, 0>(a, threads);
        if (a.width == 4) return run_images<T, 4>(a, threads);
        if (a.width == 8 && W > 8) return run_images<T, 8>(a, threads);
        return a.width % W ? run_images<T, 0>(a, threads) : run_images<T, W>(a, threads);
    }
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
