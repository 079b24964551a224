// convolve: a k x k convolution of a few channels to one, its border padded with zeros, and its gradients.
//
// Traffic: reads each channel once, into a padded plane that stays in the caches; writes one channel. The planes are a
// few of as many channels as the map has, so what counts is that no matrix of patches is built.
#include "plans.h"

#include <vector>

SHARED(Convolve)

namespace {

// A channel with zeros around it, and a line more, so that whole vectors may be read everywhere.
struct Plane {
    Index step;
    std::vector<float> numbers;

    Plane(const Convolve &a) : step(a.width + a.columns - 1) {
        numbers.assign((a.height + a.rows - 1) * step + 4 * W, 0.0f);
    }
    void fill(const Convolve &a, const float *from) {
        for (Index i = 0; i < a.height; i++)
            std::memcpy(row(i + a.rows / 2) + a.columns / 2, from + i * a.width, a.width * sizeof(float));
    }
    float *row(Index i) { return numbers.data() + i * step; }
};

int threads(const Convolve &a) {
    return a.batch * a.channels * a.height * a.width * a.rows * a.columns < 16 * LITTLE ? 1 : a.threads;
}

// y += the plane times the kernel at every pixel; FEW vectors of pixels at a time.
template <int FEW> void correlate(const Convolve &a, Plane &plane, const float *weight, float *y, Index i, Index j) {
    Vector sums[FEW] = {};
    for (Index k = 0; k < a.rows; k++) {
        const float *from = plane.row(i + k) + j;
        for (Index l = 0; l < a.columns; l++)
            for (int f = 0; f < FEW; f++) sums[f] += weight[k * a.columns + l] * load(from + l + f * W);
    }
    for (int f = 0; f < FEW; f++) {
        float *to = y + i * a.width + j + f * W;
        Index n = a.width - j - f * W;
        if (n >= W) store(to, load(to) + sums[f]);
        else if (n > 0) store(to, (int)n, load(to, (int)n) + sums[f]);
    }
}

void correlate(const Convolve &a, Plane &plane, const float *weight, float *y) {
    for (Index i = 0; i < a.height; i++) {
        Index j = 0;
        for (; j + 4 * W <= a.width; j += 4 * W) correlate<4>(a, plane, weight, y, i, j);
        for (; j + W < a.width; j += 2 * W) correlate<2>(a, plane, weight, y, i, j);
        for (; j < a.width; j += W) correlate<1>(a, plane, weight, y, i, j);
    }
}

// The gradient of one row of the kernel: of each number, the products of dy and the plane moved as far.
template <int FEW> void accumulate(const Convolve &a, Plane &plane, const float *dy, Index k, Index l, float *dweight) {
    Vector sums[FEW] = {};
    for (Index i = 0; i < a.height; i++) {
        const float *from = plane.row(i + k) + l, *line = dy + i * a.width;
        Index j = 0;
        for (; j + W <= a.width; j += W) {
            Vector d = load(line + j);
            for (int f = 0; f < FEW; f++) sums[f] += d * load(from + j + f);
        }
        if (int n = (int)(a.width - j)) {
            Vector d = load(line + j, n);
            for (int f = 0; f < FEW; f++) sums[f] += d * (LANES < n ? load(from + j + f) : Vector{});
        }
    }
    for (int f = 0; f < FEW; f++) dweight[k * a.columns + l + f] = sum(sums[f]);
}

Convolve placed(Convolve a, void *const *pointers) {
    resolve(pointers, a.x, a.weight, a.dy, a.y, a.dx, a.dweight);
    return a;
}

} // namespace

extern "C" __attribute__((visibility("default"))) void regard_convolve(const Convolve *plan, void *const *pointers) {
    const Convolve a = placed(*plan, pointers);
    const Index pixels = a.height * a.width, taps = a.rows * a.columns;
    share(a.batch, threads(a), [&](Index b) {
        float *y = a.y + b * pixels;
        std::memset(y, 0, pixels * sizeof(float));
        Plane plane(a);
        for (int c = 0; c < a.channels; c++) {
            plane.fill(a, a.x + (b * a.channels + c) * pixels);
            correlate(a, plane, a.weight + c * taps, y);
        }
    });
}

extern "C" __attribute__((visibility("default"))) void regard_convolve_backward(const Convolve *plan, void *const *pointers) {
    const Convolve a = placed(*plan, pointers);
    const Index pixels = a.height * a.width, taps = a.rows * a.columns;
    share(a.batch, threads(a), [&](Index b) {
        Plane plane(a);
        const float *dy = a.dy + b * pixels;
        std::vector<float> turned(taps);
        if (a.dx) plane.fill(a, dy);
        for (int c = 0; a.dx && c < a.channels; c++) {
            float *dx = a.dx + (b * a.channels + c) * pixels;
            std::memset(dx, 0, pixels * sizeof(float));
            for (Index t = 0; t < taps; t++) turned[t] = a.weight[c * taps + taps - 1 - t];
            correlate(a, plane, turned.data(), dx);
        }
        for (int c = 0; a.dweight && c < a.channels; c++) {
            plane.fill(a, a.x + (b * a.channels + c) * pixels);
            float *dweight = a.dweight + (b * a.channels + c) * taps;
            for (Index k = 0; k < a.rows; k++) {
                Index l = 0;
                for (; l + 7 <= a.columns; l += 7) accumulate<7>(a, plane, dy, k, l, dweight);
                for (; l < a.columns; l++) accumulate<1>(a, plane, dy, k, l, dweight);
            }
        }
    });
}
