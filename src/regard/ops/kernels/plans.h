// The plans of the kernels that another one calls; every struct is as in interface.py.
#pragma once
#include "map.h"

struct Request {
    int32_t kinds;
    int32_t factors;
    Operand factor[3];
    float *sum;      // or the mean, with MOMENTS
    float *max;
    int32_t *place;  // of the first maximum, counted from the start of its row of axis 0
    float *squares;  // or the sum of squared deviations, with MOMENTS
    Index stride[4]; // of the results; 0 along what is reduced
    Index numel;
    float count;     // divides the sum at the end
    int32_t unused;
};

struct Reduce {
    int32_t bfloat16, threads, requests, unused;
    Index size[4];
    Map x, other;  // other.data may be null
    Request request[6];
};

struct Excite {
    int32_t threads, inputs;
    Index batch, channels, hidden;
    float *gate;               // (batch, channels)
    const float *squeezed[4];  // (batch, channels) each
    const float *down, *down_bias, *up, *up_bias;
    float *activations;        // (inputs, batch, hidden); may be null
};

struct Convolve {
    int32_t threads, channels, batch, unused;
    Index height, width, rows, columns;  // of the map, of the kernel
    const float *x, *weight, *dy;        // dense: (batch, channels, height, width), (channels, rows, columns), ...
    float *y, *dx, *dweight;             // dweight: (batch, channels, rows, columns), to be added up
};

struct Term {
    int32_t factors, unused;
    Operand factor[2];  // a product, of which at most one has numbers along the last axis
};

struct Maximum {
    int32_t factors, unused;
    const int32_t *place;  // of a maximum, counted from the start of its image; laid out like value
    Operand value;         // what is added there, times the factors there
    Operand factor[2];
};

struct Affine {
    int32_t bfloat16, threads, factors, mean, terms, stream, weighted, picks;
    Index size[4];
    Map y, map, x;  // x.data may be null
    Operand factor[3], weight, about;  // laid out alike
    Term term[4];
    Maximum pick[3];
};
