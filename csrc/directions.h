// Which direction is tried and applied, known when a kernel is compiled; for C++ and CUDA alike.
#pragma once

#include <type_traits>

#include "adam.h"

namespace salsa {

enum class Direction : int { adam = 0, sgd = 1, lamb = 2 };

template <Direction D>
using Along = std::integral_constant<Direction, D>;

// Calls work(along) with an `Along<D>` of the direction that is named.
template <class Work>
auto by_direction(Direction direction, const Work& work) {
    if (direction == Direction::sgd) return work(Along<Direction::sgd>{});
    if (direction == Direction::lamb) return work(Along<Direction::lamb>{});
    return work(Along<Direction::adam>{});
}

// SGD has no moments: their addresses are 0, and nothing is read there.
template <Direction D>
constexpr bool kHasMoments = D != Direction::sgd;

// LAMB's direction is Adam's; a ratio for each row scales it (lamb.h).
template <Direction D>
constexpr Direction kUnscaled = D == Direction::lamb ? Direction::adam : D;

// -d of a trial, unscaled.  `v_before` counts for nothing where there are no moments.
template <Direction D>
SALSA_INLINE float tried_direction(float g, float v_before, const AdamClass& c) {
    if constexpr (kHasMoments<D>) {
        return trial_direction(g, v_before, c);
    } else {
        (void)v_before;
        return g;
    }
}

// SGD's final write: from a class whose decay is 0, the bits of `trial_point` (but for the sign of
// a weight that is zero).
SALSA_INLINE float sgd_weight(float w, float g, const AdamClass& c) {
    return w - c.step * (g + c.weight_decay * w);
}

}  // namespace salsa
