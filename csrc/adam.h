// Adam's direction and SaLSa's trial point, element by element; for C++ and CUDA alike.
//
// Every backend computes these expressions in this order, in IEEE fp32, with correctly rounded
// division and square root and without contraction into fma: that is why all of them give the same
// bits.  Compile with -ffp-contract=off (g++) or -fmad=false (nvcc).
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define SALSA_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define SALSA_INLINE inline __attribute__((always_inline))
#else
#define SALSA_INLINE inline
#endif

namespace salsa {

// One weight tensor: addresses of weight, gradient (0: none in this step) and moments, its place in
// the saved weights (in elements), and its class.
struct Row {
    std::int64_t weight, gradient, exp_avg, exp_avg_sq, saved, klass;
};

// The elements [start, end) of a row: one thread's or thread block's piece of work.
struct Chunk {
    std::int64_t row, start, end;
};

// What all elements of a (parameter group, step count t) share.  Computed in float64 by the host and
// rounded once; the order of the fields is that of `AdamClass` in interface.py.
struct AdamClass {
    float beta1, one_minus_beta1;
    float beta2, one_minus_beta2;
    float inv_bias1;       // 1 / (1 - beta1^t)
    float inv_root_bias2;  // 1 / sqrt(1 - beta2^t)
    float eps;
    float weight_decay;
    float step;         // what is tried, or applied: step size times the group's factor
    float slope_scale;  // the group's factor relative to the largest one
};

SALSA_INLINE float first_moment(float m, float g, const AdamClass& c) {
    return c.beta1 * m + c.one_minus_beta1 * g;
}

SALSA_INLINE float second_moment(float v, float g, const AdamClass& c) {
    return c.beta2 * v + (c.one_minus_beta2 * g) * g;
}

// sqrt(v_hat) + eps, from the second moment after this step's update.
SALSA_INLINE float preconditioner(float v, const AdamClass& c) {
    return std::sqrt(v) * c.inv_root_bias2 + c.eps;
}

// -d of equation (3): the direction of the trials has no momentum.
SALSA_INLINE float trial_direction(float g, float v_before, const AdamClass& c) {
    return g / preconditioner(second_moment(v_before, g, c), c);
}

SALSA_INLINE float trial_point(float w, float direction, const AdamClass& c) {
    return w - c.step * direction;
}

// The final write, equation (2): momentum, and decoupled weight decay inside the bracket
// (1 - lr eta lambda would round badly).  m and v are the moments after their update.
SALSA_INLINE float stepped_weight(float w, float m, float v, const AdamClass& c) {
    const float direction = (m * c.inv_bias1) / preconditioner(v, c);
    return w - c.step * (direction + c.weight_decay * w);
}

}  // namespace salsa
