#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda_kernels.h"
#include "sums.h"

// A block of threads works on one chunk.  Of an aligned chunk each thread holds one 16-byte vector of
// the weights at a time; of any other, a single element.
namespace salsa::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

// N numbers at once, 16 bytes an access where they are as many.
template <int N, class T>
__device__ __forceinline__ void read(const T* from, T (&to)[N]) {
    __builtin_assume(__isGlobal(from));  // an address from a table says not where it lies
    if constexpr (N * sizeof(T) >= 16) {
#pragma unroll
        for (int i = 0; i < static_cast<int>(N * sizeof(T) / 16); ++i) {
            const uint4 bytes = reinterpret_cast<const uint4*>(from)[i];
            memcpy(reinterpret_cast<char*>(to) + 16 * i, &bytes, 16);
        }
    } else if constexpr (N * sizeof(T) == 8) {
        const uint2 bytes = *reinterpret_cast<const uint2*>(from);
        memcpy(to, &bytes, 8);
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) to[i] = from[i];
    }
}

template <int N, class T>
__device__ __forceinline__ void write(T* to, const T (&from)[N]) {
    __builtin_assume(__isGlobal(to));
    if constexpr (N * sizeof(T) >= 16) {
#pragma unroll
        for (int i = 0; i < static_cast<int>(N * sizeof(T) / 16); ++i) {
            uint4 bytes;
            memcpy(&bytes, reinterpret_cast<const char*>(from) + 16 * i, 16);
            reinterpret_cast<uint4*>(to)[i] = bytes;
        }
    } else if constexpr (N * sizeof(T) == 8) {
        uint2 bytes;
        memcpy(&bytes, from, 8);
        *reinterpret_cast<uint2*>(to) = bytes;
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) to[i] = from[i];
    }
}

// The threads' sums, added in a tree: the same order in every run.
__device__ __forceinline__ double sum_of_block(double own) {
    __shared__ double sums[kThreads];
    __syncthreads();  // of a sum before this one
    sums[threadIdx.x] = own;
    __syncthreads();
#pragma unroll
    for (int half = kThreads / 2; half > 0; half /= 2) {
        if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    return sums[0];
}

// -- a block's chunk --------------------------------------------------------------------------

// The elements of this block's chunk: none where the row has no gradient.  `saved` counts only where
// the launch has saved weights, and of the moments those that the direction keeps.
template <class T>
struct Piece {
    T *w, *saved;
    const T* g;
    float* moments[kMostMoments];
    Row row;
    Span span;
};

template <class T>
__device__ __forceinline__ Piece<T> piece_of(const Launch& launch) {
    Piece<T> p;
    p.span = span_of(launch.chunks, blockIdx.x, launch.n_vector, kVector<T>);
    p.row = launch.rows[p.span.row];
    if (p.row.gradient == 0) p.span.size = 0;
    p.w = at<T>(p.row.weight, p.span);
    p.g = at<const T>(p.row.gradient, p.span);
    p.saved = static_cast<T*>(launch.saved) + p.row.saved + p.span.start;
#pragma unroll
    for (int k = 0; k < kMostMoments; ++k) p.moments[k] = at<float>(p.row.moments[k], p.span);
    return p;
}

template <class T>
__device__ __forceinline__ Scalars scalars_of(const Launch& launch, const Piece<T>& p) {
    return scalars_of(launch.scalars, p.row, launch.ratios, p.span.row);
}

// Calls work(n, i) for this thread's elements: n of them, from the i-th on, at a time.
template <class T, class Work>
__device__ __forceinline__ void for_each_vector(const Piece<T>& p, const Work& work) {
    const auto walk = [&](auto n) {
        constexpr int N = decltype(n)::value;
        for (std::int64_t i = threadIdx.x * N; i < p.span.size; i += kThreads * N) work(n, i);
    };
    if (p.span.vectors)
        walk(std::integral_constant<int, kVector<T>>{});
    else
        walk(std::integral_constant<int, 1>{});
}

// What a kernel moves: at a trial weights, in a step masters, too.
enum class Moves { nothing, trial, step };

// Calls each(w, g, m) for this thread's elements, with the weight as it is stored in `from`, which it
// may change, and the first kRead moments.  kSaves: those weights are written to `saved`; kMoves:
// what has become of them is written to w; the first kKept moments are written.
template <int kRead, int kKept, bool kSaves, Moves kMoves, class T, class Each>
__device__ __forceinline__ void for_each_element(const Piece<T>& p, const T* from,
                                                 const Each& each) {
    for_each_vector(p, [&](auto n, std::int64_t i) {
        constexpr int N = decltype(n)::value;
        T ws[N], gs[N];
        float moments[kMostMoments][N];
        read(from + i, ws);
        read(p.g + i, gs);
#pragma unroll
        for (int k = 0; k < kRead; ++k) read(p.moments[k] + i, moments[k]);
        if constexpr (kSaves) write(p.saved + i, ws);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            float m[kMostMoments];
#pragma unroll
            for (int k = 0; k < kRead; ++k) m[k] = moments[k][j];
            each(ws[j], load(gs[j]), m);
#pragma unroll
            for (int k = 0; k < kKept; ++k) moments[k][j] = m[k];
        }
#pragma unroll
        for (int k = 0; k < kKept; ++k) write(p.moments[k] + i, moments[k]);
        if constexpr (kMoves != Moves::nothing) write(p.w + i, ws);
    });
}

