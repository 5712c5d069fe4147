#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda_kernels.h"

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
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) to[i] = from[i];
    }
}

// A row's scalars; LAMB's with the ratio of the row.
template <Direction D>
__device__ __forceinline__ AdamClass class_of(const Launch& launch, const Row& row,
                                              const Span& span) {
    const AdamClass c = launch.classes[row.klass];
    if constexpr (D == Direction::lamb) return trusted(c, launch.ratios[span.row]);
    return c;
}

// -- reads w, g, v; writes saved, w and a partial slope ---------------------------------------

template <Direction D, int N, class T>
__device__ __forceinline__ double first_trial_span(T* w, const T* g, const float* v, T* saved,
                                                   std::int64_t size, const AdamClass& c) {
    double sum = 0.0;
    for (std::int64_t i = threadIdx.x * N; i < size; i += kThreads * N) {
        T ws[N], gs[N];
        float vs[N] = {};
        read(w + i, ws);
        read(g + i, gs);
        if constexpr (kHasMoments<D>) read(v + i, vs);
        write(saved + i, ws);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const float gradient = load(gs[j]);
            const float direction = tried_direction<D>(gradient, vs[j], c);
            ws[j] = Stored<T>::from(trial_point(load(ws[j]), direction, c));
            sum += gradient * direction;
        }
        write(w + i, ws);
    }
    return sum;
}

// The threads' sums, added in a tree: the same order in every run.
__device__ __forceinline__ double sum_of_block(double own) {
    __shared__ double sums[kThreads];
    sums[threadIdx.x] = own;
    __syncthreads();
#pragma unroll
    for (int half = kThreads / 2; half > 0; half /= 2) {
        if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    return sums[0];
}

template <Direction D, class T>
__global__ void __launch_bounds__(kThreads) first_trial_kernel(Launch launch, double* partials) {
    const Span span = span_of(launch.chunks, blockIdx.x, launch.n_vector, kVector<T>);
    const Row row = launch.rows[span.row];
    const AdamClass c = class_of<D>(launch, row, span);
    double sum = 0.0;
    if (row.gradient != 0) {
        T* w = reinterpret_cast<T*>(row.weight) + span.start;
        const T* g = reinterpret_cast<const T*>(row.gradient) + span.start;
        const float* v = reinterpret_cast<const float*>(row.exp_avg_sq) + span.start;
        T* saved = static_cast<T*>(launch.saved) + row.saved + span.start;
        sum = span.vectors ? first_trial_span<D, kVector<T>>(w, g, v, saved, span.size, c)
                           : first_trial_span<D, 1>(w, g, v, saved, span.size, c);
    }
    sum = sum_of_block(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum * c.slope_scale;
}

// -- reads saved, g, v; writes w --------------------------------------------------------------

template <Direction D, int N, class T>
__device__ __forceinline__ void next_trial_span(T* w, const T* g, const float* v, const T* saved,
                                                std::int64_t size, const AdamClass& c) {
    for (std::int64_t i = threadIdx.x * N; i < size; i += kThreads * N) {
        T ws[N], gs[N];
        float vs[N] = {};
        read(saved + i, ws);
        read(g + i, gs);
        if constexpr (kHasMoments<D>) read(v + i, vs);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const float direction = tried_direction<D>(load(gs[j]), vs[j], c);
            ws[j] = Stored<T>::from(trial_point(load(ws[j]), direction, c));
        }
        write(w + i, ws);
    }
}

template <Direction D, class T>
__global__ void __launch_bounds__(kThreads) next_trial_kernel(Launch launch) {
    const Span span = span_of(launch.chunks, blockIdx.x, launch.n_vector, kVector<T>);
    const Row row = launch.rows[span.row];
    if (row.gradient == 0) return;
    const AdamClass c = class_of<D>(launch, row, span);
    T* w = reinterpret_cast<T*>(row.weight) + span.start;
    const T* g = reinterpret_cast<const T*>(row.gradient) + span.start;
    const float* v = reinterpret_cast<const float*>(row.exp_avg_sq) + span.start;
    const T* saved = static_cast<const T*>(launch.saved) + row.saved + span.start;
    if (span.vectors)
        next_trial_span<D, kVector<T>>(w, g, v, saved, span.size, c);
    else
        next_trial_span<D, 1>(w, g, v, saved, span.size, c);
}

// -- reads saved or w, and g, m, v; writes m, v, w --------------------------------------------

template <int N, class T>
__device__ __forceinline__ void adam_step_span(T* w, const T* from, const T* g, float* m, float* v,
                                               std::int64_t size, const AdamClass& c) {
    for (std::int64_t i = threadIdx.x * N; i < size; i += kThreads * N) {
        T ws[N], gs[N];
        float ms[N], vs[N];
        read(from + i, ws);
        read(g + i, gs);
        read(m + i, ms);
        read(v + i, vs);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const float gradient = load(gs[j]);
            ms[j] = first_moment(ms[j], gradient, c);
            vs[j] = second_moment(vs[j], gradient, c);
            ws[j] = Stored<T>::from(stepped_weight(load(ws[j]), ms[j], vs[j], c));
        }
        write(m + i, ms);
        write(v + i, vs);
        write(w + i, ws);
    }
}

