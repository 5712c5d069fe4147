#include "cpu_kernels.h"

#include <cstring>
#include <type_traits>

#include "halves.h"
#include "sums.h"

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

// The turns of the loop that follows do not depend on each other, whatever its pointers may be: what
// they write is another's element, or what they have read themselves.
#if defined(__clang__)
#define SALSA_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define SALSA_INDEPENDENT _Pragma("GCC ivdep")
#else
#define SALSA_INDEPENDENT
#endif

namespace salsa::cpu {
namespace {

constexpr int kLanes = 16;   // running sums, side by side in vector registers
constexpr int kBlock = 512;  // elements that stay in the first cache while they are worked on
constexpr int kBurst = 64;   // elements that are streamed at a time between reads: more, and they wait

// Writes past the caches where `past_caches` says that the model is larger than they are: the line need
// not be read first, and nothing useful is evicted.
template <class T>
SALSA_INLINE void write_block(T* to, const T* from, int n, bool past_caches) {
#if defined(__SSE2__)
    if (past_caches) {
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
    (void)past_caches;
    std::memcpy(to, from, n * sizeof(T));
}

// Orders streamed writes before everything that follows.
SALSA_INLINE void end_writes(bool past_caches) {
#if defined(__SSE2__)
    if (past_caches) _mm_sfence();
#endif
    (void)past_caches;
}

template <int Most>
SALSA_INLINE int block_size(std::int64_t left) {
    return static_cast<int>(left < Most ? left : Most);
}

// Adds n numbers up in `kLanes` sums side by side; which one takes which depends on its place alone.
template <class Number>
SALSA_INLINE void add_up(double (&lanes)[kLanes], int n, const Number& number) {
    int i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += number(i + lane);
    for (; i < n; ++i) lanes[i % kLanes] += number(i);
}

// One after the other, in this order.
SALSA_INLINE double total(const double* numbers, std::int64_t n) {
    double sum = 0.0;
    for (std::int64_t i = 0; i < n; ++i) sum += numbers[i];
    return sum;
}

// A block of stored numbers, in fp32.
template <class T>
struct Read {
    const T* from;
    SALSA_INLINE Read(const T* from, int) : from(from) {}
    SALSA_INLINE float operator[](int i) const { return load(from[i]); }
};

template <>
struct Read<fp16> {
    float numbers[kBlock];
    SALSA_INLINE Read(const fp16* from, int n) { kHalves.widen(from, numbers, n); }
    SALSA_INLINE float operator[](int i) const { return numbers[i]; }
};

// A block of numbers to be stored, which `end` does if it was not done before.
template <class T>
struct Write {
    T* to;
    SALSA_INLINE explicit Write(T* to) : to(to) {}
    SALSA_INLINE void put(int i, float x) { to[i] = Stored<T>::from(x); }
    SALSA_INLINE void end(int) {}
};

template <>
struct Write<fp16> {
    fp16* to;
    float numbers[kBlock];
    SALSA_INLINE explicit Write(fp16* to) : to(to) {}
    SALSA_INLINE void put(int i, float x) { numbers[i] = x; }
    SALSA_INLINE void end(int n) { kHalves.narrow(numbers, to, n); }
};

// The elements of one chunk, as its kernel sees them.
template <class T>
struct Piece {
    T *w, *saved;  // `saved` is null where nothing is
    const T* g;
    float* moments[kMostMoments];
    std::int64_t size;
    Scalars c;
};

// The first N moments of an element, and the moments written back.
template <int N>
SALSA_INLINE void read(float* m, float* const* moments, std::int64_t i) {
    for (int k = 0; k < N; ++k) m[k] = moments[k][i];
}

template <int N>
SALSA_INLINE void write(const float* m, float* const* moments, std::int64_t i) {
    for (int k = 0; k < N; ++k) moments[k][i] = m[k];
}

template <class D, class T>
SALSA_INLINE double first_trial_loop(Piece<T> p, bool past_caches) {
    float products[kBlock];
    double lanes[kLanes] = {};
    for (std::int64_t base = 0; base < p.size; base += kBlock) {
        const int n = block_size<kBlock>(p.size - base);
        write_block(p.saved + base, p.w + base, n, past_caches);  // first: it also fetches w
        const Read<T> gradients(p.g + base, n), weights(p.w + base, n);
        Write<T> points(p.w + base);
        SALSA_INDEPENDENT
        for (int i = 0; i < n; ++i) {
            const float gradient = gradients[i];
            float m[kMostMoments];
            read<D::kTried>(m, p.moments, base + i);
            const float direction = D::tried(gradient, m, p.c);
            points.put(i, moved(weights[i], direction, p.c));
            products[i] = gradient * direction;
        }
        points.end(n);
        add_up(lanes, n, [&](int i) { return products[i]; });
    }
    end_writes(past_caches);
    return total(lanes, kLanes) * p.c.slope_scale;
}

template <class D, class T>
SALSA_INLINE void next_trial_loop(Piece<T> p, bool past_caches) {
    T stored[kBurst];
    for (std::int64_t base = 0; base < p.size; base += kBurst) {
        const int n = block_size<kBurst>(p.size - base);
        const Read<T> gradients(p.g + base, n), weights(p.saved + base, n);
        Write<T> points(stored);
        SALSA_INDEPENDENT
        for (int i = 0; i < n; ++i) {
            float m[kMostMoments];
            read<D::kTried>(m, p.moments, base + i);
            points.put(i, moved(weights[i], D::tried(gradients[i], m, p.c), p.c));
        }
        points.end(n);
        write_block(p.w + base, stored, n, past_caches);
    }
    end_writes(past_caches);
}

template <class D, class T>
SALSA_INLINE void step_loop(Piece<T> p) {
    // beyond the caches long blocks keep reads waiting; what needs no block takes all at once
    constexpr int kSome = std::is_same_v<T, fp16> ? kBurst : 1 << 30;
    for (std::int64_t base = 0; base < p.size; base += kSome) {
        const int n = block_size<kSome>(p.size - base);
        const T* from = (p.saved != nullptr ? p.saved : p.w) + base;
        const Read<T> gradients(p.g + base, n), weights(from, n);
        Write<T> points(p.w + base);
        SALSA_INDEPENDENT
        for (int i = 0; i < n; ++i) {
            float m[kMostMoments];
            read<D::kMoments>(m, p.moments, base + i);
            const float update = D::update(gradients[i], m, p.c);
            const float weight = weights[i];  // while a root and a quotient are computed
            points.put(i, moved(weight, decayed(update, weight, p.c), p.c));
            write<D::kMoments>(m, p.moments, base + i);
        }
        points.end(n);
    }
}

// Adds the squares of w and of the update up; the moments stay.
template <class D, class T>
SALSA_INLINE void norms_loop(Piece<T> p, double* sums) {
    float weights[kBlock], updates[kBlock];
    double w_lanes[kLanes] = {}, u_lanes[kLanes] = {};
    for (std::int64_t base = 0; base < p.size; base += kBlock) {
        const int n = block_size<kBlock>(p.size - base);
        const Read<T> gradients(p.g + base, n), stored(p.w + base, n);
        for (int i = 0; i < n; ++i) {
            float m[kMostMoments];
            read<D::kMoments>(m, p.moments, base + i);
            weights[i] = stored[i];
            updates[i] = decayed(D::update(gradients[i], m, p.c), weights[i], p.c);
        }
        add_up(w_lanes, n, [&](int i) { return square(weights[i]); });
        add_up(u_lanes, n, [&](int i) { return square(updates[i]); });
    }
    sums[0] = total(w_lanes, kLanes);
    sums[1] = total(u_lanes, kLanes);
}

template <class T>
SALSA_INLINE double alignment_loop(const T* SALSA_RESTRICT w, const T* SALSA_RESTRICT g,
                                   const T* SALSA_RESTRICT start, std::int64_t size) {
    float products[kBlock];
    double lanes[kLanes] = {};
    for (std::int64_t base = 0; base < size; base += kBlock) {
        const int n = block_size<kBlock>(size - base);
        const Read<T> gradients(g + base, n), starts(start + base, n), weights(w + base, n);
        for (int i = 0; i < n; ++i)
            products[i] = alignment_term(gradients[i], starts[i], weights[i]);
        add_up(lanes, n, [&](int i) { return products[i]; });
    }
    return total(lanes, kLanes);
}

// Attributes as the clones' belong on plain functions: there is one for each direction and type.
#define SALSA_INSTANTIATE(D, T)                                                                   \
    SALSA_CLONES double first_trial_chunk(D, const Piece<T>& p, bool past_caches) {               \
        return first_trial_loop<D>(p, past_caches);                                               \
    }                                                                                             \
    SALSA_CLONES void next_trial_chunk(D, const Piece<T>& p, bool past_caches) {                  \
        next_trial_loop<D>(p, past_caches);                                                       \
    }                                                                                             \
    SALSA_CLONES void step_chunk(D, const Piece<T>& p) { step_loop<D>(p); }                       \
    SALSA_CLONES void norms_chunk(D, const Piece<T>& p, double* sums) { norms_loop<D>(p, sums); }

#define SALSA_INSTANTIATE_DIRECTION(D, place) \
    SALSA_INSTANTIATE(D, float) SALSA_INSTANTIATE(D, bf16) SALSA_INSTANTIATE(D, fp16)

SALSA_DIRECTIONS(SALSA_INSTANTIATE_DIRECTION)

#define SALSA_INSTANTIATE_ALIGNMENT(T)                                                            \
    SALSA_CLONES double alignment_chunk(const T* w, const T* g, const T* start, std::int64_t n) { \
        return alignment_loop(w, g, start, n);                                                    \
    }

SALSA_INSTANTIATE_ALIGNMENT(float)
SALSA_INSTANTIATE_ALIGNMENT(bf16)
SALSA_INSTANTIATE_ALIGNMENT(fp16)

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

// Calls kernel(D{}, piece, index) for each of these chunks.
template <class Kernel>
void for_each_piece(const Launch& launch, const Kernel& kernel) {
    by_dtype(launch.dtype, [&](auto x) {
        by_direction(launch.direction, [&](auto direction) {
            using T = decltype(x);
            T* saved = static_cast<T*>(launch.saved);
            for_each_span(launch, [&](const Row& row, const Span& span, std::int64_t k) {
                Piece<T> piece{at<T>(row.weight, span),
                               saved != nullptr ? saved + row.saved + span.start : nullptr,
                               at<const T>(row.gradient, span),
                               {},
                               span.size,
                               scalars_of(launch.scalars, row, launch.ratios, span.row)};
                for (int i = 0; i < direction.kMoments; ++i)
                    piece.moments[i] = at<float>(row.moments[i], span);
                kernel(direction, piece, k);
            });
        });
    });
}

}  // namespace
}  // namespace salsa::cpu

#include "cpu_mixed.h"  // on top of all this

namespace salsa::cpu {

double first_trial(const Launch& launch, double* partials) {
    std::memset(partials, 0, launch.n_chunks * sizeof(double));
    if (!launch.formats.plain())
        mixed_first_trial(launch, partials);
    else
        for_each_piece(launch, [&](auto direction, const auto& piece, std::int64_t k) {
            partials[k] = first_trial_chunk(direction, piece, launch.past_caches);
        });
    return total(partials, launch.n_chunks);
}

void next_trial(const Launch& launch) {
    if (!launch.formats.plain()) return mixed_next_trial(launch);
    for_each_piece(launch, [&](auto direction, const auto& piece, std::int64_t) {
        next_trial_chunk(direction, piece, launch.past_caches);
    });
}

void step(const Launch& launch) {
    if (!launch.formats.plain()) return mixed_step(launch);
    for_each_piece(launch, [](auto direction, const auto& piece, std::int64_t) {
        step_chunk(direction, piece);
    });
}

void trust_ratios(const Launch& launch, double* partials, float* ratios, std::int64_t n_rows,
                  float clip) {
    std::memset(partials, 0, 2 * launch.n_chunks * sizeof(double));
    if (!launch.formats.plain())
        mixed_norms(launch, partials);
    else
        for_each_piece(launch, [&](auto direction, const auto& piece, std::int64_t k) {
            norms_chunk(direction, piece, partials + 2 * k);
        });
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
    std::memset(partials, 0, launch.n_chunks * sizeof(double));
    if (launch.formats.masters()) {
        mixed_alignment(launch, starts, partials);
        return total(partials, launch.n_chunks);
    }
    by_dtype(launch.dtype, [&](auto x) {
        using T = decltype(x);
        for_each_span(launch, [&](const Row& row, const Span& span, std::int64_t k) {
            if (starts[span.row] == 0) return;
            partials[k] = alignment_chunk(at<const T>(row.weight, span),
                                          at<const T>(row.gradient, span),
                                          at<const T>(starts[span.row], span), span.size);
        });
    });
    return total(partials, launch.n_chunks);
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
