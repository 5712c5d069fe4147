// From a place in the chunk list to elements of a row; for C++ and CUDA alike.
#pragma once

#include "adam.h"

namespace salsa {

// Elements [start, start + size) of a row.  `vectors`: they begin where a vector may begin in all of
// the row's tensors, and are a whole number of vectors.
struct Span {
    std::int64_t row, start, size;
    bool vectors;
};

// The first `n_vector` chunks are counted in vectors of `length` elements, the rest in elements.
SALSA_INLINE Span span_of(const Chunk* chunks, std::int64_t k, std::int64_t n_vector,
                          std::int64_t length) {
    const Chunk& chunk = chunks[k];
    const bool vectors = k < n_vector;
    const std::int64_t unit = vectors ? length : 1;
    return {chunk.row, chunk.start * unit, (chunk.end - chunk.start) * unit, vectors};
}

}  // namespace salsa