template <Direction D, class T>
__global__ void __launch_bounds__(kThreads) adam_step_kernel(Launch launch) {
    if (launch.skip != nullptr && !(*launch.skip == 0.0f)) return;  // what is no number, too
    const Span span = span_of(launch.chunks, blockIdx.x, launch.n_vector, kVector<T>);
    const Row row = launch.rows[span.row];
    if (row.gradient == 0) return;
    const AdamClass c = class_of<D>(launch, row, span);
    T* w = reinterpret_cast<T*>(row.weight) + span.start;
    const T* from = launch.saved == nullptr
                        ? w
                        : static_cast<const T*>(launch.saved) + row.saved + span.start;
    const T* g = reinterpret_cast<const T*>(row.gradient) + span.start;
    float* m = reinterpret_cast<float*>(row.exp_avg) + span.start;
    float* v = reinterpret_cast<float*>(row.exp_avg_sq) + span.start;
    if (span.vectors)
        adam_step_span<kVector<T>>(w, from, g, m, v, span.size, c);
    else
        adam_step_span<1>(w, from, g, m, v, span.size, c);
}

// -- reads saved or w, and g; writes w --------------------------------------------------------

template <int N, class T>
__device__ __forceinline__ void sgd_step_span(T* w, const T* from, const T* g, std::int64_t size,
                                              const AdamClass& c) {
    for (std::int64_t i = threadIdx.x * N; i < size; i += kThreads * N) {
        T ws[N], gs[N];
        read(from + i, ws);
        read(g + i, gs);
#pragma unroll
        for (int j = 0; j < N; ++j)
            ws[j] = Stored<T>::from(sgd_weight(load(ws[j]), load(gs[j]), c));
        write(w + i, ws);
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads) sgd_step_kernel(Launch launch) {
    if (launch.skip != nullptr && !(*launch.skip == 0.0f)) return;
    const Span span = span_of(launch.chunks, blockIdx.x, launch.n_vector, kVector<T>);
    const Row row = launch.rows[span.row];
    if (row.gradient == 0) return;
    const AdamClass c = launch.classes[row.klass];
    T* w = reinterpret_cast<T*>(row.weight) + span.start;
    const T* from = launch.saved == nullptr
                        ? w
                        : static_cast<const T*>(launch.saved) + row.saved + span.start;
    const T* g = reinterpret_cast<const T*>(row.gradient) + span.start;
    if (span.vectors)
        sgd_step_span<kVector<T>>(w, from, g, span.size, c);
    else
        sgd_step_span<1>(w, from, g, span.size, c);
}

// -- LAMB: reads w, g, m, v; adds up squares of w and u, then makes ratios of them --------------

template <int N, class T>
__device__ __forceinline__ void norms_span(const T* w, const T* g, const float* m, const float* v,
                                           std::int64_t size, const AdamClass& c, double& w_squares,
                                           double& u_squares) {
    for (std::int64_t i = threadIdx.x * N; i < size; i += kThreads * N) {
        T ws[N], gs[N];
        float ms[N], vs[N];
        read(w + i, ws);
        read(g + i, gs);
        read(m + i, ms);
        read(v + i, vs);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const float weight = load(ws[j]);
            w_squares += square(weight);
            u_squares += square(update_of(weight, load(gs[j]), ms[j], vs[j], c));
        }
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads) norms_kernel(Launch launch, double* partials) {
    const Span span = span_of(launch.chunks, blockIdx.x, launch.n_vector, kVector<T>);
    const Row row = launch.rows[span.row];
    double w_squares = 0.0, u_squares = 0.0;
    if (row.gradient != 0) {
        const AdamClass c = launch.classes[row.klass];
        const T* w = reinterpret_cast<const T*>(row.weight) + span.start;
        const T* g = reinterpret_cast<const T*>(row.gradient) + span.start;
        const float* m = reinterpret_cast<const float*>(row.exp_avg) + span.start;
        const float* v = reinterpret_cast<const float*>(row.exp_avg_sq) + span.start;
        if (span.vectors)
            norms_span<kVector<T>>(w, g, m, v, span.size, c, w_squares, u_squares);
        else
            norms_span<1>(w, g, m, v, span.size, c, w_squares, u_squares);
    }
    w_squares = sum_of_block(w_squares);
    __syncthreads();
    u_squares = sum_of_block(u_squares);
    if (threadIdx.x == 0) {
        partials[2 * blockIdx.x] = w_squares;
        partials[2 * blockIdx.x + 1] = u_squares;
    }
}

// One block for each row.
__global__ void __launch_bounds__(kThreads)
    trust_ratios_kernel(const double* partials, const std::int64_t* parts, float clip,
                        float* ratios) {
    double w_squares = 0.0, u_squares = 0.0;
    for (int kind = 0; kind < 2; ++kind) {
        const std::int64_t end = parts[4 * blockIdx.x + 2 * kind + 1];
        for (std::int64_t k = parts[4 * blockIdx.x + 2 * kind] + threadIdx.x; k < end;
             k += kThreads) {
            w_squares += partials[2 * k];
            u_squares += partials[2 * k + 1];
        }
    }
    w_squares = sum_of_block(w_squares);
    __syncthreads();
    u_squares = sum_of_block(u_squares);
    if (threadIdx.x == 0) ratios[blockIdx.x] = trust_ratio(w_squares, u_squares, clip);
}

// -- reads w, g and the weights as they were; writes a partial sum ----------------------------

template <int N, class T>
__device__ __forceinline__ double alignment_span(const T* w, const T* g, const T* start,
                                                 std::int64_t size) {
    double sum = 0.0;
    for (std::int64_t i = threadIdx.x * N; i < size; i += kThreads * N) {
        T ws[N], gs[N], starts[N];
        read(w + i, ws);
        read(g + i, gs);
        read(start + i, starts);
#pragma unroll
        for (int j = 0; j < N; ++j) sum += alignment_term(load(gs[j]), load(starts[j]), load(ws[j]));
    }
    return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    alignment_kernel(Launch launch, const std::int64_t* starts, double* partials) {
    const Span span = span_of(launch.chunks, blockIdx.x, launch.n_vector, kVector<T>);
    const Row row = launch.rows[span.row];
    const std::int64_t start_at = starts[span.row];
    double sum = 0.0;
    if (row.gradient != 0 && start_at != 0) {
        const T* w = reinterpret_cast<const T*>(row.weight) + span.start;
        const T* g = reinterpret_cast<const T*>(row.gradient) + span.start;
        const T* start = reinterpret_cast<const T*>(start_at) + span.start;
        sum = span.vectors ? alignment_span<kVector<T>>(w, g, start, span.size)
                           : alignment_span<1>(w, g, start, span.size);
    }
    sum = sum_of_block(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// -- launching --------------------------------------------------------------------------------

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    (void)cudaGetLastError();  // or the next launch that succeeds would be told of it again
    throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
}

// This library has a CUDA runtime of its own, with its own idea of the current device.
unsigned blocks_on_device(const Launch& launch) {
    check(cudaSetDevice(launch.device), "cudaSetDevice");
    if (launch.n_chunks < 1 || launch.n_chunks > 0x7fffffff)
        throw std::runtime_error("CUDA: a launch needs 1 to 2^31 - 1 chunks");
    return static_cast<unsigned>(launch.n_chunks);
}

cudaStream_t stream_of(const Launch& launch) { return static_cast<cudaStream_t>(launch.stream); }

}  // namespace

void probe(int device) {
    check(cudaSetDevice(device), "cudaSetDevice");
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, adam_step_kernel<Direction::adam, float>), "loading the kernels");
}

