// recalibrate: a map squeezed to the means of its channels, a gate made of them, and the map weighed by it.
//
// Three kernels one after the other, called from here: inside a network each call from Python costs as much as a small
// map, since nothing of it is left in the caches.
#include "gate.h"
#include "plans.h"

extern "C" {
void regard_reduce(const Reduce *, void *const *);
void regard_excite(const Excite *, void *const *);
void regard_convolve(const Convolve *, void *const *);
void regard_affine(const Affine *, void *const *);
}

struct Recalibrate {
    int32_t threads, fades, excites, unused;
    Index numel;            // batch * channels
    const float *strength;  // may be null
    float *gate, *applied;  // (batch, channels); one and the same where there is no strength
    Affine affine;          // its pointers: the first three
    Reduce reduce;          // its pointers: the two after those
    Excite excite;          // where it `excites`; its pointers: those after
    Convolve convolve;      // where it does not; likewise
};
SHARED(Recalibrate)

extern "C" __attribute__((visibility("default"))) void regard_recalibrate(const Recalibrate *plan, void *const *pointers) {
    Recalibrate a = *plan;
    resolve(pointers, a.strength, a.gate, a.applied);
    regard_reduce(&plan->reduce, pointers + 3);
    if (a.excites) regard_excite(&plan->excite, pointers + 5);
    else regard_convolve(&plan->convolve, pointers + 5);
    if (!a.excites || a.strength) {
        const Strength strength = strength_of(a);
        const Index shares = a.numel < LITTLE ? 1 : 2 * a.threads;
        share(shares, a.numel < LITTLE ? 1 : a.threads, [&](Index part) {
            const Index from = a.numel * part / shares, to = a.numel * (part + 1) / shares;
            each(to - from, [&](Index r, auto how) {
                auto g = how.load(a.gate + from + r);
                if (!a.excites) {
                    g = sigmoid(g);
                    how.store(a.gate + from + r, g);
                }
                if (a.strength) how.store(a.applied + from + r, g * strength.factor + strength.rest);
            });
        });
    }
    regard_affine(&plan->affine, pointers);
}
