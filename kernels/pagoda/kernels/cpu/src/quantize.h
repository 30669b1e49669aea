// Rounding floats to integers of one scale, symmetric around 0.
#pragma once

#include "interleave.h"

namespace pagoda {

// quantized = round(x * inverse), at most `most` in size; x = about quantized * scale.
struct Scale {
    float scale, inverse;
};

// 16 lanes to one.
template <typename V, typename Combine>
PAGODA_INLINE auto fold(V v, Combine combine) {
    v = combine(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    v = combine(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    v = combine(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    v = combine(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
    return v[0];
}

// The largest magnitude; NaN where there is one.
template <typename T>
PAGODA_INLINE float largest(const T* from, int64_t count) {
    // As integers, magnitudes are in the order of their bits, and NaN is above infinity.
    const auto larger = [](i32x16 a, i32x16 b) { return a > b ? a : b; };
    i32x16 most = {};
    for (int64_t i = 0; i < count; i += 16)
        most = larger(cast<i32x16>(load_columns(from + i, count - i)) & 0x7fffffff, most);
    return cast<float>(fold(most, larger));
}

PAGODA_INLINE Scale scale_of(float largest, float most = 127) {
    // Below this the inverse would overflow; NaN passes.
    if (largest < 1e-36f) return {0, 0};
    return {largest / most, most / largest};
}

// To nearest, ties to even, for magnitudes below 2^22.
PAGODA_INLINE i32x16 rounded(f32x16 x) { return cast<i32x16>(f32x16(x + 12582912.0f)) - 0x4b400000; }

// The low byte of each: 16 bytes, four words.
PAGODA_INLINE void store_bytes(i32x16 x, uint32_t* to) {
    const i8x16 bytes = __builtin_convertvector(x, i8x16);
    std::memcpy(to, &bytes, sizeof bytes);
}

PAGODA_INLINE void store_integers(int8_t* to, i32x16 x) {
    const i8x16 narrow = __builtin_convertvector(x, i8x16);
    std::memcpy(to, &narrow, sizeof narrow);
}
PAGODA_INLINE void store_integers(int16_t* to, i32x16 x) {
    const i16x16 narrow = __builtin_convertvector(x, i16x16);
    std::memcpy(to, &narrow, sizeof narrow);
}

// Numbers, a multiple of 16, as integers; returns their scale.
template <int kMost, typename T, typename Integer>
PAGODA_INLINE float quantize(const T* from, int64_t count, Integer* to) {
    const Scale scale = scale_of(largest(from, count), kMost);
    for (int64_t i = 0; i < count; i += 16) store_integers(to + i, rounded(load(from + i) * scale.inverse));
    return scale.scale;
}

PAGODA_INLINE int32_t sum_lanes(i32x16 x) {
    return fold(x, [](i32x16 a, i32x16 b) { return a + b; });
}

}  // namespace pagoda