void first_trial(const Launch& launch, double* partials) {
    const unsigned blocks = blocks_on_device(launch);
    by_dtype(launch.dtype, [&](auto x) {
        by_direction(launch.direction, [&](auto along) {
            first_trial_kernel<along(), decltype(x)>
                <<<blocks, kThreads, 0, stream_of(launch)>>>(launch, partials);
        });
    });
    check(cudaGetLastError(), "first_trial");
}

void next_trial(const Launch& launch) {
    const unsigned blocks = blocks_on_device(launch);
    by_dtype(launch.dtype, [&](auto x) {
        by_direction(launch.direction, [&](auto along) {
            next_trial_kernel<along(), decltype(x)>
                <<<blocks, kThreads, 0, stream_of(launch)>>>(launch);
        });
    });
    check(cudaGetLastError(), "next_trial");
}

void adam_step(const Launch& launch) {
    const unsigned blocks = blocks_on_device(launch);
    by_dtype(launch.dtype, [&](auto x) {
        if (launch.direction == Direction::lamb)
            adam_step_kernel<Direction::lamb, decltype(x)>
                <<<blocks, kThreads, 0, stream_of(launch)>>>(launch);
        else
            adam_step_kernel<Direction::adam, decltype(x)>
                <<<blocks, kThreads, 0, stream_of(launch)>>>(launch);
    });
    check(cudaGetLastError(), "adam_step");
}

