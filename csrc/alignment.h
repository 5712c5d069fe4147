// How the gradient lies to the way that the weights have come; for C++ and CUDA alike.
#pragma once

#include "adam.h"

namespace salsa {

// One element's part of <g, start - w>; `start` is the weight as it was some steps ago.  The
// difference comes first: it is exact where the two are near each other.
SALSA_INLINE float alignment_term(float g, float start, float w) { return g * (start - w); }

}  // namespace salsa
