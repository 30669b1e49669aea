// Vectors as wide as the processor's registers, for loops whose results need not have the same shape on all levels.
//
// GCC 12 keeps wider ones (those of vec.h, below AVX-512) in memory, and takes their comparisons apart lane by lane.
#pragma once

#include "vec.h"

namespace pagoda {

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif
constexpr int kLanes = kRegisterBytes / 4;

typedef float floats __attribute__((vector_size(kRegisterBytes)));
typedef float half_floats __attribute__((vector_size(kRegisterBytes / 2)));
typedef double doubles __attribute__((vector_size(kRegisterBytes)));
typedef int32_t ints __attribute__((vector_size(kRegisterBytes)));

PAGODA_INLINE floats all(float x) { return x - floats{}; }

#ifndef __AVX512F__  // with it, these are the ones of vec.h
PAGODA_INLINE floats max(floats a, floats b) { return a > b ? a : b; }

PAGODA_INLINE float max_lanes(floats v) {
    float most = v[0];
    for (int lane = 1; lane < kLanes; lane++) most = v[lane] > most ? v[lane] : most;
    return most;
}
#endif

// A running sum per lane in double precision.
class Sums {
   public:
    PAGODA_INLINE void add(floats v) {
        const Halves halves = cast<Halves>(v);
        low_ += widened(halves.low);
        high_ += widened(halves.high);
    }
    PAGODA_INLINE double total() const {
        const doubles sums = low_ + high_;
        double total = 0.0;
        for (int lane = 0; lane < kLanes / 2; lane++) total += sums[lane];
        return total;
    }

   private:
    struct Halves {
        half_floats low, high;
    };

    // What GCC 12 makes of the plain form has three times as many instructions.
    static PAGODA_INLINE doubles widened(half_floats v) {
#if defined(__AVX512F__)
        return cast<doubles>(_mm512_maskz_cvtps_pd(0xff, cast<__m256>(v)));
#elif defined(__AVX2__)
        return cast<doubles>(_mm256_cvtps_pd(cast<__m128>(v)));
#else
        return __builtin_convertvector(v, doubles);
#endif
    }

    doubles low_ = {}, high_ = {};
};

// Writes the lanes of v, 4 bytes each, where `mask` has all bits, and leftovers up to kLanes; returns how many it has.
template <typename V>
PAGODA_INLINE int64_t compress(void* to, V v, ints mask) {
#ifdef __AVX512DQ__
    const __mmask16 bits = _mm512_movepi32_mask(cast<__m512i>(mask));
    const __m512i compressed = _mm512_maskz_compress_epi32(bits, cast<__m512i>(v));
    std::memcpy(to, &compressed, sizeof compressed);
    return __builtin_popcount(bits);
#else
    const ints lanes = cast<ints>(v);
    int64_t count = 0;
    for (int lane = 0; lane < kLanes; lane++) {
        static_cast<int32_t*>(to)[count] = lanes[lane];
        count -= mask[lane];
    }
    return count;
#endif
}

// e^x to about 1 unit in the last place for x <= 0: exactly 1 for 0, and 0 for -infinity; maybe 0 below -87.3, where
// numbers are subnormal. The method of exp in vec.h.
PAGODA_INLINE floats exp_up_to_0(floats x) {
#ifdef __AVX512F__
    const floats clamped = max(x, all(-200.0f));
    // The forms without a mask make g++ 12 warn of uninitialized variables.
    const __m512 in_octaves = cast<__m512>(clamped * 1.44269504f);
    const floats n = cast<floats>(_mm512_maskz_roundscale_ps(0xffff, in_octaves, _MM_FROUND_TO_NEAREST_INT));
#else
    const floats clamped = max(x, all(-87.33654f));
    const floats shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer is in the low bits
    const floats n = shifted - 12582912.0f;
#endif
    const floats r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    floats p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
#ifdef __AVX512F__
    return cast<floats>(_mm512_maskz_scalef_ps(0xffff, cast<__m512>(p), cast<__m512>(n)));
#else
    const ints scale = (cast<ints>(shifted) - 0x4b400000 + 127) << 23;
    return x < all(-87.33654f) ? floats{} : p * cast<floats>(scale);
#endif
}

}  // namespace pagoda
