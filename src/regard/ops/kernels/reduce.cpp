// reduce: what stands along some axes of a map, of a map times small factors, or of two maps multiplied.
//
// Traffic: reads each map once, however many requests there are: they take turns on a tile that stays in the first
// cache. Every number of a result is summed by one thread in one order, so that repeated calls agree to the bit.
#include "plans.h"

enum Kinds { SUM = 1, MAX = 2, PLACE = 4, SQUARES = 8, MOMENTS = 16 };

SHARED(Request)
SHARED(Reduce)

namespace {

constexpr Index LINE = 2048;   // numbers of a row of results that stay in the first cache
constexpr Index TILE = 16384;  // numbers of the map that stay in the second while the requests take turns
constexpr Index FAR = 8 << 20; // bytes of a map that comes from memory and not from the caches
constexpr Index PRODUCT = 4096; // ... in the first

// Where the results of one request go.
struct Results {
    float *sum, *max, *squares;
    int32_t *index;
};

// One request on one tile: everything at the tile's corner, and the steps from plane to plane and from row to row.
template <class T> struct Tile {
    const T *x, *other;
    Index planes, rows, columns;
    Index x_step[2], other_step[2], step[2];  // step: of the results
    Index place, place_step[2], before;
    int scalars, vectors;
    bool one_by_one;                          // short rows that come from memory
    const float *scalar[3], *vector[2];
    Index scalar_step[3][2], vector_step[2][2];
    Results to;

    float factor(Index p, Index q) const {
        float value = 1;
        for (int k = 0; k < scalars; k++) value *= scalar[k][p * scalar_step[k][0] + q * scalar_step[k][1]];
        return value;
    }
};

template <int KINDS> struct Sums {
    Vector sum = {}, max = spread(LEAST), squares = {};
    Places index = Places{} - 1;

    void add(Vector value, Places place) {
        if (KINDS & SUM) sum += value;
        if (KINDS & SQUARES) squares += value * value;
        if (KINDS & PLACE) larger(max, index, value, place);
        else if (KINDS & MAX) max = larger(max, value);
    }
    void add(Vector value, Places place, int n) {  // the first n lanes
        if (KINDS & SUM) sum += LANES < n ? value : Vector{};
        if (KINDS & SQUARES) squares += LANES < n ? value * value : Vector{};
        if (KINDS & PLACE) larger(max, index, LANES < n ? value : spread(LEAST), place);
        else if (KINDS & MAX) max = larger(max, LANES < n ? value : spread(LEAST));
    }
    void get(const Results &to, Index at) {
        if (KINDS & SUM) sum = load(to.sum + at);
        if (KINDS & SQUARES) squares = load(to.squares + at);
        if (KINDS & MAX) max = load(to.max + at);
        if (KINDS & PLACE) index = (Places)load((const float *)(to.index + at));
    }
    void get(const Results &to, Index at, int n) {
        if (KINDS & SUM) sum = load(to.sum + at, n);
        if (KINDS & SQUARES) squares = load(to.squares + at, n);
        if (KINDS & MAX) max = load(to.max + at, n);
        if (KINDS & PLACE) index = (Places)load((const float *)(to.index + at), n);
    }
    void put(const Results &to, Index at) const {
        if (KINDS & SUM) store(to.sum + at, sum);
        if (KINDS & SQUARES) store(to.squares + at, squares);
        if (KINDS & MAX) store(to.max + at, max);
        if (KINDS & PLACE) store((float *)(to.index + at), (Vector)index);
    }
    void put(const Results &to, Index at, int n) const {
        if (KINDS & SUM) store(to.sum + at, n, sum);
        if (KINDS & SQUARES) store(to.squares + at, n, squares);
        if (KINDS & MAX) store(to.max + at, n, max);
        if (KINDS & PLACE) store((float *)(to.index + at), n, (Vector)index);
    }
};

// One row of the map, of two maps multiplied, or of a map times its factors.
template <class T, bool OTHER, int VECTORS> struct Row {
    const T *x, *other;
    const float *vector[2];
    float factor;

    Row() = default;
    Row(const Tile<T> &t, Index p, Index q) : x(t.x + p * t.x_step[0] + q * t.x_step[1]), factor(t.factor(p, q)) {
        other = OTHER ? t.other + p * t.other_step[0] + q * t.other_step[1] : nullptr;
        for (int k = 0; k < VECTORS; k++) vector[k] = t.vector[k] + p * t.vector_step[k][0] + q * t.vector_step[k][1];
    }
    Vector at(Index r) const {
        Vector value = load(x + r) * factor;
        if (OTHER) value *= load(other + r);
        for (int k = 0; k < VECTORS; k++) value *= load(vector[k] + r);
        return value;
    }
    Vector at(Index r, int n) const {
        Vector value = load(x + r, n) * factor;
        if (OTHER) value *= load(other + r, n);
        for (int k = 0; k < VECTORS; k++) value *= load(vector[k] + r, n);
        return value;
    }
};

// Along the last axis: one number for each row.
template <class T, int KINDS, bool OTHER, int VECTORS> void along_rows(const Tile<T> &t) {
    for (Index p = 0; p < t.planes; p++)
        for (Index q = 0; q < t.rows; q++) {
            Row<T, OTHER, VECTORS> row(t, p, q);
            Sums<KINDS> even, odd;
            Places place = LANES + (int32_t)(t.place + p * t.place_step[0] + q * t.place_step[1]);
            Index r = 0;
            for (; r + 2 * W <= t.columns; r += 2 * W) {
                even.add(row.at(r), place + (int32_t)r);
                odd.add(row.at(r + W), place + (int32_t)(r + W));
            }
            if (r + W <= t.columns) even.add(row.at(r), place + (int32_t)r), r += W;
            if (int n = (int)(t.columns - r)) odd.add(row.at(r, n), place + (int32_t)r, n);
            Index at = p * t.step[0] + q * t.step[1];
            if (KINDS & SUM) t.to.sum[at] += sum(even.sum + odd.sum);
            if (KINDS & SQUARES) t.to.squares[at] += sum(even.squares + odd.squares);
            if (KINDS & MAX) {
                float best = max(larger(even.max, odd.max));
                if (!beats(best, t.to.max[at])) continue;
                t.to.max[at] = best;
                if (KINDS & PLACE) {
                    int32_t a = first(even.index, even.max, best), b = first(odd.index, odd.max, best);
                    t.to.index[at] = a < b ? a : b;
                }
            }
        }
}

// Rows are taken up a few at a time; short ones from memory one by one, as memory is fastest in its own order.
constexpr int FEW = 8;
constexpr Index SHORT = 512, AHEAD = 8, SOON = 128;  // memory is told of what comes so many rows, or numbers, later

// Along an axis before the last: a row of numbers, which takes up the rows of the map, some at a time. All is kept in
// local variables: for all that a compiler knows, a result may lie on what describes the tile.
template <class T, int KINDS, bool OTHER, int VECTORS, int SOME>
void add_rows(const Tile<T> &t, const Row<T, OTHER, VECTORS> *rows, const Places *places, Index at, int axis) {
    const Results to = t.to;
    const Index columns = t.columns, ahead = SOME > 1 ? SOON : AHEAD * t.x_step[axis];
    const Index other_ahead = SOME > 1 || !OTHER ? SOON : AHEAD * t.other_step[axis];
    Row<T, OTHER, VECTORS> row[SOME];
    Places place[SOME];
    for (int k = 0; k < SOME; k++) row[k] = rows[k], place[k] = places[k];
    Index r = 0;
    for (; r + W <= columns; r += W) {
        Sums<KINDS> sums;
        sums.get(to, at + r);
        for (int k = 0; k < SOME; k++) {
            __builtin_prefetch(row[k].x + r + ahead);
            if (OTHER) __builtin_prefetch(row[k].other + r + other_ahead);
            sums.add(row[k].at(r), place[k] + (int32_t)r);
        }
        sums.put(to, at + r);
    }
    if (int n = (int)(columns - r)) {
        Sums<KINDS> sums;
        sums.get(to, at + r, n);
        for (int k = 0; k < SOME; k++) sums.add(row[k].at(r, n), place[k] + (int32_t)r);
        sums.put(to, at + r, n);
    }
}

template <class T, int KINDS, bool OTHER, int VECTORS> void along_columns(const Tile<T> &t) {
    auto base = [&](Index p, Index q) {
        return LANES + (int32_t)(t.place + p * t.place_step[0] + q * t.place_step[1]);
    };
    for (Index p = 0; p < t.planes; p++) {
        Index at = p * t.step[0], q = 0;
        if (!t.step[1] && t.columns <= (t.one_by_one ? 2 : 4) * W) {  // narrow: a few columns stay in registers
            for (Index r = 0; r < t.columns; r += W) {
                int n = t.columns - r < W ? (int)(t.columns - r) : W;
                Sums<KINDS> sums;
                n == W ? sums.get(t.to, at + r) : sums.get(t.to, at + r, n);
                if (n == W)
                    for (Index q = 0; q < t.rows; q++)
                        sums.add(Row<T, OTHER, VECTORS>(t, p, q).at(r), base(p, q) + (int32_t)r);
                else
                    for (Index q = 0; q < t.rows; q++)
                        sums.add(Row<T, OTHER, VECTORS>(t, p, q).at(r, n), base(p, q) + (int32_t)r);
                n == W ? sums.put(t.to, at + r) : sums.put(t.to, at + r, n);
            }
            continue;
        }
        Row<T, OTHER, VECTORS> row[FEW];
        Places place[FEW];
        if (!t.step[1] && !t.one_by_one)
            for (; q + FEW <= t.rows; q += FEW) {
                for (int k = 0; k < FEW; k++) row[k] = Row<T, OTHER, VECTORS>(t, p, q + k), place[k] = base(p, q + k);
                add_rows<T, KINDS, OTHER, VECTORS, FEW>(t, row, place, at, 1);
            }
        for (; q < t.rows; q++) {
            row[0] = Row<T, OTHER, VECTORS>(t, p, q), place[0] = base(p, q);
            add_rows<T, KINDS, OTHER, VECTORS, 1>(t, row, place, at + q * t.step[1], 1);
        }
    }
}

// Along the planes, where neither rows nor columns are reduced: as above, a few planes at a time.
template <class T, int KINDS, bool OTHER, int VECTORS> void along_planes(const Tile<T> &t) {
    Row<T, OTHER, VECTORS> row[FEW];
    Places place[FEW];
    auto base = [&](Index p, Index q) {
        return LANES + (int32_t)(t.place + p * t.place_step[0] + q * t.place_step[1]);
    };
    Index p = 0;
    for (; !t.one_by_one && p + FEW <= t.planes; p += FEW)
        for (Index q = 0; q < t.rows; q++) {
            for (int k = 0; k < FEW; k++) row[k] = Row<T, OTHER, VECTORS>(t, p + k, q), place[k] = base(p + k, q);
            add_rows<T, KINDS, OTHER, VECTORS, FEW>(t, row, place, q * t.step[1], 0);
        }
    for (; p < t.planes; p++)
        for (Index q = 0; q < t.rows; q++) {
            row[0] = Row<T, OTHER, VECTORS>(t, p, q), place[0] = base(p, q);
            add_rows<T, KINDS, OTHER, VECTORS, 1>(t, row, place, q * t.step[1], 0);
        }
}

// One sum along the rows and one along another axis, from one reading of a tile.
template <class T, bool OTHER, int VECTORS> void along_both(const Tile<T> &rows, const Tile<T> &other) {
    for (Index p = 0; p < rows.planes; p++)
        for (Index q = 0; q < rows.rows; q++) {
            Row<T, OTHER, 0> row(rows, p, q);
            const float first = rows.factor(p, q), second = other.factor(p, q);
            const float *weight = VECTORS ? rows.vector[0] + p * rows.vector_step[0][0] + q * rows.vector_step[0][1] : nullptr;
            float *into = other.to.sum + p * other.step[0] + q * other.step[1];
            row.factor = 1;
            Vector sums = {};
            Index r = 0;
            for (; r + W <= rows.columns; r += W) {
                Vector value = row.at(r);
                sums += VECTORS ? value * load(weight + r) : value;
                store(into + r, load(into + r) + value * second);
            }
            if (int n = (int)(rows.columns - r)) {
                Vector value = row.at(r, n);
                sums += VECTORS ? value * load(weight + r, n) : value;
                store(into + r, n, load(into + r, n) + value * second);
            }
            rows.to.sum[p * rows.step[0] + q * rows.step[1]] += sum(sums) * first;
        }
}

// Mean and squared deviations, a tile at a time and then joined, so that nothing cancels.
template <class T> void moments_along_rows(const Tile<T> &t) {
    for (Index p = 0; p < t.planes; p++)
        for (Index q = 0; q < t.rows; q++) {
            const T *x = t.x + p * t.x_step[0] + q * t.x_step[1];
            Index whole = t.columns / W * W, at = p * t.step[0] + q * t.step[1];
            int n = (int)(t.columns - whole);
            Vector total = {}, squares = {};
            for (Index r = 0; r < whole; r += W) total += load(x + r);
            if (n) total += load(x + whole, n);
            float count = (float)t.columns, mean = sum(total) / count;
            total = Vector{};  // of the distances: what rounding left of the mean
            for (Index r = 0; r < whole; r += W) {
                Vector d = load(x + r) - mean;
                total += d, squares += d * d;
            }
            if (n) {
                Vector d = LANES < n ? load(x + whole, n) - mean : Vector{};
                total += d, squares += d * d;
            }
            const float rest = sum(total), left = sum(squares) - rest * rest / count, own = left < 0 ? 0 : left;
            mean += rest / count;
            float share = count / (count + (float)t.before), delta = mean - t.to.sum[at];
            t.to.sum[at] += delta * share;
            t.to.squares[at] += own + delta * delta * share * (float)t.before;
        }
}

template <class T> void moments_along_columns(const Tile<T> &t) {
    float count = (float)t.rows, share = count / (count + (float)t.before);
    for (Index p = 0; p < t.planes; p++)
        for (Index r = 0; r < t.columns; r += W) {
            int n = t.columns - r < W ? (int)(t.columns - r) : W;
            auto at = [&](Index q) {
                const T *x = t.x + p * t.x_step[0] + q * t.x_step[1] + r;
                return n == W ? load(x) : load(x, n);
            };
            Vector mean = {}, squares = {};
            for (Index q = 0; q < t.rows; q++) mean += at(q);
            mean /= count;
            Vector total = {};  // of the distances: what rounding left of the mean
            for (Index q = 0; q < t.rows; q++) {
                Vector d = at(q) - mean;
                total += d, squares += d * d;
            }
            squares -= total * total / count, mean += total / count;
            squares = squares < 0 ? Vector{} : squares;
            Sums<SUM | SQUARES> sums;
            sums.get(t.to, p * t.step[0] + r, n);
            Vector delta = mean - sums.sum;
            sums.sum += delta * share;
            sums.squares += squares + delta * delta * (share * (float)t.before);
            sums.put(t.to, p * t.step[0] + r, n);
        }
}

enum Direction { ROWS, COLUMNS, PLANES };

template <class T, int KINDS, bool OTHER, int VECTORS> void along(const Tile<T> &t, Direction direction) {
    switch (direction) {
    case ROWS: return along_rows<T, KINDS, OTHER, VECTORS>(t);
    case COLUMNS: return along_columns<T, KINDS, OTHER, VECTORS>(t);
    case PLANES: return along_planes<T, KINDS, OTHER, VECTORS>(t);
    }
}

template <class T, int KINDS, bool OTHER> void by_vectors(const Tile<T> &t, Direction direction) {
    switch (t.vectors) {
    case 0: return along<T, KINDS, OTHER, 0>(t, direction);
    case 1: return along<T, KINDS, OTHER, 1>(t, direction);
    default: return along<T, KINDS, OTHER, KINDS == SUM ? 2 : 1>(t, direction);  // plans hold two for sums only
    }
}

template <class T> void take(const Tile<T> &t, int kinds, Direction direction) {
    if (t.other) return by_vectors<T, SUM, true>(t, direction);
    switch (kinds) {
    case SUM: return by_vectors<T, SUM, false>(t, direction);
    case MAX: return by_vectors<T, MAX, false>(t, direction);
    case SUM | MAX: return by_vectors<T, SUM | MAX, false>(t, direction);
    case MAX | PLACE: return by_vectors<T, MAX | PLACE, false>(t, direction);
    case SUM | MAX | PLACE: return by_vectors<T, SUM | MAX | PLACE, false>(t, direction);
    case SQUARES: return by_vectors<T, SQUARES, false>(t, direction);
    case MOMENTS: return direction == ROWS ? moments_along_rows(t) : moments_along_columns(t);
    }
}

// The same where a row is a few vectors: what goes down the columns stays in registers.
template <class T, bool OTHER, int VECTORS, int SOME> void along_narrow(const Tile<T> &rows, const Tile<T> &other) {
    const int n = (int)(rows.columns - (SOME - 1) * W);
    auto at = [n](const auto *from, int k) { return k < SOME - 1 ? load(from + k * W) : load(from + k * W, n); };
    for (Index p = 0; p < rows.planes; p++) {
        const T *x = rows.x + p * rows.x_step[0], *y = OTHER ? rows.other + p * rows.other_step[0] : nullptr;
        const float *weight = VECTORS ? rows.vector[0] + p * rows.vector_step[0][0] : nullptr;
        float *into = rows.to.sum + p * rows.step[0];
        Vector down[SOME] = {};
        for (Index q = 0; q < rows.rows; q++) {
            const float first = rows.factor(p, q), second = other.factor(p, q);
            Vector across = {};
            for (int k = 0; k < SOME; k++) {
                Vector value = OTHER ? at(x, k) * at(y, k) : at(x, k);
                across += VECTORS ? value * at(weight, k) : value;
                down[k] += value * second;
            }
            *into += sum(across) * first;
            x += rows.x_step[1], into += rows.step[1];
            if (OTHER) y += rows.other_step[1];
            if (VECTORS) weight += rows.vector_step[0][1];
        }
        float *to = other.to.sum + p * other.step[0];
        for (int k = 0; k < SOME; k++)
            if (k < SOME - 1) store(to + k * W, load(to + k * W) + down[k]);
            else store(to + k * W, n, load(to + k * W, n) + down[k]);
    }
}

// Whether two requests can be answered together, the one along the rows first.
template <class T> bool both(const Tile<T> &a, Direction one, int kinds, const Tile<T> &b, Direction two, int others) {
    return kinds == SUM && others == SUM && one == ROWS && two != ROWS && a.vectors <= 1 && b.vectors == 0;
}

template <class T, bool OTHER, int VECTORS> void take_both(const Tile<T> &rows, const Tile<T> &other) {
    switch (other.step[1] ? 0 : (rows.columns + W - 1) / W) {
    case 1: return along_narrow<T, OTHER, VECTORS, 1>(rows, other);
    case 2: return along_narrow<T, OTHER, VECTORS, 2>(rows, other);
    case 3: return along_narrow<T, OTHER, VECTORS, 3>(rows, other);
    case 4: return along_narrow<T, OTHER, VECTORS, 4>(rows, other);
    default: return along_both<T, OTHER, VECTORS>(rows, other);
    }
}

template <class T> void take_both(const Tile<T> &rows, const Tile<T> &other) {
    if (rows.other) rows.vectors ? take_both<T, true, 1>(rows, other) : take_both<T, true, 0>(rows, other);
    else rows.vectors ? take_both<T, false, 1>(rows, other) : take_both<T, false, 0>(rows, other);
}

struct Range {
    Index from, to;
    Index size() const { return to - from; }
};

inline Index least(Index a, Index b) { return a < b ? a : b; }

// In pieces of nearly the same size, none above `most`.
inline Index even(Index size, Index most) {
    Index pieces = (size + most - 1) / most;
    return pieces > 1 ? (size + pieces - 1) / pieces : size;
}

// What a request is about, from one corner of the map on.
template <class T> Tile<T> at_corner(const Reduce &a, const Request &request, const Index corner[4]) {
    auto offset = [&](const Index *stride) {
        Index sum = 0;
        for (int d = 0; d < 4; d++) sum += corner[d] * stride[d];
        return sum;
    };
    auto copy = [](Index *to, const Index *stride) { to[0] = stride[1], to[1] = stride[2]; };
    Tile<T> t;
    t.x = (const T *)a.x.data + offset(a.x.stride);
    copy(t.x_step, a.x.stride);
    t.other = a.other.data ? (const T *)a.other.data + offset(a.other.stride) : nullptr;
    copy(t.other_step, a.other.stride);
    t.place = (corner[1] * a.size[2] + corner[2]) * a.size[3] + corner[3];
    t.place_step[0] = a.size[2] * a.size[3], t.place_step[1] = a.size[3];
    t.one_by_one = a.size[0] * a.size[1] * a.size[2] * a.size[3] * sizeof(T) >= FAR && a.size[3] < SHORT;
    t.before = request.stride[3] ? corner[2] : corner[3];
    t.scalars = t.vectors = 0;
    for (int f = 0; f < request.factors; f++) {
        const Operand &o = request.factor[f];
        const float *at = o.data + offset(o.stride);
        if (o.stride[3]) t.vector[t.vectors] = at, copy(t.vector_step[t.vectors++], o.stride);
        else t.scalar[t.scalars] = at, copy(t.scalar_step[t.scalars++], o.stride);
    }
    const Index at = offset(request.stride);
    t.to = {request.sum + at, request.max + at, request.squares + at, request.place + at};
    copy(t.step, request.stride);
    return t;
}

// Many requests about two maps multiplied: the product is kept in the first cache meanwhile.
template <class T> void take_product(const Reduce &a, const Tile<T> *tile, const Direction *direction) {
    alignas(64) float product[PRODUCT + W];
    const Tile<T> &t = *tile;
    float *to = product;
    for (Index p = 0; p < t.planes; p++)
        for (Index q = 0; q < t.rows; q++, to += t.columns) {
            const T *x = t.x + p * t.x_step[0] + q * t.x_step[1];
            const T *other = t.other + p * t.other_step[0] + q * t.other_step[1];
            Index r = 0;
            for (; r + W <= t.columns; r += W) store(to + r, load(x + r) * load(other + r));
            if (int n = (int)(t.columns - r)) store(to + r, n, load(x + r, n) * load(other + r, n));
        }
    for (int k = 0; k < a.requests; k++) {
        Tile<float> of;
        static_assert(sizeof of == sizeof t, "tiles differ in the type of the map alone");
        std::memcpy((void *)&of, (const void *)&tile[k], sizeof of);
        of.x = product, of.other = nullptr;
        of.x_step[0] = t.rows * t.columns, of.x_step[1] = t.columns;
        take(of, SUM, direction[k]);
    }
}

template <class T> void reduce(const Reduce &a, const Range range[4]) {
    // several requests take turns on a tile; one alone only keeps its row of results in the cache
    Index columns = range[3].size(), rows = range[2].size(), planes = range[1].size();
    const Request &only = a.request[0];
    if (a.requests > 1 || (only.kinds & MOMENTS)) {
        const Index most = a.other.data && a.requests > 2 ? PRODUCT : TILE;
        columns = even(columns, least(most, TILE / 4));
        rows = even(rows, least(most, TILE / 4) / columns ? least(most, TILE / 4) / columns : 1);
        planes = least(planes, most / columns / rows ? most / columns / rows : 1);
    } else if (only.stride[3]) {
        columns = even(columns, LINE);
        if (only.stride[2]) rows = even(rows, LINE / columns ? LINE / columns : 1);
    }
    for (Index i = range[0].from; i < range[0].to; i++)
        for (Index q = range[2].from; q < range[2].to; q += rows)
            for (Index r = range[3].from; r < range[3].to; r += columns)
                for (Index p = range[1].from; p < range[1].to; p += planes) {
                    const Index corner[4] = {i, p, q, r};
                    Tile<T> tile[6];
                    Direction direction[6];
                    for (int k = 0; k < a.requests; k++) {
                        tile[k] = at_corner<T>(a, a.request[k], corner);
                        tile[k].planes = least(planes, range[1].to - p);
                        tile[k].rows = least(rows, range[2].to - q);
                        tile[k].columns = least(columns, range[3].to - r);
                        const Index *s = a.request[k].stride;
                        direction[k] = !s[3] ? ROWS : s[2] || tile[k].rows == 1 ? PLANES : COLUMNS;
                    }
                    int kinds = a.request[0].kinds, others = a.request[1].kinds;
                    if (a.requests == 2 && both(tile[0], direction[0], kinds, tile[1], direction[1], others))
                        take_both(tile[0], tile[1]);
                    else if (a.requests == 2 && both(tile[1], direction[1], others, tile[0], direction[0], kinds))
                        take_both(tile[1], tile[0]);
                    else if (a.other.data && a.requests > 2)
                        take_product(a, tile, direction);
                    else
                        for (int k = 0; k < a.requests; k++) take(tile[k], a.request[k].kinds, direction[k]);
                }
}

// Where nothing is above minus infinity, the first number counts as the maximum.
void settle(const Reduce &a, const Request &request) {
    const Index *s = request.stride;
    Index kept[4];
    for (int d = 0; d < 4; d++) kept[d] = s[d] ? a.size[d] : 1;
    for (Index i = 0; i < kept[0]; i++)
        for (Index p = 0; p < kept[1]; p++)
            for (Index q = 0; q < kept[2]; q++)
                for (Index r = 0; r < kept[3]; r++) {
                    int32_t &place = request.place[i * s[0] + p * s[1] + q * s[2] + r * s[3]];
                    if (place < 0) place = (int32_t)((p * a.size[2] + q) * a.size[3] + r);
                }
}

} // namespace

