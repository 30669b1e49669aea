// What keys and values are stored as, and how attention multiplies them.
//
// A unit is kPack numbers that are multiplied at once: two bfloat16, one float32, or two integers. Whatever it takes in
// the cache, it is 32 bits when it is multiplied.
#pragma once

#include "quantize.h"

namespace pagoda {

// As in attention.py.
constexpr int64_t kMaxHeadDim = 256;

struct Bf16Format {
    using Element = bf16;   // of queries, of keys and values before they are stored, and of results
    using Stored = bf16;    // of keys and values
    using Query = bf16;     // of queries and of softmax weights, as they are multiplied
    using Unit = uint32_t;  // kPack of what is stored
    using Sum = f32x16;
    static constexpr int kPack = 2;
    static constexpr bool kScaled = false;
    static constexpr int64_t kScaleUnits = 0;

    static PAGODA_INLINE const Stored* to_stored(const Element* x, int64_t, Stored*, float&) { return x; }
    static PAGODA_INLINE const Query* to_query(const Element* x, int64_t, Query*, float&) { return x; }
    static PAGODA_INLINE u32x16 load_units(const Unit* from) { return load_as<u32x16>(from); }
    static PAGODA_INLINE Sum multiply_add(Sum sum, u32x16 a, u32x16 b) { return dot_pairs(sum, a, b); }
    static PAGODA_INLINE f32x16 add(f32x16 sum, u32x16 a) { return dot_pairs(sum, a, splat_u32(0x3f803f80)); }
    static PAGODA_INLINE f32x16 to_float(Sum sum) { return sum; }
    // 32 numbers as units.
    static PAGODA_INLINE void store_units(uint32_t* to, f32x16 first, f32x16 second) {
        const u32x16 packed = pack_bf16(first, second);
        std::memcpy(to, &packed, sizeof packed);
    }
};

struct F32Format {
    using Element = float;
    using Stored = float;
    using Query = float;
    using Unit = uint32_t;
    using Sum = f32x16;
    static constexpr int kPack = 1;
    static constexpr bool kScaled = false;
    static constexpr int64_t kScaleUnits = 0;

    static PAGODA_INLINE const Stored* to_stored(const Element* x, int64_t, Stored*, float&) { return x; }
    static PAGODA_INLINE const Query* to_query(const Element* x, int64_t, Query*, float&) { return x; }
    static PAGODA_INLINE u32x16 load_units(const Unit* from) { return load_as<u32x16>(from); }
    static PAGODA_INLINE Sum multiply_add(Sum sum, u32x16 a, u32x16 b) {
        return sum + cast<f32x16>(a) * cast<f32x16>(b);
    }
    static PAGODA_INLINE f32x16 add(f32x16 sum, u32x16 a) { return sum + cast<f32x16>(a); }
    static PAGODA_INLINE f32x16 to_float(Sum sum) { return sum; }
    static PAGODA_INLINE void store_units(uint32_t* to, f32x16 first, f32x16 second) {
        std::memcpy(to, &first, sizeof first);
        std::memcpy(to + 16, &second, sizeof second);
    }
};

// Keys and values are integers of 8 bits with a float32 scale per head and slot. Queries and softmax weights meet them
// as integers of 16 bits, with a scale per row, and per row and tile: so nothing is converted but 8 bits to 16, products
// are exact, and what rounding queries and weights costs is less than in bfloat16.
template <typename T>
struct Int8Format {
    using Element = T;
    using Stored = int8_t;
    using Query = int16_t;
    using Unit = uint16_t;
    using Sum = i32x16;
    static constexpr int kPack = 2;
    static constexpr bool kScaled = true;
    static constexpr int64_t kScaleUnits = sizeof(float) / sizeof(Unit);
    static constexpr int kMostStored = 127, kMostQuery = 32767;
    static_assert(kMaxHeadDim * kMostStored * kMostQuery <= INT32_MAX);

    static PAGODA_INLINE const Stored* to_stored(const Element* x, int64_t count, Stored* to, float& scale) {
        scale = quantize<kMostStored>(x, count, to);
        return to;
    }
    static PAGODA_INLINE const Query* to_query(const Element* x, int64_t count, Query* to, float& scale) {
        scale = quantize<kMostQuery>(x, count, to);
        return to;
    }
    static PAGODA_INLINE u32x16 load_units(const Unit* from) { return cast<u32x16>(widen(load_as<i8x32>(from))); }
    static PAGODA_INLINE Sum multiply_add(Sum sum, u32x16 a, u32x16 b) {
        return add_product_pairs(sum, cast<i16x32>(a), cast<i16x32>(b));
    }
    static PAGODA_INLINE f32x16 to_float(Sum sum) { return __builtin_convertvector(sum, f32x16); }
    static PAGODA_INLINE void store_units(uint32_t* to, f32x16 first, f32x16 second) {
        store_integers((Query*)to, rounded(first));
        store_integers((Query*)to + 16, rounded(second));
    }
};

}  // namespace pagoda
