// Linear layers whose weights are bfloat16 or float32.
#include "linear_export.h"

namespace pagoda {
namespace {

#ifdef __AVX512F__
constexpr int kTileRows = 12;  // 24 of 32 registers are sums
#elif defined(__AVX2__)
constexpr int kTileRows = 3;
#else
constexpr int kTileRows = 1;
#endif

// A step is one input: 32 weights. x as float32.
struct Float32 {
    using Sum = f32x16;
    static constexpr int kMaxRows = kTileRows;
    static constexpr int64_t kStepInputs = 1, kStepBytes = 128, kTailBytes = 128, kRowWords = 0, kStepWords = 1;

    template <typename T>
    static void pack_rows(const T* x, int64_t stride, int rows, int64_t in_features, uint32_t* to) {
        for (int64_t i = 0; i < in_features; i += 16) {
            const int columns = in_features - i < 16 ? in_features - i : 16;
            interleave<kMaxRows>(rows, columns, to + i * rows, [&](int row) {
                fetch_columns(x + row * stride + i);
                return cast<u32x16>(load_columns(x + row * stride + i, in_features - i));
            });
        }
    }

    template <int rows>
    static void multiply(const uint32_t* x, const char* weights, int64_t steps, Sum (*result)[2], Ahead ahead) {
        Sum sums[rows][2];
        std::memcpy(sums, result, sizeof sums);
        for (; steps; steps--, x += rows, weights += kStepBytes) {
            ahead.step();
            const f32x16 low = load((const float*)weights), high = load((const float*)weights + 16);
            PAGODA_UNROLL
            for (int row = 0; row < rows; row++) {
                const f32x16 value = splat(cast<float>(x[row]));
                sums[row][0] += low * value;
                sums[row][1] += high * value;
            }
        }
        std::memcpy(result, sums, sizeof sums);
    }

    static f32x16 result(Sum sum, const uint32_t*, int, int, const char*, int) { return sum; }

    template <typename T>
    static void pack_panel(const T* const* rows, int64_t in_features, char* to) {
        for (int64_t i = 0; i < in_features; i += 16) {
            uint32_t words[kPanel][16] = {};
            for (int out = 0; out < kPanel; out++) {
                fetch_columns(rows[out] + i);
                store((float*)words[out], load_columns(rows[out] + i, in_features - i));
            }
            interleave_panel(words, in_features - i < 16 ? in_features - i : 16, (uint32_t*)to + i * kPanel);
        }
    }
};

// A step is a pair of inputs: two vectors of 16 pairs of weights.
struct Bf16 {
    using Sum = f32x16;
    static constexpr int kMaxRows = kTileRows;
    static constexpr int64_t kStepInputs = 2, kStepBytes = 128, kTailBytes = 128, kRowWords = 0;

    // 16 pairs.
    template <typename T>
    static PAGODA_INLINE u32x16 load_pairs(const T* from, int64_t count) {
        if (sizeof(T) == sizeof(bf16) && count >= 32) return load_as<u32x16>(from);
        return pack_bf16(load_columns(from, count), load_columns(from + 16, count - 16));
    }
    static int64_t pairs(int64_t inputs) { return inputs < 32 ? ceil_div(inputs, 2) : 16; }

    template <typename T>
    static void pack_panel(const T* const* rows, int64_t in_features, char* to) {
        for (int64_t i = 0; i < in_features; i += 32) {
            uint32_t words[kPanel][16] = {};
            for (int out = 0; out < kPanel; out++) {
                fetch_columns(rows[out] + i);
                const u32x16 pairs = load_pairs(rows[out] + i, in_features - i);
                std::memcpy(words[out], &pairs, sizeof pairs);
            }
            interleave_panel(words, pairs(in_features - i), (uint32_t*)to + i / 2 * kPanel);
        }
    }

    static f32x16 result(Sum sum, const uint32_t*, int, int, const char*, int) { return sum; }

#ifdef __AVX512BF16__
    // x as pairs of bfloat16.
    static constexpr int64_t kStepWords = 1;

    template <typename T>
    static void pack_rows(const T* x, int64_t stride, int rows, int64_t in_features, uint32_t* to) {
        for (int64_t i = 0; i < in_features; i += 32) {
            interleave<kMaxRows>(rows, pairs(in_features - i), to + i / 2 * rows, [&](int row) {
                fetch_columns(x + row * stride + i);
                return load_pairs(x + row * stride + i, in_features - i);
            });
        }
    }

    template <int rows>
    static void multiply(const uint32_t* x, const char* weights, int64_t steps, Sum (*result)[2], Ahead ahead) {
        Sum sums[rows][2];
        std::memcpy(sums, result, sizeof sums);
        for (; steps; steps--, x += rows, weights += kStepBytes) {
            ahead.step();
            const u32x16 low = load_as<u32x16>(weights), high = load_as<u32x16>(weights + 64);
            PAGODA_UNROLL
            for (int row = 0; row < rows; row++) {
                const u32x16 pair = splat_u32(x[row]);
                sums[row][0] = dot_pairs(sums[row][0], low, pair);
                sums[row][1] = dot_pairs(sums[row][1], high, pair);
            }
        }
        std::memcpy(result, sums, sizeof sums);
    }
#else
    // x as float32, so that only weights need be widened.
    static constexpr int64_t kStepWords = 2;

    template <typename T>
    static void pack_rows(const T* x, int64_t stride, int rows, int64_t in_features, uint32_t* to) {
        for (int64_t i = 0; i < in_features; i += 16) {
            const int columns = in_features - i < 16 ? 2 * ceil_div(in_features - i, 2) : 16;
            interleave<kMaxRows>(rows, columns, to + i * rows, [&](int row) {
                fetch_columns(x + row * stride + i);
                return cast<u32x16>(load_columns(x + row * stride + i, in_features - i));
            });
        }
    }

    template <int rows>
    static void multiply(const uint32_t* x, const char* weights, int64_t steps, Sum (*result)[2], Ahead ahead) {
        Sum sums[rows][2];
        std::memcpy(sums, result, sizeof sums);
        for (; steps; steps--, x += 2 * rows, weights += kStepBytes) {
            ahead.step();
            PAGODA_UNROLL
            for (int half = 0; half < 2; half++) {
                const u32x16 pairs = load_as<u32x16>(weights + 64 * half);
                const f32x16 first = cast<f32x16>(u32x16(pairs << 16));
                const f32x16 second = cast<f32x16>(u32x16(pairs & 0xffff0000));
                PAGODA_UNROLL
                for (int row = 0; row < rows; row++) sums[row][half] += first * splat(cast<float>(x[row]));
                PAGODA_UNROLL
                for (int row = 0; row < rows; row++) sums[row][half] += second * splat(cast<float>(x[rows + row]));
            }
        }
        std::memcpy(result, sums, sizeof sums);
    }
#endif
};

}  // namespace
}  // namespace pagoda

PAGODA_LINEAR(float32, pagoda::Float32)
PAGODA_LINEAR(bfloat16, pagoda::Bf16)
