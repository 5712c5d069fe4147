#include "cpu_kernels.h"

#if defined(_OPENMP)
#include <omp.h>
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

constexpr int kLanes = 8;    // running sums of the slope, side by side in one vector register
constexpr int kBlock = 512;  // elements whose products are kept in the first cache

SALSA_CLONES double first_trial_chunk(float* SALSA_RESTRICT w, const float* SALSA_RESTRICT g,
                                      const float* SALSA_RESTRICT v, float* SALSA_RESTRICT saved,
                                      std::int64_t n, const AdamClass c) {
    float products[kBlock];
    double lanes[kLanes] = {};
    for (std::int64_t base = 0; base < n; base += kBlock) {
        const int m = static_cast<int>(n - base < kBlock ? n - base : kBlock);
        for (int i = 0; i < m; ++i) {
            const float direction = trial_direction(g[base + i], v[base + i], c);
            saved[base + i] = w[base + i];
            w[base + i] = trial_point(w[base + i], direction, c);
            products[i] = g[base + i] * direction;
        }
        int i = 0;
        for (; i + kLanes <= m; i += kLanes)
            for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += products[i + lane];
        for (; i < m; ++i) lanes[i % kLanes] += products[i];
    }
    double sum = 0.0;
    for (int lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
    return sum * c.slope_scale;
}

SALSA_CLONES void next_trial_chunk(float* SALSA_RESTRICT w, const float* SALSA_RESTRICT g,
                                   const float* SALSA_RESTRICT v, const float* SALSA_RESTRICT saved,
                                   std::int64_t n, const AdamClass c) {
    for (std::int64_t i = 0; i < n; ++i)
        w[i] = trial_point(saved[i], trial_direction(g[i], v[i], c), c);
}

// `from` may be `w` itself: each element is read before it is written.
SALSA_CLONES void adam_step_chunk(float* w, const float* from, const float* SALSA_RESTRICT g,
                                  float* SALSA_RESTRICT m, float* SALSA_RESTRICT v, std::int64_t n,
                                  const AdamClass c) {
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC ivdep
#endif
    for (std::int64_t i = 0; i < n; ++i) {
        const float m_new = first_moment(m[i], g[i], c);
        const float v_new = second_moment(v[i], g[i], c);
        w[i] = stepped_weight(from[i], m_new, v_new, c);
        m[i] = m_new;
        v[i] = v_new;
    }
}

// Calls work(row, class, chunk, index) for every chunk whose row has a gradient.
template <class Work>
void for_each_chunk(const Launch& launch, const Work& work) {
#if defined(_OPENMP)
#pragma omp parallel for schedule(static) num_threads(launch.threads)
#endif
    for (std::int64_t k = 0; k < launch.n_chunks; ++k) {
        const Chunk& chunk = launch.chunks[k];
        const Row& row = launch.rows[chunk.row];
        if (row.gradient != 0) work(row, launch.classes[row.klass], chunk, k);
    }
}

float* at(std::int64_t address, std::int64_t offset) {
    return reinterpret_cast<float*>(address) + offset;
}

}  // namespace

double first_trial(const Launch& launch, double* partials) {
    for (std::int64_t k = 0; k < launch.n_chunks; ++k) partials[k] = 0.0;
    for_each_chunk(launch, [&](const Row& row, const AdamClass& c, const Chunk& chunk,
                               std::int64_t k) {
        partials[k] = first_trial_chunk(at(row.weight, chunk.start), at(row.gradient, chunk.start),
                                        at(row.exp_avg_sq, chunk.start),
                                        launch.saved + row.saved + chunk.start,
                                        chunk.end - chunk.start, c);
    });
    double slope = 0.0;
    for (std::int64_t k = 0; k < launch.n_chunks; ++k) slope += partials[k];
    return slope;
}

void next_trial(const Launch& launch) {
    for_each_chunk(launch,
                   [&](const Row& row, const AdamClass& c, const Chunk& chunk, std::int64_t) {
        next_trial_chunk(at(row.weight, chunk.start), at(row.gradient, chunk.start),
                         at(row.exp_avg_sq, chunk.start), launch.saved + row.saved + chunk.start,
                         chunk.end - chunk.start, c);
    });
}

void adam_step(const Launch& launch) {
    for_each_chunk(launch,
                   [&](const Row& row, const AdamClass& c, const Chunk& chunk, std::int64_t) {
        float* weight = at(row.weight, chunk.start);
        const float* from =
            launch.saved != nullptr ? launch.saved + row.saved + chunk.start : weight;
        adam_step_chunk(weight, from, at(row.gradient, chunk.start), at(row.exp_avg, chunk.start),
                        at(row.exp_avg_sq, chunk.start), chunk.end - chunk.start, c);
    });
}

bool has_openmp() {
#if defined(_OPENMP)
    return true;
#else
    return false;
#endif
}

}  // namespace salsa::cpu
