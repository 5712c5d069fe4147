// What translated PTX is made of.  Registers hold bits; f32() and the like say what they mean.
#pragma once
#include <stdbool.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;

// Of the thread that runs.
extern u32 ptx_tid, ptx_ctaid, ptx_ntid, ptx_nctaid;
extern const void* const* ptx_parameters;
extern char ptx_shared[48 << 10];

void ptx_barrier(u32 place);                     // of the block
u32 ptx_shuffle(u32 place, u32 x, u32 lane_mask);  // with the lane whose number differs in these bits
_Noreturn void ptx_fail(const char* what, u64 number);

#define PTX_BITS_AS(name, from, to)                 \
    static inline to name(from x) {                 \
        to y;                                       \
        __builtin_memcpy(&y, &x, sizeof y);         \
        return y;                                   \
    }
PTX_BITS_AS(f32, u32, float)
PTX_BITS_AS(f64, u64, double)
PTX_BITS_AS(b32, float, u32)
PTX_BITS_AS(b64, double, u64)
PTX_BITS_AS(half_of_bits, u16, _Float16)
PTX_BITS_AS(bits_of_half, _Float16, u16)

// Round to nearest even; what is not a number becomes the GPU's canonical one.
static inline u16 to_bf16(float x) {
    const u32 u = b32(x);
    return x != x ? 0x7fff : (u16)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
static inline float from_bf16(u16 x) { return f32((u32)x << 16); }
static inline u16 to_f16(float x) { return x != x ? 0x7fff : bits_of_half((_Float16)x); }
static inline float from_f16(u16 x) { return (float)half_of_bits(x); }

// Memory, volatile: an access counts even where nobody needs the number.  `bytes` is the length of the whole vector, which a GPU wants to be aligned to it.
static inline u64 ptx_global(u64 at, u32 bytes) {
    if (at % bytes != 0) ptx_fail("an access that is not aligned, at", at);
    return at;
}
static inline u64 ptx_in_shared(u64 at, u32 bytes) {
    if (at % bytes != 0) ptx_fail("an access of shared memory that is not aligned, at", at);
    if (at + bytes > sizeof ptx_shared) ptx_fail("an access beyond shared memory, at", at);
    return (u64)ptx_shared + at;
}
static inline u64 ptx_parameter(u32 number, u32 at) { return (u64)ptx_parameters[number] + at; }

#define PTX_MEMORY(T)                                                                       \
    static inline T load_##T(u64 at) { return *(const volatile T*)at; }                     \
    static inline void save_##T(u64 at, T x) { *(volatile T*)at = x; }
PTX_MEMORY(u8)
PTX_MEMORY(u16)
PTX_MEMORY(u32)
PTX_MEMORY(u64)

// Four bytes of eight, each named by four bits.
static inline u32 ptx_permute(u32 low, u32 high, u32 which) {
    const u64 both = (u64)high << 32 | low;
    u32 found = 0;
    for (int i = 0; i < 4; ++i) {
        const u32 byte = which >> 4 * i & 15;
        if (byte & 8) ptx_fail("prmt with a sign", which);
        found |= (u32)(both >> 8 * byte & 255) << 8 * i;
    }
    return found;
}
