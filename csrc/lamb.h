// LAMB's trust ratio, one for each tensor (arXiv 2011.13584); for C++ and CUDA alike.
#pragma once

#include "adam.h"

namespace salsa {

// u, what the final write subtracts a multiple of; m and v are the moments before their update.
SALSA_INLINE float update_of(float w, float g, float m_before, float v_before, const AdamClass& c) {
    const float m = first_moment(m_before, g, c), v = second_moment(v_before, g, c);
    return (m * c.inv_bias1) / preconditioner(v, c) + c.weight_decay * w;
}

// In fp64 the square of a number of fp32 is exact.
SALSA_INLINE double square(float x) { return static_cast<double>(x) * static_cast<double>(x); }

// r = min(||w|| / ||u||, clip), of the sums of their squares; 1 where either is 0.
SALSA_INLINE float trust_ratio(double w_squares, double u_squares, float clip) {
    if (w_squares == 0.0 || u_squares == 0.0) return 1.0f;
    const float ratio = static_cast<float>(std::sqrt(w_squares) / std::sqrt(u_squares));
    return ratio > clip ? clip : ratio;
}

// The scalars of a row with this ratio: it scales what is tried and applied, and so the slope.
SALSA_INLINE AdamClass trusted(AdamClass c, float ratio) {
    c.step *= ratio;
    c.slope_scale *= ratio;
    return c;
}

}  // namespace salsa
