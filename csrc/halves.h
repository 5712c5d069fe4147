// fp16 to fp32 and back, many numbers at a time: by the CPU's own instructions where it has them, for
// compilers make none of plain code. The bits are those of `load` and `Stored` (storage.h).
#pragma once

#include "storage.h"

#if defined(__GNUC__) && defined(__x86_64__)
#define SALSA_X86_HALVES
#include <immintrin.h>
#endif

namespace salsa::cpu {

inline void widen_plain(const fp16* from, float* to, int n) {
    for (int i = 0; i < n; ++i) to[i] = load(from[i]);
}

inline void narrow_plain(const float* from, fp16* to, int n) {
    for (int i = 0; i < n; ++i) to[i] = Stored<fp16>::from(from[i]);
}

#if defined(SALSA_X86_HALVES)

__attribute__((target("avx2,f16c"))) inline void widen_f16c(const fp16* from, float* to, int n) {
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
    }
    widen_plain(from + i, to + i, n - i);
}

__attribute__((target("avx2,f16c"))) inline void narrow_f16c(const float* from, fp16* to, int n) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 x = _mm256_loadu_ps(from + i);
        // of what is not a number the instruction keeps some bits, `Stored` the sign alone
        const __m256 is_nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
        x = _mm256_blendv_ps(x, _mm256_or_ps(_mm256_and_ps(x, sign), nan), is_nan);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                         _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
    }
    narrow_plain(from + i, to + i, n - i);
}

__attribute__((target("avx512f"))) inline void widen_avx512(const fp16* from, float* to, int n) {
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
        _mm512_storeu_ps(to + i, _mm512_cvtph_ps(halves));
    }
    widen_plain(from + i, to + i, n - i);
}

__attribute__((target("avx512f"))) inline void narrow_avx512(const float* from, fp16* to, int n) {
    const __m512i sign = _mm512_set1_epi32(static_cast<int>(0x80000000u));
    const __m512i nan = _mm512_set1_epi32(0x7fc00000);
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m512 x = _mm512_loadu_ps(from + i);
        const __m512i bits = _mm512_castps_si512(x);
        const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        const __m512i whole = _mm512_mask_or_epi32(bits, is_nan, _mm512_and_si512(bits, sign), nan);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i),
                            _mm512_cvtps_ph(_mm512_castsi512_ps(whole), _MM_FROUND_TO_NEAREST_INT));
    }
    narrow_plain(from + i, to + i, n - i);
}

#endif

struct Halves {
    void (*widen)(const fp16*, float*, int);
    void (*narrow)(const float*, fp16*, int);
};

// How this CPU does it best.
inline Halves halves_of_cpu() {
#if defined(SALSA_X86_HALVES)
    if (__builtin_cpu_supports("avx512f")) return {widen_avx512, narrow_avx512};
    // every CPU with AVX2 has F16C, which not all compilers ask for
    if (__builtin_cpu_supports("avx2")) return {widen_f16c, narrow_f16c};
#endif
    return {widen_plain, narrow_plain};
}

inline const Halves kHalves = halves_of_cpu();

}  // namespace salsa::cpu