template <int N, class T>
__device__ __forceinline__ void read_numbers(const T* from, std::int64_t i, float (&to)[N]) {
    T numbers[N];
    read(from + i, numbers);
#pragma unroll
    for (int j = 0; j < N; ++j) to[j] = load(numbers[j]);
}

// Of a row's weights as they were, at this address.
template <class T>
__device__ __forceinline__ const T* start_of(const Piece<T>& p, std::int64_t address) {
    return at<const T>(address, p.span);
}

// Stores a number as what is there is stored.
template <class T>
__device__ __forceinline__ void put(T& w, float x) {
    w = Stored<T>::from(x);
}

}  // namespace
}  // namespace salsa::cuda

#include "cuda_mixed.h"  // on top of all this

namespace salsa::cuda {

// -- the kernels ------------------------------------------------------------------------------
// Outside of the nameless namespace, so that every compiler gives them the same names.

// Reads w, g and the moments of trials; writes saved, w and a partial slope.
template <class D, class T>
__global__ void __launch_bounds__(kThreads) first_trial_kernel(Launch launch, double* partials) {
    const Piece<T> p = piece_of<T>(launch);
    const Scalars c = scalars_of(launch, p);
    double sum = 0.0;
    for_each_element<D::kTried, 0, true, Moves::trial>(p, p.w, [&](auto& w, float g, float* m) {
        const float direction = D::tried(g, m, c);
        put(w, moved(load(w), direction, c));
        sum += g * direction;
    });
    sum = sum_of_block(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum * c.slope_scale;
}

// Reads saved, g and the moments of trials; writes w.
template <class D, class T>
__global__ void __launch_bounds__(kThreads) next_trial_kernel(Launch launch) {
    const Piece<T> p = piece_of<T>(launch);
    const Scalars c = scalars_of(launch, p);
    for_each_element<D::kTried, 0, false, Moves::trial>(p, p.saved, [&](auto& w, float g, float* m) {
        put(w, moved(load(w), D::tried(g, m, c), c));
    });
}

// Reads saved or w, g and the moments; writes the moments and w.
template <class D, class T>
__global__ void __launch_bounds__(kThreads) step_kernel(Launch launch) {
    if (launch.skip != nullptr && !(*launch.skip == 0.0f)) return;  // what is no number, too
    const Piece<T> p = piece_of<T>(launch);
    const Scalars c = scalars_of(launch, p);
    const auto from = launch.saved == nullptr ? p.w : p.saved;
    constexpr int kKept = D::kMoments;
    for_each_element<kKept, kKept, false, Moves::step>(p, from, [&](auto& w, float g, float* m) {
        const float weight = load(w);
        put(w, moved(weight, decayed(D::update(g, m, c), weight, c), c));
    });
}

// For LAMB: reads w, g and the moments; adds the squares of w and of the update up.
template <class D, class T>
__global__ void __launch_bounds__(kThreads) norms_kernel(Launch launch, double* partials) {
    const Piece<T> p = piece_of<T>(launch);
    const Scalars c = scalars_of(launch, p);
    double w_squares = 0.0, u_squares = 0.0;
    for_each_element<D::kMoments, 0, false, Moves::nothing>(p, p.w, [&](auto& w, float g, float* m) {
        const float weight = load(w);
        const double u = decayed(D::update(g, m, c), weight, c);
        // a square of fp32 is exact in fp64: the bits are those of a product and a sum, and a GPU
        // that does little in fp64 saves a third
        w_squares = fma(static_cast<double>(weight), static_cast<double>(weight), w_squares);
        u_squares = fma(u, u, u_squares);
    });
    w_squares = sum_of_block(w_squares);
    u_squares = sum_of_block(u_squares);
    if (threadIdx.x == 0) {
        partials[2 * blockIdx.x] = w_squares;
        partials[2 * blockIdx.x + 1] = u_squares;
    }
}

// Reads those sums; writes a ratio for each row, which has a block.
__global__ void __launch_bounds__(kThreads)
    trust_ratios_kernel(const double* partials, const std::int64_t* chunk_ranges, float clip,
                        float* ratios) {
    double w_squares = 0.0, u_squares = 0.0;
    for (int kind = 0; kind < 2; ++kind) {
        const std::int64_t* range = chunk_ranges + 4 * blockIdx.x + 2 * kind;
        for (std::int64_t k = range[0] + threadIdx.x; k < range[1]; k += kThreads) {
            w_squares += partials[2 * k];
            u_squares += partials[2 * k + 1];
        }
    }
    w_squares = sum_of_block(w_squares);
    u_squares = sum_of_block(u_squares);
    if (threadIdx.x == 0) ratios[blockIdx.x] = trust_ratio(w_squares, u_squares, clip);
}

// Reads w, g and the weights as they were; writes a partial sum.
template <class T>
__global__ void __launch_bounds__(kThreads)
    alignment_kernel(Launch launch, const std::int64_t* starts, double* partials) {
    Piece<T> p = piece_of<T>(launch);
    const std::int64_t address = starts[p.span.row];
    if (address == 0) p.span.size = 0;
    const auto start = start_of(p, address);
    double sum = 0.0;
    for_each_vector(p, [&](auto n, std::int64_t i) {
        constexpr int N = decltype(n)::value;
        float ws[N], gs[N], befores[N];
        read_numbers(p.w, i, ws);
        read_numbers(p.g, i, gs);
        read_numbers(start, i, befores);
#pragma unroll
        for (int j = 0; j < N; ++j) sum += alignment_term(gs[j], befores[j], ws[j]);
    });
    sum = sum_of_block(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// -- launching --------------------------------------------------------------------------------

namespace {

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    (void)cudaGetLastError();  // or the next launch that succeeds would be told of it again
    throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
}

template <class... Parameters, class... Arguments>
void start(const char* name, std::int64_t blocks, const Launch& launch,
           void (*kernel)(Parameters...), const Arguments&... arguments) {
    if (blocks < 1 || blocks > 0x7fffffff)
        throw std::runtime_error("CUDA: a launch needs 1 to 2^31 - 1 chunks");
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kThreads);
    config.stream = static_cast<cudaStream_t>(launch.stream);
    check(cudaLaunchKernelEx(&config, kernel, arguments...), name);
}

// Calls work(direction, x) for the direction and the dtype of a launch, on its device: this library
// has a CUDA runtime of its own, with its own idea of the current device.  Where it stores anything
// in a format of its own, x is Mixed.
template <class Work>
void on_device(const Launch& launch, const Work& work) {
    check(cudaSetDevice(launch.device), "cudaSetDevice");
    by_direction(launch.direction, [&](auto direction) {
        if (!launch.formats.plain())
            work(direction, Mixed{});
        else
            by_dtype(launch.dtype, [&](auto x) { work(direction, x); });
    });
}

}  // namespace

void probe(int device) {
    check(cudaSetDevice(device), "cudaSetDevice");
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, step_kernel<Adam, float>), "loading the kernels");
}

