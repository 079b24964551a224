// pick: the gradient of maxima, which touches one number of the map for each.
//
// Traffic: as many numbers of the map as there are maxima.
#include "map.h"

struct Pick {
    int32_t bfloat16, threads, factors, unused;
    Index size[4];
    Map y, x;               // y takes up the gradients; with gradients of factors, x is read instead
    Operand value;          // the gradients of the maxima, stride 0 along what was reduced
    const int32_t *place;   // laid out like value
    Operand factor[3];      // with which the map was multiplied before
    float *gradient[3];     // of the factors, laid out like them; null: y is written
};
SHARED(Pick)

namespace {

float widened(float value) { return value; }
float widened(Bfloat16 value) { return load(&value, 1)[0]; }
void add(float *to, float value) { *to += value; }
void add(Bfloat16 *to, float value) { store(to, 1, spread(widened(*to) + value)); }

constexpr Index SOON = 32;  // maxima

template <class T> void pick(const Pick &a, Index i) {
    Index kept[4];
    const uint32_t rows = (uint32_t)a.size[2], columns = (uint32_t)a.size[3];
    const Map &map = a.y.data ? a.y : a.x;
    const bool dense = (rows == 1 || map.stride[2] == a.size[3]) &&
                       (a.size[1] == 1 || map.stride[1] == a.size[2] * a.size[3]);
    for (int d = 1; d < 4; d++) kept[d] = a.value.stride[d] ? a.size[d] : 1;
    for (Index p = 0; p < kept[1]; p++)
        for (Index q = 0; q < kept[2]; q++)
            for (Index r = 0; r < kept[3]; r++) {
                const Index *s = a.value.stride;
                Index at = i * s[0] + p * s[1] + q * s[2] + r * s[3];
                const uint32_t place = (uint32_t)a.place[at];
                if (dense && r + SOON < kept[3])  // memory cannot guess where a maximum stands
                    __builtin_prefetch((const T *)map.data + i * map.stride[0] + a.place[at + SOON * s[3]]);
                if (a.y.data && !a.factors && dense) {
                    add((T *)a.y.data + i * a.y.stride[0] + place, a.value.data[at]);
                    continue;
                }
                const Index there[4] = {i, place / columns / rows, place / columns % rows, place % columns};
                auto offset = [&](const Index *stride) {
                    Index sum = 0;
                    for (int d = 0; d < 4; d++) sum += there[d] * stride[d];
                    return sum;
                };
                float value = a.value.data[at], factor[3];
                for (int k = 0; k < a.factors; k++) factor[k] = a.factor[k].data[offset(a.factor[k].stride)];
                if (a.y.data) {
                    for (int k = 0; k < a.factors; k++) value *= factor[k];
                    add((T *)a.y.data + offset(a.y.stride), value);
                    continue;
                }
                value *= widened(((const T *)a.x.data)[offset(a.x.stride)]);
                for (int k = 0; k < a.factors; k++) {
                    float gradient = value;
                    for (int j = 0; j < a.factors; j++)
                        if (j != k) gradient *= factor[j];
                    if (a.gradient[k]) a.gradient[k][offset(a.factor[k].stride)] += gradient;
                }
            }
}

} // namespace

extern "C" __attribute__((visibility("default"))) void regard_pick(const Pick *plan, void *const *pointers) {
    Pick a = *plan;
    resolve(pointers, a.y.data, a.x.data, a.value.data, a.place);
    for (int k = 0; k < a.factors; k++) resolve(pointers, a.factor[k].data, a.gradient[k]);
    bool apart = true;  // rows of axis 0 have factors of their own
    for (int k = 0; k < a.factors; k++) apart = apart && a.factor[k].stride[0];
    Index count = 1;
    for (int d = 0; d < 4; d++) count *= a.value.stride[d] ? a.size[d] : 1;
    const int threads = apart && count >= LITTLE / 8 ? a.threads : 1;
    share(a.size[0], threads, [&](Index i) { a.bfloat16 ? pick<Bfloat16>(a, i) : pick<float>(a, i); });
}
