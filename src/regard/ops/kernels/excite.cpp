// excite: sigmoid of the sum, over a few inputs s, of W2 relu(W1 s + b1) + b2.
//
// Traffic: reads each weight once from memory, and then finds it in the first cache for every image.
#include <vector>

#include "gate.h"
#include "plans.h"

SHARED(Excite)

namespace {

constexpr int FEW = 4;  // weights, and rows, whose sums share what was loaded

inline float relu(float value) { return value < 0 ? 0 : value; }  // NaN passes

// dot(weight[j], row[k]) of n numbers each, for a few of both; into[j][k].
template <int WEIGHTS, int ROWS>
inline void dots(const float *weight, const float *const *row, Index n, float (*into)[FEW]) {
    Vector sums[WEIGHTS][ROWS];
    auto add = [&](auto first, auto at) {
        Vector value[ROWS];
        for (int k = 0; k < ROWS; k++) value[k] = at(row[k]);
        for (int j = 0; j < WEIGHTS; j++) {
            const Vector w = at(weight + j * n);
            for (int k = 0; k < ROWS; k++) sums[j][k] = first() ? w * value[k] : sums[j][k] + w * value[k];
        }
    };
    const int head = n % W ? (int)(n % W) : W;
    add([] { return true; }, [head](const float *from) { return load(from, head); });
    for (Index r = head; r < n; r += W) add([] { return false; }, [r](const float *from) { return load(from + r); });
    if (ROWS == FEW && WEIGHTS * ROWS % W == 0)  // the sums lie as `into` does
        for (int at = 0; at < WEIGHTS * ROWS; at += W) store(into[0] + at, fold<W>(sums[0] + at));
    else
        for (int j = 0; j < WEIGHTS; j++)
            for (int k = 0; k < ROWS; k++) into[j][k] = sum(sums[j][k]);
}

// take(j, k, dot(weight[j], row[k])) for the weights from .. to, all of n numbers, and every row.
template <class Take>
void product(const float *weights, Index from, Index to, const std::vector<const float *> &row, Index n, Take take) {
    const Index rows = (Index)row.size();
    float found[FEW][FEW];
    for (Index j = from; j < to;) {
        const int few = to - j >= FEW ? FEW : 1;
        for (Index k = 0; k < rows;) {
            const float *weight = weights + j * n, *const *first = row.data() + k;
            const int some = rows - k >= FEW ? FEW : 1;
            if (few == FEW) some == FEW ? dots<FEW, FEW>(weight, first, n, found) : dots<FEW, 1>(weight, first, n, found);
            else some == FEW ? dots<1, FEW>(weight, first, n, found) : dots<1, 1>(weight, first, n, found);
            for (int a = 0; a < few; a++)
                for (int b = 0; b < some; b++) take(j + a, k + b, found[a][b]);
            k += some;
        }
        j += few;
    }
}

} // namespace

extern "C" __attribute__((visibility("default"))) void regard_excite(const Excite *plan, void *const *pointers) {
    Excite a = *plan;
    resolve(pointers, a.gate, a.down, a.down_bias, a.up, a.up_bias, a.activations);
    const int rows = (int)(a.inputs * a.batch);
    std::vector<const float *> row(rows), hidden(a.batch);
    std::vector<float> own(a.activations ? 0 : (size_t)rows * a.hidden), joined((size_t)a.batch * a.hidden);
    float *activations = a.activations ? a.activations : own.data();
    for (int input = 0; input < a.inputs; input++) {
        resolve(pointers, a.squeezed[input]);
        for (Index b = 0; b < a.batch; b++) row[input * a.batch + b] = a.squeezed[input] + b * a.channels;
    }
    const int threads = rows * a.channels * a.hidden < 8 * LITTLE ? 1 : a.threads;
    const Index shares = threads > 1 ? 2 * threads : 1;
    share(shares, threads, [&](Index part) {
        const Index from = a.hidden * part / shares, to = a.hidden * (part + 1) / shares;
        product(a.down, from, to, row, a.channels, [&](Index j, Index k, float found) {
            activations[k * a.hidden + j] = relu(found + (a.down_bias ? a.down_bias[j] : 0));
        });
    });
    // W2 is linear: the inputs' activations are added first
    for (Index b = 0; b < a.batch; b++) {
        hidden[b] = &joined[b * a.hidden];
        for (Index j = 0; j < a.hidden; j++) {
            float total = 0;
            for (int input = 0; input < a.inputs; input++) total += activations[(input * a.batch + b) * a.hidden + j];
            joined[b * a.hidden + j] = total;
        }
    }
    share(shares, threads, [&](Index part) {
        const Index from = a.channels * part / shares, to = a.channels * (part + 1) / shares;
        product(a.up, from, to, hidden, a.hidden, [&](Index c, Index b, float found) {
            a.gate[b * a.channels + c] = found + (a.up_bias ? (float)a.inputs * a.up_bias[c] : 0);
        });
        for (Index b = 0; b < a.batch; b++) {
            float *gate = a.gate + b * a.channels + from;
            each(to - from, [&](Index r, auto how) { how.store(gate + r, sigmoid(how.load(gate + r))); });
        }
    });
}
