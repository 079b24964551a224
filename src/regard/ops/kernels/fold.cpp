// fold: a batch norm in evaluation mode as x * scale + shift, and what it makes of averages.
#include <cmath>
#include <cstdint>

#include "map.h"

struct Fold {
    Index channels, batch;
    double epsilon;
    const float *mean, *variance, *weight, *bias;  // weight and bias may be null
    float *scale;                                  // then shift: (2, channels)
    float *average;                                // (batch, channels), normalised in place; may be null
};

extern "C" __attribute__((visibility("default"))) void regard_fold(const Fold *plan, void *const *pointers) {
    Fold a = *plan;
    resolve(pointers, a.mean, a.variance, a.weight, a.bias, a.scale, a.average);
    float *shift = a.scale + a.channels;
    for (Index c = 0; c < a.channels; c++) {
        const float scale = (a.weight ? a.weight[c] : 1) / std::sqrt(a.variance[c] + (float)a.epsilon);
        a.scale[c] = scale;
        shift[c] = (a.bias ? a.bias[c] : 0) - a.mean[c] * scale;
    }
    for (Index b = 0; a.average && b < a.batch; b++)
        for (Index c = 0; c < a.channels; c++) {
            float &average = a.average[b * a.channels + c];
            average = average * a.scale[c] + shift[c];
        }
}
