// affine: y = map * factors + (x - about) * weight + small terms + gradients of maxima; all in one pass.
//
// The gate forward, the gradient of a map backward. Traffic: reads each map once, writes one. A result larger than the
// caches is written past them.
#include "plans.h"

SHARED(Term)
SHARED(Maximum)
SHARED(Affine)

namespace {

enum Other { NONE, SCALAR, VECTOR };

struct Row {
    float factor, constant, weight, about; // of the map, added, of x
    const float *vector[2], *added[2], *weights, *abouts;
    float coefficient[2];                  // of what is added
    int32_t base, place;                   // of the row's first number, of the one maximum that is the row's own
    float value;                           // what is added there
    const int32_t *places[2];              // of maxima along another axis, and what is added there
    const float *values[2];
    float scale[2];
};

template <int VECTORS, bool MEAN, int ADDED, int X, bool PICKS> struct Formula {
    float share;  // of a mean's factors
    int picks;    // maxima along another axis than the row

    template <class T, class Load>
    inline Vector operator()(const Row &row, const T *map, const T *x, Index r, Load load) const {
        Vector value = load(map + r);
        if (MEAN) {
            Vector factor = spread(row.factor);
            if (VECTORS > 0) factor += load(row.vector[0] + r);
            if (VECTORS > 1) factor += load(row.vector[1] + r);
            value *= factor * share;
        } else {
            value *= row.factor;
            if (VECTORS > 0) value *= load(row.vector[0] + r);
            if (VECTORS > 1) value *= load(row.vector[1] + r);
        }
        if (ADDED > 0) value += row.coefficient[0] * load(row.added[0] + r);
        if (ADDED > 1) value += row.coefficient[1] * load(row.added[1] + r);
        value += row.constant;
        if (X == SCALAR) value += row.weight * (load(x + r) - row.about);
        if (X == VECTOR) value += load(row.weights + r) * (load(x + r) - load(row.abouts + r));
        if (PICKS) {
            const Places own = LANES + (int32_t)(row.base + r);
            value += own == row.place ? spread(row.value) : Vector{};
            for (int k = 0; k < picks; k++) {
                const Places places = (Places)load((const float *)(row.places[k] + r));
                value += places == own ? load(row.values[k] + r) * row.scale[k] : Vector{};
            }
        }
        return value;
    }
};

template <class T, class F>
inline void write(const F formula, const Row row, T *y, const T *map, const T *x, Index n, bool past) {
    auto whole = [](auto *from) { return load(from); };
    auto some = [&](Index r, int m) {
        store(y + r, m, formula(row, map, x, r, [m](auto *from) { return load(from, m); }));
    };
    Index r = 0;
    if (past) {  // up to the first whole line, then line by line
        int head = (int)(-(uintptr_t)y & (sizeof(Vector) - 1)) / (int)sizeof(T);
        if (head && head < W && head < n) some(0, head), r = head;
        for (; r + W <= n; r += W) stream(y + r, formula(row, map, x, r, whole));
    } else {
        for (; r + W <= n; r += W) store(y + r, formula(row, map, x, r, whole));
    }
    if (r < n) some(r, (int)(n - r));
}

// The rows from .. to of the map, counted over its first three axes.
template <class T, int VECTORS, bool MEAN, int ADDED, int X, bool PICKS>
void rows(const Affine &a, Index from, Index to) {
    Formula<VECTORS, MEAN, ADDED, X, PICKS> formula{a.factors ? 1.0f / (float)a.factors : 1, 0};
    for (int k = 0; k < a.picks; k++) formula.picks += a.pick[k].value.stride[3] != 0;
    for (Index at = from; at < to;) {
        const Index p = at / a.size[2] % a.size[1], i = at / a.size[2] / a.size[1];
        const Index last = (at / a.size[2] + 1) * a.size[2] < to ? (at / a.size[2] + 1) * a.size[2] : to;
        auto plane = [&](const Index *stride) { return i * stride[0] + p * stride[1]; };
        T *y = (T *)a.y.data + plane(a.y.stride);
        const T *map = (const T *)a.map.data + plane(a.map.stride);
        const T *x = X ? (const T *)a.x.data + plane(a.x.stride) : nullptr;
        Row row;
        int v = 0, d = 0, scalars = 0, constants = 0;
        const float *vector[2], *scalar[3], *added[2], *constant[4][2], *coefficient[2];
        Index vector_step[2], scalar_step[3], added_step[2], constant_step[4][2], coefficient_step[2];
        const float one = 1, nothing = 0;
        for (int k = 0; k < a.factors; k++) {
            const float *data = a.factor[k].data + plane(a.factor[k].stride);
            if (a.factor[k].stride[3]) vector[v] = data, vector_step[v++] = a.factor[k].stride[2];
            else scalar[scalars] = data, scalar_step[scalars++] = a.factor[k].stride[2];
        }
        for (int k = 0; k < a.terms; k++) {
            const float *data[2] = {&one, &one};
            Index step[2] = {0, 0};
            int varies = -1;
            for (int f = 0; f < a.term[k].factors; f++) {
                data[f] = a.term[k].factor[f].data + plane(a.term[k].factor[f].stride);
                step[f] = a.term[k].factor[f].stride[2];
                if (a.term[k].factor[f].stride[3]) varies = f;
            }
            if (varies >= 0) {
                added[d] = data[varies], added_step[d] = step[varies];
                coefficient[d] = data[1 - varies], coefficient_step[d++] = step[1 - varies];
            } else {
                for (int f = 0; f < 2; f++) constant[constants][f] = data[f], constant_step[constants][f] = step[f];
                constants++;
            }
        }
        const float *weight = a.weighted ? a.weight.data + plane(a.weight.stride) : &one;
        const float *about = a.weighted ? a.about.data + plane(a.weight.stride) : &nothing;
        const Index weight_step = a.weighted ? a.weight.stride[2] : 0;
        for (Index q = at % a.size[2]; at < last; at++, q++) {
            if (PICKS) {
                row.base = (int32_t)((p * a.size[2] + q) * a.size[3]), row.place = -1, row.value = 0;
                for (int k = 0, v = 0; k < a.picks; k++) {
                    const Maximum &pick = a.pick[k];
                    const Index offset = plane(pick.value.stride) + q * pick.value.stride[2];
                    // a maximum of the row's own stands at one number of it, or in another row
                    const Index lane = pick.value.stride[3] ? 0 : pick.place[offset] - row.base;
                    if (lane < 0 || lane >= a.size[3]) continue;
                    float scale = 1;
                    for (int f = 0; f < pick.factors; f++) {
                        const Operand &o = pick.factor[f];
                        scale *= o.data[plane(o.stride) + q * o.stride[2] + lane * o.stride[3]];
                    }
                    if (pick.value.stride[3]) {
                        row.places[v] = pick.place + offset, row.values[v] = pick.value.data + offset;
                        row.scale[v++] = scale;
                    } else {
                        row.place = pick.place[offset], row.value = pick.value.data[offset] * scale;
                    }
                }
            }
            row.factor = MEAN ? 0 : 1, row.constant = 0;
            for (int k = 0; k < scalars; k++) {
                float factor = scalar[k][q * scalar_step[k]];
                row.factor = MEAN ? row.factor + factor : row.factor * factor;
            }
            for (int k = 0; k < VECTORS; k++) row.vector[k] = vector[k] + q * vector_step[k];
            for (int k = 0; k < ADDED; k++) {
                row.added[k] = added[k] + q * added_step[k];
                row.coefficient[k] = coefficient[k][q * coefficient_step[k]];
            }
            for (int k = 0; k < constants; k++)
                row.constant += constant[k][0][q * constant_step[k][0]] * constant[k][1][q * constant_step[k][1]];
            if (X == SCALAR) row.weight = weight[q * weight_step], row.about = about[q * weight_step];
            if (X == VECTOR) row.weights = weight + q * weight_step, row.abouts = about + q * weight_step;
            write(formula, row, y + q * a.y.stride[2], map + q * a.map.stride[2], X ? x + q * a.x.stride[2] : nullptr,
                  a.size[3], a.stream);
        }
    }
}

template <class T> using Rows = void (*)(const Affine &, Index, Index);

template <class T, int V, int ADDED> Rows<T> by_x(int x) {
    return x == NONE     ? rows<T, V, false, ADDED, NONE, false>
           : x == SCALAR ? rows<T, V, false, ADDED, SCALAR, false>
                         : rows<T, V, false, ADDED, VECTOR, false>;
}
template <class T, int V, int ADDED> Rows<T> by_mean(const Affine &a, int x) {
    if (a.picks) return a.mean ? rows<T, V, true, ADDED, NONE, true> : rows<T, V, false, ADDED, NONE, true>;
    return a.mean ? rows<T, V, true, ADDED, NONE, false> : by_x<T, V, ADDED>(x);
}
template <class T, int V> Rows<T> by_added(const Affine &a, int added, int x) {
    switch (added) {
    case 0: return by_mean<T, V, 0>(a, x);
    case 1: return by_mean<T, V, 1>(a, x);
    default: return by_mean<T, V, 2>(a, x);
    }
}
template <class T> Rows<T> choose(const Affine &a) {
    int vectors = 0, added = 0, x = !a.x.data ? NONE : a.weighted && a.weight.stride[3] ? VECTOR : SCALAR;
    for (int k = 0; k < a.factors; k++) vectors += a.factor[k].stride[3] != 0;
    for (int k = 0; k < a.terms; k++)
        for (int f = 0; f < a.term[k].factors; f++) added += a.term[k].factor[f].stride[3] != 0;
    switch (vectors) {
    case 0: return by_added<T, 0>(a, added, x);
    case 1: return by_added<T, 1>(a, added, x);
    default: return by_added<T, 2>(a, added, x);
    }
}

} // namespace

extern "C" __attribute__((visibility("default"))) void regard_affine(const Affine *plan, void *const *pointers) {
    Affine a = *plan;
    resolve(pointers, a.y.data, a.map.data, a.x.data, a.weight.data, a.about.data);
    for (int k = 0; k < a.factors; k++) resolve(pointers, a.factor[k].data);
    for (int k = 0; k < a.terms; k++)
        for (int f = 0; f < a.term[k].factors; f++) resolve(pointers, a.term[k].factor[f].data);
    for (int k = 0; k < a.picks; k++) {
        resolve(pointers, a.pick[k].place, a.pick[k].value.data);
        for (int f = 0; f < a.pick[k].factors; f++) resolve(pointers, a.pick[k].factor[f].data);
    }
    Index rows = a.size[0] * a.size[1] * a.size[2];
    bool small = rows * a.size[3] < LITTLE;
    Index parts = small ? 1 : rows < 8 * a.threads ? rows : 8 * a.threads;
    share(parts, small ? 1 : a.threads, [&](Index part) {
        Index from = rows * part / parts, to = rows * (part + 1) / parts;
        a.bfloat16 ? choose<Bfloat16>(a)(a, from, to) : choose<float>(a)(a, from, to);
    });
}