void first_trial(const Launch& launch, double* partials) {
    on_device(launch, [&](auto direction, auto x) {
        start("first_trial", launch.n_chunks, launch,
              first_trial_kernel<decltype(direction), decltype(x)>, launch, partials);
    });
}

void next_trial(const Launch& launch) {
    on_device(launch, [&](auto direction, auto x) {
        start("next_trial", launch.n_chunks, launch,
              next_trial_kernel<decltype(direction), decltype(x)>, launch);
    });
}

void step(const Launch& launch) {
    on_device(launch, [&](auto direction, auto x) {
        start("step", launch.n_chunks, launch, step_kernel<decltype(direction), decltype(x)>,
              launch);
    });
}

void trust_ratios(const Launch& launch, double* partials, const std::int64_t* chunk_ranges,
                  std::int64_t n_rows, float clip, float* ratios) {
    on_device(launch, [&](auto direction, auto x) {
        start("norms", launch.n_chunks, launch, norms_kernel<decltype(direction), decltype(x)>,
              launch, partials);
        start("trust_ratios", n_rows, launch, trust_ratios_kernel, partials, chunk_ranges, clip,
              ratios);
    });
}

void alignment(const Launch& launch, const std::int64_t* starts, double* partials) {
    on_device(launch, [&](auto, auto x) {
        start("alignment", launch.n_chunks, launch, alignment_kernel<decltype(x)>, launch, starts,
              partials);
    });
}

}  // namespace salsa::cuda