void sgd_step(const Launch& launch) {
    const unsigned blocks = blocks_on_device(launch);
    by_dtype(launch.dtype, [&](auto x) {
        sgd_step_kernel<decltype(x)><<<blocks, kThreads, 0, stream_of(launch)>>>(launch);
    });
    check(cudaGetLastError(), "sgd_step");
}

void trust_ratios(const Launch& launch, double* partials, const std::int64_t* parts,
                  std::int64_t n_rows, float clip, float* ratios) {
    const unsigned blocks = blocks_on_device(launch);
    by_dtype(launch.dtype, [&](auto x) {
        norms_kernel<decltype(x)><<<blocks, kThreads, 0, stream_of(launch)>>>(launch, partials);
    });
    check(cudaGetLastError(), "the norms of trust_ratios");
    trust_ratios_kernel<<<static_cast<unsigned>(n_rows), kThreads, 0, stream_of(launch)>>>(
        partials, parts, clip, ratios);
    check(cudaGetLastError(), "trust_ratios");
}

void alignment(const Launch& launch, const std::int64_t* starts, double* partials) {
    const unsigned blocks = blocks_on_device(launch);
    by_dtype(launch.dtype, [&](auto x) {
        alignment_kernel<decltype(x)>
            <<<blocks, kThreads, 0, stream_of(launch)>>>(launch, starts, partials);
    });
    check(cudaGetLastError(), "alignment");
}

}  // namespace salsa::cuda
