// Rows with masters, or with moments in bf16 (formats.h); a part of cuda_kernels.cu.  The launch says
// how each tensor is stored, the same for all threads, so that one kernel of a direction serves all.
#pragma once

namespace salsa::cuda {

struct Mixed {};  // in the place of the weights' type

namespace {

// 16 bytes of fp32, 8 of the rest: both divide what a chunk of vectors holds.
template <>
constexpr int kVector<Mixed> = 4;

// A tensor from some element on.
struct Place {
    Dtype dtype;
    std::int64_t address;
};

__device__ __forceinline__ Place place_of(Dtype dtype, std::int64_t tensor, std::int64_t element) {
    return {dtype, tensor + element * (dtype == Dtype::fp32 ? 4 : 2)};
}

template <int N>
__device__ __forceinline__ void read_numbers(const Place& from, std::int64_t i, float (&to)[N]) {
    if (from.dtype == Dtype::fp32) return read(reinterpret_cast<const float*>(from.address) + i, to);
    std::uint16_t halves[N];
    read(reinterpret_cast<const std::uint16_t*>(from.address) + i, halves);
#pragma unroll
    for (int j = 0; j < N; ++j)
        to[j] = from.dtype == Dtype::bf16 ? load(bf16{halves[j]}) : load(fp16{halves[j]});
}

// Rounds to nearest.
template <int N>
__device__ __forceinline__ void write_numbers(const Place& to, std::int64_t i,
                                              const float (&from)[N]) {
    if (to.dtype == Dtype::fp32) return write(reinterpret_cast<float*>(to.address) + i, from);
    std::uint16_t halves[N];
#pragma unroll
    for (int j = 0; j < N; ++j)
        halves[j] = to.dtype == Dtype::bf16 ? Stored<bf16>::from(from[j]).bits
                                            : Stored<fp16>::from(from[j]).bits;
    write(reinterpret_cast<std::uint16_t*>(to.address) + i, halves);
}

template <>
struct Piece<Mixed> {
    Place w, saved;  // both are the master where there is one
    Place rounded;   // the weight
    Place g, moments[kMostMoments];
    Row row;
    Span span;
    Formats formats;
    const Scalars* scalars;
};

template <>
__device__ __forceinline__ Piece<Mixed> piece_of<Mixed>(const Launch& launch) {
    Piece<Mixed> p;
    const Dtype dtype = launch.dtype;
    p.span = span_of(launch.chunks, blockIdx.x, launch.n_vector, dtype == Dtype::fp32 ? 4 : 8);
    p.row = launch.rows[p.span.row];
    p.formats = launch.formats;
    p.scalars = launch.scalars + p.row.scalars;
    const std::int64_t start = p.span.start;
    if (p.row.gradient == 0) p.span.size = 0;
    p.rounded = p.w = place_of(dtype, p.row.weight, start);
    p.g = place_of(dtype, p.row.gradient, start);
    p.saved = place_of(dtype, reinterpret_cast<std::int64_t>(launch.saved), p.row.saved + start);
    if (p.formats.masters()) p.saved = p.w = place_of(Dtype::fp32, p.row.master, start);
#pragma unroll
    for (int k = 0; k < kMostMoments; ++k)
        p.moments[k] = place_of(p.formats.of_moment(k), p.row.moments[k], start);
    return p;
}

__device__ __forceinline__ Place start_of(const Piece<Mixed>& p, std::int64_t address) {
    return place_of(p.w.dtype, address, p.span.start);
}

// See above.
template <int kRead, int kKept, bool kSaves, Moves kMoves, class Each>
__device__ __forceinline__ void for_each_element(const Piece<Mixed>& p, const Place& from,
                                                 const Each& each) {
    const bool draws = kKept > 0 && p.formats.code > 1;
    const std::uint32_t key = draws ? key_of(p.row.number, p.scalars->t) : 0;
    for_each_vector(p, [&](auto n, std::int64_t i) {
        constexpr int N = decltype(n)::value;
        float ws[N], gs[N], moments[kMostMoments][N];
        read_numbers(from, i, ws);
        read_numbers(p.g, i, gs);
#pragma unroll
        for (int k = 0; k < kRead; ++k) read_numbers(p.moments[k], i, moments[k]);
        if (kSaves && !p.formats.masters()) write_numbers(p.saved, i, ws);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            float m[kMostMoments];
#pragma unroll
            for (int k = 0; k < kRead; ++k) m[k] = moments[k][j];
            each(ws[j], gs[j], m);
#pragma unroll
            for (int k = 0; k < kKept; ++k) moments[k][j] = m[k];
        }
#pragma unroll
        for (int k = 0; k < kKept; ++k) {
            if (p.moments[k].dtype == Dtype::fp32) {
                write_numbers(p.moments[k], i, moments[k]);
                continue;
            }
            bf16 halves[N];
#pragma unroll
            for (int j = 0; j < N; ++j) {
                const auto index = static_cast<std::uint32_t>(p.span.start + i + j);
                const std::uint32_t random = random_bits(key, index) >> bits_of_moment(k);
                halves[j] = rounded_at_random(moments[k][j], random & 0xffffu);
            }
            write(reinterpret_cast<bf16*>(p.moments[k].address) + i, halves);
        }
        if (kMoves == Moves::step && p.formats.masters()) write_numbers(p.w, i, ws);
        if (kMoves != Moves::nothing) write_numbers(p.rounded, i, ws);
    });
}

}  // namespace
}  // namespace salsa::cuda
