// What is added up over tensors beside the slope, and LAMB's ratio of it; for C++ and CUDA alike.
#pragma once

#include "directions.h"

namespace salsa {

// One element's part of <g, start - w>: how the gradient lies to the way that the weights have come;
// `start` is the weight as it was some steps ago.  The difference comes first: it is exact where the
// two are near each other.
SALSA_INLINE float alignment_term(float g, float start, float w) { return g * (start - w); }

// In fp64 the square of a number of fp32 is exact.
SALSA_INLINE double square(float x) { return static_cast<double>(x) * static_cast<double>(x); }

// LAMB's ratio of a tensor (arXiv 2011.13584),
// r = min(||w|| / ||u||, clip), of the sums of their squares; 1 where either is 0.
SALSA_INLINE float trust_ratio(double w_squares, double u_squares, float clip) {
    if (w_squares == 0.0 || u_squares == 0.0) return 1.0f;
    const float ratio = static_cast<float>(std::sqrt(w_squares) / std::sqrt(u_squares));
    return ratio > clip ? clip : ratio;
}

// A row's scalars: its ratio, where there are ratios, scales what is tried and applied, and so the
// slope.
SALSA_INLINE Scalars scalars_of(const Scalars* all, const Row& row, const float* ratios,
                                std::int64_t number) {
    Scalars c = all[row.scalars];
    if (ratios != nullptr) {
        c.size *= ratios[number];
        c.slope_scale *= ratios[number];
    }
    return c;
}

}  // namespace salsa
