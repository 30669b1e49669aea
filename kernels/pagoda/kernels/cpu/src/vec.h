// Vectors of 16 floats on every instruction set, and the few things that GCC's vector extensions lack.
//
// A level of instructions is chosen by compiler flags (see library.py). Every operation is a fixed sequence of IEEE
// operations on lanes, so results depend on the level and on nothing else.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace pagoda {

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef int16_t i16x16 __attribute__((vector_size(32)));
typedef int16_t i16x32 __attribute__((vector_size(64)));
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef int8_t i8x32 __attribute__((vector_size(32)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));

// The upper half of a float32.
struct bf16 {
    uint16_t bits;
};

#define PAGODA_INLINE inline __attribute__((always_inline))

PAGODA_INLINE f32x16 splat(float x) { return x - f32x16{}; }
PAGODA_INLINE u32x16 splat_u32(uint32_t x) { return x | u32x16{}; }

// The same bits as another type of the same size.
template <typename To, typename From>
PAGODA_INLINE To cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <typename V>
PAGODA_INLINE V load_as(const void* from) {
    V v;
    std::memcpy(&v, from, sizeof(V));
    return v;
}

// bfloat16 as float32.
PAGODA_INLINE f32x16 widen(u16x16 x) {
#ifdef __AVX512BW__
    // What g++ 12 makes of the other form takes two instructions and twice the time.
    constexpr i16x32 kPlaces = {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                                0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
    const __m512i low = _mm512_zextsi256_si512(cast<__m256i>(x));
    return cast<f32x16>(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, cast<__m512i>(kPlaces), low));
#else
    return cast<f32x16>(u32x16(__builtin_convertvector(x, u32x16) << 16));
#endif
}

// 16 values, widened to float32.
PAGODA_INLINE f32x16 load(const float* from) { return load_as<f32x16>(from); }
PAGODA_INLINE f32x16 load(const bf16* from) { return widen(load_as<u16x16>(from)); }

PAGODA_INLINE float widen(float x) { return x; }
PAGODA_INLINE float widen(bf16 x) {
    return cast<float>(uint32_t(x.bits) << 16);
}

// Rounds to nearest, ties to even; NaN stays NaN.
PAGODA_INLINE u16x16 to_bf16(f32x16 v) {
#ifdef __AVX512BF16__
    __m256bh rounded = _mm512_cvtneps_pbh(cast<__m512>(v));
    return cast<u16x16>(rounded);
#else
    u32x16 bits = cast<u32x16>(v);
    u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    u32x16 nan = (bits & 0x7fffffff) > 0x7f800000;
    return __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), u16x16);
#endif
}

// To what T can hold.
template <typename T>
f32x16 rounded_to(f32x16 v);
template <>
PAGODA_INLINE f32x16 rounded_to<float>(f32x16 v) {
    return v;
}
template <>
PAGODA_INLINE f32x16 rounded_to<bf16>(f32x16 v) {
    return widen(to_bf16(v));
}

PAGODA_INLINE void store(float* to, f32x16 v) { std::memcpy(to, &v, sizeof v); }
PAGODA_INLINE void store(bf16* to, f32x16 v) {
    u16x16 rounded = to_bf16(v);
    std::memcpy(to, &rounded, sizeof rounded);
}

PAGODA_INLINE bf16 round_bf16(float x) {
    u16x16 rounded = to_bf16(splat(x));
    return bf16{rounded[0]};
}

PAGODA_INLINE void store_one(float* to, float x) { *to = x; }
PAGODA_INLINE void store_one(bf16* to, float x) { *to = round_bf16(x); }

