// Rows with masters, or with moments in bf16 (formats.h); a part of cpu_kernels.cpp.  A block of
// elements is widened to fp32 where it is not stored so, goes through the kernels of fp32 weights,
// and is narrowed again: all of it in the first cache.
#pragma once

namespace salsa::cpu {
namespace {

constexpr int kPart = 256;  // elements of a block: all that is widened of them takes 7 KB

SALSA_CLONES void widen(const bf16* from, float* to, int n) {
    for (int i = 0; i < n; ++i) to[i] = load(from[i]);
}

SALSA_CLONES void narrow(const float* from, bf16* to, int n) {
    for (int i = 0; i < n; ++i) to[i] = Stored<bf16>::from(from[i]);
}

SALSA_CLONES void draw(std::uint32_t key, std::uint32_t first, std::uint32_t* to, int n) {
    for (int i = 0; i < n; ++i) to[i] = random_bits(key, first + static_cast<std::uint32_t>(i));
}

SALSA_CLONES void narrow_at_random(const float* from, const std::uint32_t* random, int shift,
                                   bf16* to, int n) {
    for (int i = 0; i < n; ++i)
        to[i] = rounded_at_random(from[i], (random[i] >> shift) & 0xffffu);
}

// A row's tensor from some element on.
struct Place {
    Dtype dtype;
    void* address;

    Place(Dtype dtype, std::int64_t tensor, std::int64_t element)
        : dtype(dtype),
          address(reinterpret_cast<void*>(tensor + element * (dtype == Dtype::fp32 ? 4 : 2))) {}

    bool wide() const { return dtype == Dtype::fp32; }

    // The numbers in fp32: where they lie, or else in `room`.
    float* read(float* room, int n) const {
        if (wide()) return static_cast<float*>(address);
        if (dtype == Dtype::bf16)
            widen(static_cast<const bf16*>(address), room, n);
        else
            kHalves.widen(static_cast<const fp16*>(address), room, n);
        return room;
    }

    // Rounds to nearest.
    void write(const float* numbers, int n) const {
        if (dtype == Dtype::bf16)
            narrow(numbers, static_cast<bf16*>(address), n);
        else if (dtype == Dtype::fp16)
            kHalves.narrow(numbers, static_cast<fp16*>(address), n);
        else if (numbers != address)
            std::memcpy(address, numbers, n * sizeof(float));
    }
};

enum class Use { first_trial, next_trial, step, norms };

// Calls kernel(D{}, piece, index) for every block of each chunk, all in fp32, and writes back what the
// kernel writes.
template <Use kUse, class Kernel>
void for_each_mixed_block(const Launch& launch, const Kernel& kernel) {
    const Formats formats = launch.formats;
    const auto saved = reinterpret_cast<std::int64_t>(launch.saved);
    by_direction(launch.direction, [&](auto direction) {
        using D = decltype(direction);
        constexpr bool kTrial = kUse == Use::first_trial || kUse == Use::next_trial;
        constexpr int kMoments = kTrial ? D::kTried : D::kMoments;
        for_each_span(launch, [&](const Row& row, const Span& span, std::int64_t k) {
            float weights[kPart], befores[kPart], gradients[kPart], moments[kMostMoments][kPart];
            const Scalars c = scalars_of(launch.scalars, row, launch.ratios, span.row);
            for (std::int64_t base = 0; base < span.size; base += kPart) {
                const int n = block_size<kPart>(span.size - base);
                const std::int64_t i = span.start + base;
                const Place weight(launch.dtype, row.weight, i);
                const Place in_saved(launch.dtype, saved, row.saved + i);
                const Place before = formats.masters() ? Place(Dtype::fp32, row.master, i)
                                     : saved != 0 && kUse != Use::first_trial ? in_saved
                                                                              : weight;
                Piece<float> p{};
                p.g = Place(launch.dtype, row.gradient, i).read(gradients, n);
                for (int j = 0; j < kMoments; ++j)
                    p.moments[j] = Place(formats.of_moment(j), row.moments[j], i).read(moments[j], n);
                p.size = n;
                p.c = c;
                float* const numbers = before.read(befores, n);
                if constexpr (kUse == Use::first_trial) {  // its kernel saves what lies in w
                    if (formats.masters() || !weight.wide()) {
                        if (!formats.masters()) std::memcpy(in_saved.address, weight.address, 2 * n);
                        std::memcpy(weights, numbers, n * sizeof(float));
                        p.w = weights;
                        p.saved = befores;
                    } else {
                        p.w = numbers;
                        p.saved = static_cast<float*>(in_saved.address);
                    }
                } else if constexpr (kUse == Use::norms) {
                    p.w = numbers;
                } else {
                    p.saved = numbers;
                    p.w = weight.wide() ? static_cast<float*>(weight.address) : weights;
                    if (kUse == Use::step && formats.masters()) p.w = numbers;
                }
                kernel(direction, p, k);
                if constexpr (kUse != Use::norms) weight.write(p.w, n);
                if constexpr (kUse == Use::step && kMoments > 0) {
                    if (formats.code < 2) continue;  // no moment is in bf16
                    std::uint32_t random[kPart];
                    draw(key_of(row.number, c.t), static_cast<std::uint32_t>(i), random, n);
                    for (int j = 0; j < kMoments; ++j) {
                        const Place moment(formats.of_moment(j), row.moments[j], i);
                        if (!moment.wide())
                            narrow_at_random(p.moments[j], random, bits_of_moment(j),
                                             static_cast<bf16*>(moment.address), n);
                    }
                }
            }
        });
    });
}

void mixed_first_trial(const Launch& launch, double* partials) {
    for_each_mixed_block<Use::first_trial>(
        launch, [&](auto direction, const Piece<float>& p, std::int64_t k) {
            partials[k] += first_trial_chunk(direction, p, false);
        });
}

void mixed_next_trial(const Launch& launch) {
    for_each_mixed_block<Use::next_trial>(
        launch, [](auto direction, const Piece<float>& p, std::int64_t) {
            next_trial_chunk(direction, p, false);
        });
}

void mixed_step(const Launch& launch) {
    for_each_mixed_block<Use::step>(launch, [](auto direction, const Piece<float>& p, std::int64_t) {
        step_chunk(direction, p);
    });
}

void mixed_norms(const Launch& launch, double* partials) {
    for_each_mixed_block<Use::norms>(
        launch, [&](auto direction, const Piece<float>& p, std::int64_t k) {
            double sums[2];
            norms_chunk(direction, p, sums);
            partials[2 * k] += sums[0];
            partials[2 * k + 1] += sums[1];
        });
}

// Where there are masters: these, and the starts, are fp32, and gradients are as the weights.
void mixed_alignment(const Launch& launch, const std::int64_t* starts, double* partials) {
    for_each_span(launch, [&](const Row& row, const Span& span, std::int64_t k) {
        if (starts[span.row] == 0) return;
        float gradients[kPart];
        for (std::int64_t base = 0; base < span.size; base += kPart) {
            const int n = block_size<kPart>(span.size - base);
            const std::int64_t i = span.start + base;
            const float* g = Place(launch.dtype, row.gradient, i).read(gradients, n);
            partials[k] += alignment_chunk(reinterpret_cast<const float*>(row.master) + i, g,
                                           reinterpret_cast<const float*>(starts[span.row]) + i, n);
        }
    });
}

}  // namespace
}  // namespace salsa::cpu
