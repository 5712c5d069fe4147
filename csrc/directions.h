// The directions: what each keeps of a weight, what its trials go along, and how it steps.  One
// struct is one direction; every kernel, on the CPU and on a GPU, is written once for any of them.
// To add one, write its struct, enter it in SALSA_DIRECTIONS, and describe it in directions.py.
//
// Every backend computes these expressions in this order, in IEEE fp32, with correctly rounded
// division and square root and without contraction into fma: that is why all of them give the same
// bits.  Compile with -ffp-contract=off (g++) or -fmad=false (nvcc).
#pragma once

#include <stdexcept>

#include "rows.h"

namespace salsa {

// What all elements of a (parameter group, step count t) share.  Computed in float64 by the host and
// rounded once; the order of the fields is that of `Scalars` in directions.py.
struct Scalars {
    float beta1, one_minus_beta1;
    float beta2, one_minus_beta2;
    float inv_bias1;       // 1 / (1 - beta1^t)
    float inv_root_bias2;  // 1 / sqrt(1 - beta2^t)
    float eps;
    float weight_decay;
    float size;         // what is tried, or applied: step size times the group's factor
    float slope_scale;  // the group's factor relative to the largest one
    float slow_beta, one_minus_slow_beta;
    float alpha;  // how much AdEMAMix's slow mean counts beside the fast one
    float t;      // where a moment is rounded at random
};

SALSA_INLINE float first_moment(float m, float g, const Scalars& c) {
    return c.beta1 * m + c.one_minus_beta1 * g;
}

SALSA_INLINE float second_moment(float v, float g, const Scalars& c) {
    return c.beta2 * v + (c.one_minus_beta2 * g) * g;
}

// sqrt(v_hat) + eps, from the second moment after this step's update.
SALSA_INLINE float preconditioner(float v, const Scalars& c) {
    return std::sqrt(v) * c.inv_root_bias2 + c.eps;
}

// 0, and what is not a number, stay as they are.
SALSA_INLINE float sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; }

// A trial's point, and the step's.
SALSA_INLINE float moved(float w, float by, const Scalars& c) { return w - c.size * by; }

// What the step subtracts: the update with decay, inside the bracket of equation (2), for
// 1 - size * decay would round badly.
SALSA_INLINE float decayed(float update, float w, const Scalars& c) {
    return update + c.weight_decay * w;
}

// Of a direction:
//   kMoments         how many moments it keeps, those that its trials read first
//   kTried           how many these are
//   tried(g, m, c)   -d of the trials, without momentum; the moments stay
//   update(g, m, c)  what the step subtracts before decay; the moments m become the new ones

// -d of equation (3), and equation (2).
struct Adam {
    static constexpr int kMoments = 2, kTried = 1;  // exp_avg_sq, exp_avg

    static SALSA_INLINE float tried(float g, const float* m, const Scalars& c) {
        return g / preconditioner(second_moment(m[0], g, c), c);
    }
    static SALSA_INLINE float update(float g, float* m, const Scalars& c) {
        m[0] = second_moment(m[0], g, c);
        m[1] = first_moment(m[1], g, c);
        return (m[1] * c.inv_bias1) / preconditioner(m[0], c);
    }
};

struct Sgd {
    static constexpr int kMoments = 0, kTried = 0;

    static SALSA_INLINE float tried(float g, const float*, const Scalars&) { return g; }

    static SALSA_INLINE float update(float g, float*, const Scalars&) { return g; }
};

// arXiv 2302.06675
struct Lion {
    static constexpr int kMoments = 1, kTried = 0;  // exp_avg

    static SALSA_INLINE float tried(float g, const float*, const Scalars&) { return sign(g); }

    static SALSA_INLINE float update(float g, float* m, const Scalars& c) {
        const float x = first_moment(m[0], g, c);
        m[0] = c.beta2 * m[0] + c.one_minus_beta2 * g;
        return sign(x);
    }
};

// arXiv 2409.03137; its trials are Adam's.
struct AdEMAMix : Adam {
    static constexpr int kMoments = 3;  // exp_avg_sq, exp_avg, exp_avg_slow

    static SALSA_INLINE float update(float g, float* m, const Scalars& c) {
        m[0] = second_moment(m[0], g, c);
        m[1] = first_moment(m[1], g, c);
        m[2] = c.slow_beta * m[2] + c.one_minus_slow_beta * g;
        return (m[1] * c.inv_bias1 + c.alpha * m[2]) / preconditioner(m[0], c);
    }
};

// Each with its place in `DIRECTIONS` of directions.py, by which the host names it.  LAMB, 2, has no
// struct: it is Adam, scaled row by row (sums.h).
#define SALSA_DIRECTIONS(X) X(Adam, 0) X(Sgd, 1) X(Lion, 3) X(AdEMAMix, 4)

#define SALSA_COUNT(D, place) +1
constexpr int kDirections = 0 SALSA_DIRECTIONS(SALSA_COUNT);

// Calls work(D{}) with the struct of a direction.
template <class Work>
void by_direction(int place, const Work& work) {
    switch (place) {
#define SALSA_CASE(D, number) \
    case number: return work(D{});
        SALSA_DIRECTIONS(SALSA_CASE)
#undef SALSA_CASE
        default: throw std::runtime_error("a direction without a struct");
    }
}

}  // namespace salsa
