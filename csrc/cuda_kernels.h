// The kernels on a GPU: each is one launch for the whole model.
#pragma once

#include "directions.h"
#include "formats.h"

namespace salsa::cuda {

// All rows, chunks and scalars of one launch; every pointer is the device's.
struct Launch {
    const Row* rows;
    const Chunk* chunks;
    std::int64_t n_chunks, n_vector;
    const Scalars* scalars;
    void* saved;        // the weights before the search, or null
    const float* skip;  // null, or one number: not 0, and no step writes anything
    Dtype dtype;
    int device;
    void* stream;
    int direction;        // its place in SALSA_DIRECTIONS
    const float* ratios;  // of LAMB's rows, or null
    Formats formats;      // of moments and masters
};

// Loads a kernel on the device.  This and all others throw std::runtime_error with CUDA's text.
void probe(int device);

// These are as in cpu_kernels.h, but for the last sum: `partials` has a number in fp64 for each chunk
// (two for trust_ratios), added up in a fixed order.
void first_trial(const Launch& launch, double* partials);
void next_trial(const Launch& launch);
void step(const Launch& launch);
void alignment(const Launch& launch, const std::int64_t* starts, double* partials);

// chunk_ranges: of each row four numbers, where its vector chunks begin and end, and where its other
// chunks do.
void trust_ratios(const Launch& launch, double* partials, const std::int64_t* chunk_ranges,
                  std::int64_t n_rows, float clip, float* ratios);

}  // namespace salsa::cuda
