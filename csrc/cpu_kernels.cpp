#include "cpu_kernels.h"

#include <cstring>


#if defined(__SSE2__)
#include <emmintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

// One binary for every x86-64: the loader picks the widest instruction set that the CPU has.  The
// clones differ in speed, never in bits.
#if defined(SALSA_CLONES)
// given on the command line: the tests build each instruction set alone
#elif defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define SALSA_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SALSA_CLONES
#endif

#define SALSA_RESTRICT __restrict

namespace salsa::cpu {
namespace {

constexpr int kLanes = 16;   // running sums, side by side in vector registers
constexpr int kBlock = 512;  // elements that stay in the first cache while they are worked on
constexpr int kBurst = 64;   // elements that are streamed at a time between reads: more, and they wait

// Writes past the caches where `stream` says that the model is larger than they are: the line need
// not be read first, and nothing useful is evicted.
template <class T>
SALSA_INLINE void write_block(T* to, const T* from, int n, bool stream) {
#if defined(__SSE2__)
    if (stream) {
        int i = 0;
        for (; i < n && reinterpret_cast<std::uintptr_t>(to + i) % 16 != 0; ++i) to[i] = from[i];
        constexpr int kStep = 16 / sizeof(T);
        for (; i + kStep <= n; i += kStep)
            _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                             _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
        for (; i < n; ++i) to[i] = from[i];
        return;
    }
#endif
    (void)stream;
    std::memcpy(to, from, n * sizeof(T));
}

// Orders streamed writes before everything that follows.
SALSA_INLINE void end_writes(bool stream) {
#if defined(__SSE2__)
    if (stream) _mm_sfence();
#endif
    (void)stream;
}

// Adds numbers up in `kLanes` sums side by side; which one takes which depends on their place alone.
SALSA_INLINE void add_up(double (&lanes)[kLanes], const float* numbers, int n) {
    int i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += numbers[i + lane];
    for (; i < n; ++i) lanes[i % kLanes] += numbers[i];
}

// One after the other, in this order.
SALSA_INLINE double total(const double* numbers, std::int64_t n) {
    double sum = 0.0;
    for (std::int64_t i = 0; i < n; ++i) sum += numbers[i];
    return sum;
}

template <Direction D>
SALSA_INLINE float at_index(const float* SALSA_RESTRICT moment, std::int64_t i) {
    if constexpr (kHasMoments<D>) return moment[i];
    return 0.0f;
}

template <Direction D, class T>
SALSA_INLINE double first_trial_loop(T* SALSA_RESTRICT w, const T* SALSA_RESTRICT g,
                                     const float* SALSA_RESTRICT v, T* SALSA_RESTRICT saved,
                                     std::int64_t n, const AdamClass& c, bool stream) {
    float products[kBlock];
    double lanes[kLanes] = {};
    for (std::int64_t base = 0; base < n; base += kBlock) {
        const int m = static_cast<int>(n - base < kBlock ? n - base : kBlock);
        write_block(saved + base, w + base, m, stream);  // first: it also fetches w
        for (int i = 0; i < m; ++i) {
            const float gradient = load(g[base + i]);
            const float direction = tried_direction<D>(gradient, at_index<D>(v, base + i), c);
            w[base + i] = Stored<T>::from(trial_point(load(w[base + i]), direction, c));
            products[i] = gradient * direction;
        }
        add_up(lanes, products, m);
    }
    end_writes(stream);
    return total(lanes, kLanes) * c.slope_scale;
}

template <Direction D, class T>
SALSA_INLINE void next_trial_loop(T* SALSA_RESTRICT w, const T* SALSA_RESTRICT g,
                                  const float* SALSA_RESTRICT v, const T* SALSA_RESTRICT saved,
                                  std::int64_t n, const AdamClass& c, bool stream) {
    T moved[kBurst];
    for (std::int64_t base = 0; base < n; base += kBurst) {
        const int m = static_cast<int>(n - base < kBurst ? n - base : kBurst);
        for (int i = 0; i < m; ++i) {
            const float direction =
                tried_direction<D>(load(g[base + i]), at_index<D>(v, base + i), c);
            moved[i] = Stored<T>::from(trial_point(load(saved[base + i]), direction, c));
        }
        write_block(w + base, moved, m, stream);
    }
    end_writes(stream);
}

// `from` may be `w` itself: each element is read before it is written.
template <class T>
SALSA_INLINE void adam_step_loop(T* w, const T* from, const T* SALSA_RESTRICT g,
                                 float* SALSA_RESTRICT m, float* SALSA_RESTRICT v, std::int64_t n,
                                 const AdamClass& c) {
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC ivdep
#endif
    for (std::int64_t i = 0; i < n; ++i) {
        const float gradient = load(g[i]);
        const float m_new = first_moment(m[i], gradient, c);
        const float v_new = second_moment(v[i], gradient, c);
        w[i] = Stored<T>::from(stepped_weight(load(from[i]), m_new, v_new, c));
        m[i] = m_new;
        v[i] = v_new;
    }
}

// `from` may be `w` itself, here too.
template <class T>
SALSA_INLINE void sgd_step_loop(T* w, const T* from, const T* SALSA_RESTRICT g, std::int64_t n,
                                const AdamClass& c) {
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC ivdep
#endif
    for (std::int64_t i = 0; i < n; ++i)
        w[i] = Stored<T>::from(sgd_weight(load(from[i]), load(g[i]), c));
}

// Adds the squares of w and u up, each in `kLanes` sums side by side.
template <class T>
SALSA_INLINE void norms_loop(const T* SALSA_RESTRICT w, const T* SALSA_RESTRICT g,
                             const float* SALSA_RESTRICT m, const float* SALSA_RESTRICT v,
                             std::int64_t n, const AdamClass& c, double* SALSA_RESTRICT sums) {
    float ws[kBlock], us[kBlock];
    double w_lanes[kLanes] = {}, u_lanes[kLanes] = {};
    for (std::int64_t base = 0; base < n; base += kBlock) {
        const int size = static_cast<int>(n - base < kBlock ? n - base : kBlock);
        for (int i = 0; i < size; ++i) {
            ws[i] = load(w[base + i]);
            us[i] = update_of(ws[i], load(g[base + i]), m[base + i], v[base + i], c);
        }
        int i = 0;
        for (; i + kLanes <= size; i += kLanes)
            for (int lane = 0; lane < kLanes; ++lane) {
                w_lanes[lane] += square(ws[i + lane]);
                u_lanes[lane] += square(us[i + lane]);
            }
        for (; i < size; ++i) {
            w_lanes[i % kLanes] += square(ws[i]);
            u_lanes[i % kLanes] += square(us[i]);
        }
    }
    sums[0] = sums[1] = 0.0;
    for (int lane = 0; lane < kLanes; ++lane) {
        sums[0] += w_lanes[lane];
        sums[1] += u_lanes[lane];
    }
}

template <class T>
SALSA_INLINE double alignment_loop(const T* SALSA_RESTRICT w, const T* SALSA_RESTRICT g,
                                   const T* SALSA_RESTRICT start, std::int64_t n) {
    float products[kBlock];
    double lanes[kLanes] = {};
    for (std::int64_t base = 0; base < n; base += kBlock) {
        const int m = static_cast<int>(n - base < kBlock ? n - base : kBlock);
        for (int i = 0; i < m; ++i)
            products[i] =
                alignment_term(load(g[base + i]), load(start[base + i]), load(w[base + i]));
        add_up(lanes, products, m);
    }
    return total(lanes, kLanes);
}

// The clones: attributes of this kind belong on plain functions, so there is one per type and
// direction.
#define SALSA_INSTANTIATE_TRIALS(T, D)                                                            \
    SALSA_CLONES double first_trial_chunk(Along<D>, T* w, const T* g, const float* v, T* saved,   \
                                          std::int64_t n, const AdamClass& c, bool stream) {      \
        return first_trial_loop<D, T>(w, g, v, saved, n, c, stream);                              \
    }                                                                                             \
    SALSA_CLONES void next_trial_chunk(Along<D>, T* w, const T* g, const float* v,                \
                                       const T* saved, std::int64_t n, const AdamClass& c,        \
                                       bool stream) {                                             \
        next_trial_loop<D, T>(w, g, v, saved, n, c, stream);                                      \
    }

#define SALSA_INSTANTIATE(T)                                                                      \
    SALSA_INSTANTIATE_TRIALS(T, Direction::adam)                                                  \
    SALSA_INSTANTIATE_TRIALS(T, Direction::sgd)                                                   \
    SALSA_CLONES void adam_step_chunk(T* w, const T* from, const T* g, float* m, float* v,        \
                                      std::int64_t n, const AdamClass& c) {                       \
        adam_step_loop<T>(w, from, g, m, v, n, c);                                                \
    }                                                                                             \
    SALSA_CLONES void sgd_step_chunk(T* w, const T* from, const T* g, std::int64_t n,             \
                                     const AdamClass& c) {                                        \
        sgd_step_loop<T>(w, from, g, n, c);                                                       \
    }                                                                                             \
    SALSA_CLONES void norms_chunk(const T* w, const T* g, const float* m, const float* v,         \
                                  std::int64_t n, const AdamClass& c, double* sums) {             \
        norms_loop<T>(w, g, m, v, n, c, sums);                                                    \
    }                                                                                             \
    SALSA_CLONES double alignment_chunk(const T* w, const T* g, const T* start, std::int64_t n) { \
        return alignment_loop<T>(w, g, start, n);                                                 \
    }

SALSA_INSTANTIATE(float)
SALSA_INSTANTIATE(bf16)
SALSA_INSTANTIATE(fp16)

template <class T>
T* at(std::int64_t address, std::int64_t offset) {
    return reinterpret_cast<T*>(address) + offset;
}

// A row's moments, as far as this direction has any.
template <Direction D>
float* moment_at(std::int64_t address, std::int64_t offset) {
    if constexpr (kHasMoments<D>) return at<float>(address, offset);
    return nullptr;
}

// Calls work(row, span, index) for every chunk whose row has a gradient.
template <class Work>
void for_each_span(const Launch& launch, const Work& work) {
#if defined(_OPENMP)
#pragma omp parallel for schedule(static) num_threads(launch.threads)
#endif
    for (std::int64_t k = 0; k < launch.n_chunks; ++k) {
        const Span span = span_of(launch.chunks, k, 0, 1);
        const Row& row = launch.rows[span.row];
        if (row.gradient != 0) work(row, span, k);
    }
}

// Calls work(row, class, span, index), the class with LAMB's ratio where there are ratios.
template <class Work>
void for_each_chunk(const Launch& launch, const Work& work) {
    for_each_span(launch, [&](const Row& row, const Span& span, std::int64_t k) {
        const AdamClass& c = launch.classes[row.klass];
        if (launch.ratios == nullptr)
            work(row, c, span, k);
        else
            work(row, trusted(c, launch.ratios[span.row]), span, k);
    });
}

template <Direction D, class T>
double first_trial_of(const Launch& launch, double* partials) {
    T* saved = static_cast<T*>(launch.saved);
    std::memset(partials, 0, launch.n_chunks * sizeof(double));
    for_each_chunk(launch, [&](const Row& row, const AdamClass& c, const Span& span,
                               std::int64_t k) {
        partials[k] = first_trial_chunk(
            Along<D>{}, at<T>(row.weight, span.start), at<const T>(row.gradient, span.start),
            moment_at<D>(row.exp_avg_sq, span.start), saved + row.saved + span.start, span.size,
            c, launch.stream);
    });
    return total(partials, launch.n_chunks);
}

template <Direction D, class T>
void next_trial_of(const Launch& launch) {
    const T* saved = static_cast<const T*>(launch.saved);
    for_each_chunk(launch, [&](const Row& row, const AdamClass& c, const Span& span,
                               std::int64_t) {
        next_trial_chunk(Along<D>{}, at<T>(row.weight, span.start),
                         at<const T>(row.gradient, span.start),
                         moment_at<D>(row.exp_avg_sq, span.start),
                         saved + row.saved + span.start, span.size, c, launch.stream);
    });
}

template <class T>
void adam_step_of(const Launch& launch) {
    const T* saved = static_cast<const T*>(launch.saved);
    for_each_chunk(launch, [&](const Row& row, const AdamClass& c, const Span& span,
                               std::int64_t) {
        T* weight = at<T>(row.weight, span.start);
        const T* from = saved != nullptr ? saved + row.saved + span.start : weight;
        adam_step_chunk(weight, from, at<const T>(row.gradient, span.start),
                        at<float>(row.exp_avg, span.start),
                        at<float>(row.exp_avg_sq, span.start), span.size, c);
    });
}

template <class T>
void sgd_step_of(const Launch& launch) {
    const T* saved = static_cast<const T*>(launch.saved);
    for_each_chunk(launch, [&](const Row& row, const AdamClass& c, const Span& span,
                               std::int64_t) {
        T* weight = at<T>(row.weight, span.start);
        const T* from = saved != nullptr ? saved + row.saved + span.start : weight;
        sgd_step_chunk(weight, from, at<const T>(row.gradient, span.start), span.size, c);
    });
}

template <class T>
void norms_of(const Launch& launch, double* partials) {
    for_each_chunk(launch, [&](const Row& row, const AdamClass& c, const Span& span,
                               std::int64_t k) {
        norms_chunk(at<const T>(row.weight, span.start), at<const T>(row.gradient, span.start),
                    at<const float>(row.exp_avg, span.start),
                    at<const float>(row.exp_avg_sq, span.start), span.size, c, partials + 2 * k);
    });
}

template <class T>
double alignment_of(const Launch& launch, const std::int64_t* starts, double* partials) {
    std::memset(partials, 0, launch.n_chunks * sizeof(double));
    for_each_span(launch, [&](const Row& row, const Span& span, std::int64_t k) {
        if (starts[span.row] == 0) return;
        partials[k] = alignment_chunk(at<const T>(row.weight, span.start),
                                      at<const T>(row.gradient, span.start),
                                      at<const T>(starts[span.row], span.start), span.size);
    });
    return total(partials, launch.n_chunks);
}

}  // namespace

double first_trial(const Launch& launch, double* partials) {
    return by_dtype(launch.dtype, [&](auto x) {
        return by_direction(launch.direction, [&](auto along) {
            return first_trial_of<kUnscaled<along()>, decltype(x)>(launch, partials);
        });
    });
}

void next_trial(const Launch& launch) {
    by_dtype(launch.dtype, [&](auto x) {
        by_direction(launch.direction, [&](auto along) {
            next_trial_of<kUnscaled<along()>, decltype(x)>(launch);
        });
    });
}

void adam_step(const Launch& launch) {
    by_dtype(launch.dtype, [&](auto x) { adam_step_of<decltype(x)>(launch); });
}

void sgd_step(const Launch& launch) {
    by_dtype(launch.dtype, [&](auto x) { sgd_step_of<decltype(x)>(launch); });
}

void trust_ratios(const Launch& launch, double* partials, float* ratios, std::int64_t n_rows,
                  float clip) {
    std::memset(partials, 0, 2 * launch.n_chunks * sizeof(double));
    by_dtype(launch.dtype, [&](auto x) { norms_of<decltype(x)>(launch, partials); });
    std::int64_t k = 0;  // chunks are sorted by their rows
    for (std::int64_t row = 0; row < n_rows; ++row) {
        double w_squares = 0.0, u_squares = 0.0;
        for (; k < launch.n_chunks && launch.chunks[k].row == row; ++k) {
            w_squares += partials[2 * k];
            u_squares += partials[2 * k + 1];
        }
        ratios[row] = trust_ratio(w_squares, u_squares, clip);
    }
}

double alignment(const Launch& launch, const std::int64_t* starts, double* partials) {
    return by_dtype(launch.dtype, [&](auto x) {
        return alignment_of<decltype(x)>(launch, starts, partials);
    });
}

void advise_huge_pages(void* memory, std::int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t kHugePage = std::uintptr_t{1} << 21;
    const auto start = reinterpret_cast<std::uintptr_t>(memory);
    const std::uintptr_t first = (start + kHugePage - 1) / kHugePage * kHugePage;
    const std::uintptr_t end = (start + static_cast<std::uintptr_t>(bytes)) / kHugePage * kHugePage;
    if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
    (void)memory;
    (void)bytes;
#endif
}

bool has_openmp() {
#if defined(_OPENMP)
    return true;
#else
    return false;
#endif
}

}  // namespace salsa::cpu
