// The table that every kernel goes over; for C++ and CUDA alike.
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

constexpr int kMostMoments = 3;  // that a direction may keep

// One weight tensor: addresses of weight, gradient (0: none in this step) and moments (in the order
// of its direction, then 0), its place in the saved weights (in elements), that of its scalars, the
// address of its master (0: none), and the parameter's number among all.
struct Row {
    std::int64_t weight, gradient, moments[kMostMoments], saved, scalars, master, number;
};

// The elements [start, end) of a row: one thread's or thread block's piece of work.
struct Chunk {
    std::int64_t row, start, end;
};

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

// Where a span begins in the tensor at this address.
template <class T>
SALSA_INLINE T* at(std::int64_t address, const Span& span) {
    return reinterpret_cast<T*>(address) + span.start;
}

}  // namespace salsa
