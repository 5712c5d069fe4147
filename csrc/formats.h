// How what stands beside the weights is stored: masters in fp32, moments in fp32 or bf16, which are
// rounded at random.  For C++ and CUDA alike; in Python: kernels/storage.py and rounding.py.
#pragma once

#include "storage.h"

namespace salsa {

// As `code` of `Storage` in storage.py.
struct Formats {
    int code;

    SALSA_INLINE bool plain() const { return code == 0; }  // moments in fp32, no masters
    SALSA_INLINE bool masters() const { return (code & 1) != 0; }
    SALSA_INLINE Dtype of_moment(int k) const {
        return (code & (2 << k)) != 0 ? Dtype::bf16 : Dtype::fp32;
    }
};

// -- rounding at random, as rounding.py has it ---------------------------------------------------

// A permutation of 32 bits that looks random.
SALSA_INLINE std::uint32_t mixed(std::uint32_t x) {
    x = (x ^ (x >> 16)) * 0x21f0aaadu;
    x = (x ^ (x >> 15)) * 0x735a2d97u;
    return x ^ (x >> 15);
}

// Of a parameter's step.
SALSA_INLINE std::uint32_t key_of(std::int64_t number, float t) {
    return mixed(mixed(static_cast<std::uint32_t>(number + 1)) ^ bits_of(t));
}

// 32 bits for the element of this index.
SALSA_INLINE std::uint32_t random_bits(std::uint32_t key, std::uint32_t index) {
    return mixed(index ^ key);
}

// Where the 16 bits of moment k begin among them.
SALSA_INLINE int bits_of_moment(int k) { return k == 0 ? 0 : k == 1 ? 16 : 8; }

// Up as often as what falls away is large; `added`: 16 random bits.
SALSA_INLINE bf16 rounded_at_random(float x, std::uint32_t added) {
    const std::uint32_t u = bits_of(x);
    const std::uint32_t rounded = (u + added) >> 16;
    return {static_cast<std::uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
}

}  // namespace salsa