// a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1] is added to lane i; a and b hold 32 bfloat16 each.
PAGODA_INLINE f32x16 dot_pairs(f32x16 sum, u32x16 a, u32x16 b) {
#ifdef __AVX512BF16__
    __m512 result = _mm512_dpbf16_ps(
        cast<__m512>(sum), cast<__m512bh>(a), cast<__m512bh>(b));
    return cast<f32x16>(result);
#else
    u32x16 low_a = a << 16, low_b = b << 16, high_a = a & 0xffff0000, high_b = b & 0xffff0000;
    sum += cast<f32x16>(low_a) * cast<f32x16>(low_b);
    return sum + cast<f32x16>(high_a) * cast<f32x16>(high_b);
#endif
}

// 32 integers, widened to 16 bits.
PAGODA_INLINE i16x32 widen(i8x32 x) {
#ifdef __AVX512BW__
    // What g++ 12 makes of the other form takes four instructions.
    return cast<i16x32>(_mm512_cvtepi8_epi16(cast<__m256i>(x)));
#else
    return __builtin_convertvector(x, i16x32);
#endif
}

// a[i] b[i] + a[i + 1] b[i + 1] of 16-bit integers, for even i.
PAGODA_INLINE i32x16 multiply_pairs(i16x32 a, i16x32 b) {
#if defined(__AVX512BW__)
    return cast<i32x16>(_mm512_madd_epi16(cast<__m512i>(a), cast<__m512i>(b)));
#elif defined(__AVX2__)
    struct Halves {
        __m256i low, high;
    };
    const Halves x = cast<Halves>(a), y = cast<Halves>(b);
    return cast<i32x16>(Halves{_mm256_madd_epi16(x.low, y.low), _mm256_madd_epi16(x.high, y.high)});
#else
    const i32x16 wide_a = cast<i32x16>(a), wide_b = cast<i32x16>(b);
    return (wide_a << 16 >> 16) * (wide_b << 16 >> 16) + (wide_a >> 16) * (wide_b >> 16);
#endif
}

// multiply_pairs, added to a sum. Exact.
PAGODA_INLINE i32x16 add_product_pairs(i32x16 sum, i16x32 a, i16x32 b) {
#ifdef __AVX512VNNI__
    return cast<i32x16>(_mm512_dpwssd_epi32(cast<__m512i>(sum), cast<__m512i>(a), cast<__m512i>(b)));
#else
    return sum + multiply_pairs(a, b);
#endif
}

// The sum of a[4 i + j] b[4 i + j] over j is added to lane i; a holds 64 unsigned bytes, b 64 signed ones. Exact.
PAGODA_INLINE i32x16 dot_quads(i32x16 sum, u32x16 a, u32x16 b) {
#ifdef __AVX512VNNI__
    return cast<i32x16>(_mm512_dpbusd_epi32(cast<__m512i>(sum), cast<__m512i>(a), cast<__m512i>(b)));
#else
    const i16x32 even_a = cast<i16x32>(u32x16(a & 0x00ff00ff)), odd_a = cast<i16x32>(u32x16(a >> 8 & 0x00ff00ff));
    const i16x32 bytes = cast<i16x32>(b), even_b = bytes << 8 >> 8, odd_b = bytes >> 8;
    return sum + multiply_pairs(even_a, even_b) + multiply_pairs(odd_a, odd_b);
#endif
}

// Every byte of indices, in [0, 16), is replaced by the one of `table` that it names.
PAGODA_INLINE u32x16 look_up(u8x16 table, u32x16 indices) {
#if defined(__AVX512BW__)
    const __m512i tables = _mm512_maskz_broadcast_i32x4(0xffff, cast<__m128i>(table));
    return cast<u32x16>(_mm512_shuffle_epi8(tables, cast<__m512i>(indices)));
#elif defined(__AVX2__)
    struct Halves {
        __m256i low, high;
    };
    const __m256i tables = _mm256_broadcastsi128_si256(cast<__m128i>(table));
    const Halves x = cast<Halves>(indices);
    return cast<u32x16>(Halves{_mm256_shuffle_epi8(tables, x.low), _mm256_shuffle_epi8(tables, x.high)});
#else
    uint8_t bytes[64];
    std::memcpy(bytes, &indices, sizeof bytes);
    for (uint8_t& byte : bytes) byte = table[byte];
    return load_as<u32x16>(bytes);
#endif
}