extern "C" __attribute__((visibility("default"))) void regard_reduce(const Reduce *plan, void *const *pointers) {
    Reduce a = *plan;
    resolve(pointers, a.x.data, a.other.data);
    for (int k = 0; k < a.requests; k++) {
        Request &request = a.request[k];
        resolve(pointers, request.sum, request.max, request.place, request.squares);
        for (int f = 0; f < request.factors; f++) resolve(pointers, request.factor[f].data);
    }
    for (int k = 0; k < a.requests; k++) {
        const Request &request = a.request[k];
        for (Index i = 0; i < request.numel; i++) {
            if (request.kinds & (SUM | MOMENTS)) request.sum[i] = 0;
            if (request.kinds & (SQUARES | MOMENTS)) request.squares[i] = 0;
            if (request.kinds & MAX) request.max[i] = LEAST;
            if (request.kinds & PLACE) request.place[i] = -1;
        }
    }
    // an axis that every request keeps may be shared out among threads
    int axis = -1;
    Index total = 1, parts = 1;
    for (int d = 0; d < 4; d++) total *= a.size[d];
    if (a.threads > 1 && total >= LITTLE) {
        Index most = total / (LITTLE / 4) < 4 * a.threads ? total / (LITTLE / 4) : 4 * a.threads;
        for (int d = 0; d < 4; d++) {
            bool kept = true;
            for (int k = 0; k < a.requests; k++) kept = kept && (a.request[k].stride[d] || a.size[d] == 1);
            Index fit = d == 3 ? a.size[d] / W : a.size[d];
            if (fit > most) fit = most;
            if (kept && fit > parts) axis = d, parts = fit;
        }
    }
    share(parts, a.threads, [&](Index part) {
        Range range[4];
        for (int d = 0; d < 4; d++) range[d] = {0, a.size[d]};
        if (axis >= 0) {
            Index unit = axis == 3 ? W : 1, units = (a.size[axis] + unit - 1) / unit;
            range[axis] = {units * part / parts * unit, units * (part + 1) / parts * unit};
            if (range[axis].to > a.size[axis]) range[axis].to = a.size[axis];
        }
        a.bfloat16 ? reduce<Bfloat16>(a, range) : reduce<float>(a, range);
    });
    for (int k = 0; k < a.requests; k++)
        if (a.request[k].kinds & PLACE) settle(a, a.request[k]);
    for (int k = 0; k < a.requests; k++)
        if (a.request[k].count != 1)
            for (Index i = 0; i < a.request[k].numel; i++) a.request[k].sum[i] /= a.request[k].count;
}
