// The kernels on a GPU: each is one launch for the whole model.
#pragma once

#include "chunks.h"
#include "directions.h"
#include "storage.h"

namespace salsa::cuda {

// All rows, chunks and classes of one launch; every pointer is the device's.
struct Launch {
    const Row* rows;
    const Chunk* chunks;
    std::int64_t n_chunks, n_vector;
    const AdamClass* classes;
    void* saved;        // the weights before the search, or null
    const float* skip;  // null, or one number: not 0, and no step writes anything
    Dtype dtype;
    int device;
    void* stream;
    Direction direction;  // of the trials
};

// Loads a kernel on the device: what the driver, or the GPU, has against it is thrown.
void probe(int device);

// saved <- w, w <- first trial point; one partial slope per chunk, in fp64 and in a fixed order.
void first_trial(const Launch& launch, double* partials);

// w <- next trial point, from the saved weights.
void next_trial(const Launch& launch);

// m, v, w <- after the step, from the saved weights or, where `saved` is null, in place.
void adam_step(const Launch& launch);

// w <- after the step, from the saved weights or in place.
void sgd_step(const Launch& launch);

// All throw std::runtime_error with CUDA's text where a call of its runtime fails.

}  // namespace salsa::cuda