PAGODA_INLINE f32x16 max(f32x16 a, f32x16 b) { return a > b ? a : b; }
PAGODA_INLINE f32x16 min(f32x16 a, f32x16 b) { return a < b ? a : b; }
PAGODA_INLINE i32x16 max(i32x16 a, i32x16 b) { return a > b ? a : b; }

// In a fixed order.
PAGODA_INLINE float sum_lanes(f32x16 v) {
    float lanes[16];
    store(lanes, v);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

PAGODA_INLINE float max_lanes(f32x16 v) {
    float lanes[16];
    store(lanes, v);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
    return lanes[0];
}

// Lane i is the largest lane of rows[i], of 16 rows.
template <typename V>
PAGODA_INLINE V max_of_rows(const V* rows) {
    V halves[8], quarters[4], pairs[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const V a = rows[2 * i], b = rows[2 * i + 1];
        halves[i] = max(__builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
                        __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const V a = halves[2 * i], b = halves[2 * i + 1];
        quarters[i] = max(__builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27),
                          __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        const V a = quarters[2 * i], b = quarters[2 * i + 1];
        pairs[i] = max(__builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29),
                       __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31));
    }
    const V a = pairs[0], b = pairs[1];
    return max(__builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
               __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31));
}

// 32 bfloat16: the lanes of `first`, then those of `second`; rounded as by to_bf16.
PAGODA_INLINE u32x16 pack_bf16(f32x16 first, f32x16 second) {
#ifdef __AVX512BF16__
    __m512bh rounded = _mm512_cvtne2ps_pbh(cast<__m512>(second), cast<__m512>(first));
    return cast<u32x16>(rounded);
#else
    u16x16 halves[2] = {to_bf16(first), to_bf16(second)};
    return load_as<u32x16>(halves);
#endif
}

// 2^x to about 1 unit in the last place for finite x <= 0, exactly 1 for 0, 0 below -150; NaN stays NaN. The polynomial
// is the minimax one of degree 5 on [-1/2, 1/2] with p(0) = 1.
PAGODA_INLINE f32x16 exp2_up_to_0(f32x16 x) {
#ifdef __AVX512F__
    // The forms without a mask make g++ 12 warn of uninitialized variables.
    const __m512 rounded = _mm512_maskz_roundscale_ps(0xffff, cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT);
    const f32x16 n = cast<f32x16>(rounded), r = x - n;
#else
    const f32x16 clamped = max(splat(-126.0f), x);
    const f32x16 shifted = clamped + 12582912.0f;  // 1.5 * 2^23: the integer is in the low bits
    const f32x16 r = clamped - (shifted - 12582912.0f);
#endif
    f32x16 p = splat(1.326472731e-3f);
    p = p * r + 9.671512991e-3f;
    p = p * r + 5.550733581e-2f;
    p = p * r + 2.402224243e-1f;
    p = p * r + 6.931470037e-1f;
    p = p * r + 1.0f;
#ifdef __AVX512F__
    const __m512 scaled = _mm512_maskz_scalef_ps(0xffff, cast<__m512>(p), cast<__m512>(n));
    return cast<f32x16>(scaled);
#else
    const u32x16 scaled = cast<u32x16>(p) + (cast<u32x16>(shifted) << 23);
    return x < splat(-126.0f) ? f32x16{} : cast<f32x16>(scaled);
#endif
}

// tanh through e^(-2 |x|), which cannot overflow.
PAGODA_INLINE f32x16 tanh(f32x16 x) {
    const u32x16 sign = cast<u32x16>(x) & 0x80000000;
    const f32x16 power = exp2_up_to_0(cast<f32x16>(cast<u32x16>(x) | 0x80000000) * 2.885390082f);
    const f32x16 size = (1.0f - power) / (1.0f + power);
    return cast<f32x16>(cast<u32x16>(size) | sign);
}

}  // namespace pagoda
