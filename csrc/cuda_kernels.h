// The kernels on a GPU: each is one launch for the whole model.
#pragma once

#include "alignment.h"
#include "chunks.h"
#include "directions.h"
#include "lamb.h"
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
    Direction direction;  // of the trials, and of adam_step whether it is LAMB's
    const float* ratios;  // of LAMB's rows, else not read
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

// LAMB's ratio of every row, 1 for one without gradient.  The norms are added up in fp64 in a fixed
// order: a pair of partials for each chunk, then all of a row's.  parts: of each row four numbers,
// where its vector chunks begin and end, and where its other chunks do.
void trust_ratios(const Launch& launch, double* partials, const std::int64_t* parts,
                  std::int64_t n_rows, float clip, float* ratios);

// <g, start - w> of the rows that have both, 0 of all others; one partial for each chunk, in fp64 and
// in a fixed order.  starts: of each row the address of its weights as they were, or 0.  The classes
// are not read.
void alignment(const Launch& launch, const std::int64_t* starts, double* partials);

// All throw std::runtime_error with CUDA's text where a call of its runtime fails.

}  // namespace salsa::cuda
