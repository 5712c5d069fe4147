// How weights and gradients are stored: fp32, bf16 or fp16.  All arithmetic is fp32; a 16-bit
// number is rounded to nearest even when it is written.  Integer arithmetic, so that compilers
// vectorise it for every instruction set, and every backend gives the same bits; a GPU's own
// conversions give them too, in far fewer instructions and registers.
#pragma once

#include <cstring>

#include "rows.h"

namespace salsa {

struct bf16 {
    std::uint16_t bits;
};

struct fp16 {
    std::uint16_t bits;
};

// Of weights, gradients and saved weights.
enum class Dtype : int { fp32 = 0, bf16 = 1, fp16 = 2 };

// Calls work(x) with a number x of the type that `dtype` names.
template <class Work>
auto by_dtype(Dtype dtype, const Work& work) {
    switch (dtype) {
        case Dtype::bf16: return work(bf16{});
        case Dtype::fp16: return work(fp16{});
        default: return work(float{});
    }
}

SALSA_INLINE std::uint32_t bits_of(float x) {
    std::uint32_t u;
    std::memcpy(&u, &x, sizeof u);
    return u;
}

SALSA_INLINE float float_of(std::uint32_t u) {
    float x;
    std::memcpy(&x, &u, sizeof x);
    return x;
}

SALSA_INLINE float load(float x) { return x; }

SALSA_INLINE float load(bf16 x) { return float_of(static_cast<std::uint32_t>(x.bits) << 16); }

// Exponent and mantissa move up by 13 bits, the exponent's bias from 15 to 127.
SALSA_INLINE float load(fp16 x) {
#if defined(__CUDA_ARCH__)
    float number;
    asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(x.bits));
    return number;
#else
    const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
    const std::uint32_t magnitude = static_cast<std::uint32_t>(x.bits & 0x7fffu) << 13;
    const std::uint32_t normal = magnitude + (112u << 23);
    const std::uint32_t infinite_or_nan = magnitude + (224u << 23);
    const float subnormal = float_of(magnitude + (113u << 23)) - float_of(113u << 23);
    std::uint32_t u = normal;
    u = magnitude >= (31u << 23) ? infinite_or_nan : u;
    u = magnitude < (1u << 23) ? bits_of(subnormal) : u;
    return float_of(u | sign);
#endif
}

template <class T>
struct Stored;

template <>
struct Stored<float> {
    static SALSA_INLINE float from(float x) { return x; }
};

template <>
struct Stored<bf16> {
    static SALSA_INLINE bf16 from(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800  // older GPUs have no such instruction
        bf16 half;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half.bits) : "f"(x));
        return half;
#else
        const std::uint32_t u = bits_of(x);
        const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
        const std::uint32_t nan = 0x7fc0u;
        return {static_cast<std::uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
#endif
    }
};

template <>
struct Stored<fp16> {
    static SALSA_INLINE fp16 from(float x) {
#if defined(__CUDA_ARCH__)
        fp16 half;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half.bits) : "f"(x));
        return half;
#else
        const std::uint32_t u = bits_of(x), magnitude = u & 0x7fffffffu;
        // the 13 bits that fall away are rounded into the rest, which may carry into the exponent
        const std::uint32_t normal =
            (magnitude + 0x0fffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
        // below 2^-14 the sum with 1/2 has its last bit where fp16's smallest step is: 2^-24
        const std::uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
        std::uint32_t half = normal;
        half = magnitude < (113u << 23) ? subnormal : half;
        half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and above: infinity
        half = magnitude > 0x7f800000u ? 0x7e00u : half;
        return {static_cast<std::uint16_t>(half | ((u >> 16) & 0x8000u))};
#endif
    }
};

}  // namespace salsa
