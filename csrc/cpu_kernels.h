// The kernels on the CPU: each is one parallel region for the whole model.
#pragma once

#include "directions.h"
#include "formats.h"

namespace salsa::cpu {

// All rows, chunks and scalars of one launch.
struct Launch {
    const Row* rows;
    const Chunk* chunks;
    std::int64_t n_chunks;
    const Scalars* scalars;
    void* saved;  // the weights before the search, or null
    Dtype dtype;
    bool past_caches;  // write past them: the launch moves more than they hold
    int threads;
    int direction;        // its place in SALSA_DIRECTIONS
    const float* ratios;  // of LAMB's rows, or null
    Formats formats;      // of moments and masters
};

// With masters these take their place: the kernels read them for the weights before the step, write
// what is rounded of them to w, and leave `saved` alone; only `step` writes masters.

// saved <- w, w <- first trial point.  Returns the slope -<g, d>, added up in fp64 in an order that
// depends on the chunks alone: one partial per chunk in `partials`, then one sum over them.
double first_trial(const Launch& launch, double* partials);

// w <- next trial point, from the saved weights.
void next_trial(const Launch& launch);

// w and the moments <- after the step, from the saved weights or, where `saved` is null, in place.
void step(const Launch& launch);

// LAMB's ratio of every row, 1 for one without gradient.  The norms are added up in fp64 in an order
// that depends on the chunks alone, a pair of partials for each; `launch.ratios` make no difference.
void trust_ratios(const Launch& launch, double* partials, float* ratios, std::int64_t n_rows,
                  float clip);

// The sum of <g, start - w> over the rows that have both; nothing is written but `partials`, one for
// each chunk.  starts: of each row the address of its weights as they were, or 0.  The order is as
// that of the slope; the scalars are not read.
double alignment(const Launch& launch, const std::int64_t* starts, double* partials);

// Asks for huge pages under fresh memory: touching it for the first time is then four times faster
// than with small ones, where a fault for every 4 KiB takes longer than the kernel. A hint only.
void advise_huge_pages(void* memory, std::int64_t bytes);

bool has_openmp();

}  // namespace salsa::cpu
