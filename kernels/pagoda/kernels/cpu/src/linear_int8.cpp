// Linear layers whose weights are 8-bit integers with a scale per output; rows of x are rounded to 8 bits on the fly.
#include "linear_export.h"
#include "quantize.h"

namespace pagoda {
namespace {

// A step is four inputs. Weights are stored with 128 added, because the instruction wants one side unsigned: the sum is
// too large by 128 times the sum of x, which each packed row knows. Exact below 2^31 / (255 * 127) = 66,311 inputs.
struct Int8 {
    using Sum = i32x16;
#ifdef __AVX512F__
    static constexpr int kMaxRows = 12;
#elif defined(__AVX2__)
    static constexpr int kMaxRows = 3;
#else
    static constexpr int kMaxRows = 1;
#endif
    static constexpr int64_t kStepInputs = 4, kStepBytes = 128, kStepWords = 1;
    static constexpr int64_t kRowWords = 2;     // scales [rows] float32, corrections [rows] int32
    static constexpr int64_t kTailBytes = 256;  // bias [32], scales [32] float32

    template <typename T>
    static void pack_rows(const T* x, int64_t stride, int rows, int64_t in_features, uint32_t* to) {
        float inverse[kMaxRows];
        i32x16 totals[kMaxRows] = {};
        for (int row = 0; row < rows; row++) {
            const Scale scale = scale_of(largest(x + row * stride, in_features));
            inverse[row] = scale.inverse;
            to[row] = cast<uint32_t>(scale.scale);
        }
        uint32_t* steps = to + kRowWords * rows;
        for (int64_t i = 0; i < in_features; i += 64) {
            const int64_t left = in_features - i;
            uint32_t words[kMaxRows][16];
            for (int row = 0; row < rows; row++) {
                fetch_columns(x + row * stride + i);
                for (int part = 0; part < 4; part++) {
                    const i32x16 quantized =
                        rounded(load_columns(x + row * stride + i + 16 * part, left - 16 * part) * inverse[row]);
                    totals[row] += quantized;
                    store_bytes(quantized, words[row] + 4 * part);
                }
            }
            interleave<kMaxRows>(rows, left < 64 ? ceil_div(left, 4) : 16, steps + i / 4 * rows,
                                 [&](int row) { return load_as<u32x16>(words[row]); });
        }
        for (int row = 0; row < rows; row++) to[rows + row] = -128 * sum_lanes(totals[row]);
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
                const u32x16 quad = splat_u32(x[row]);
                sums[row][0] = dot_quads(sums[row][0], low, quad);
                sums[row][1] = dot_quads(sums[row][1], high, quad);
            }
        }
        std::memcpy(result, sums, sizeof sums);
    }

    static f32x16 result(Sum sum, const uint32_t* x, int rows, int row, const char* tail, int half) {
        const f32x16 exact = __builtin_convertvector(sum + int32_t(x[rows + row]), f32x16);
        return exact * (load((const float*)tail + kPanel + 16 * half) * cast<float>(x[row]));
    }

    template <typename T>
    static void pack_panel(const T* const* rows, int64_t in_features, char* to) {
        Scale scales[kPanel] = {};
        for (int out = 0; out < kPanel; out++)
            scales[out] = scale_of(largest(rows[out], in_features));
        for (int64_t i = 0; i < in_features; i += 64) {
            const int64_t left = in_features - i;
            uint32_t words[kPanel][16] = {};
            for (int out = 0; out < kPanel; out++)
                for (int part = 0; part < 4; part++)
                    store_bytes(rounded(load_columns(rows[out] + i + 16 * part, left - 16 * part) *
                                        scales[out].inverse) + 128,
                                words[out] + 4 * part);
            interleave_panel(words, left < 64 ? ceil_div(left, 4) : 16, (uint32_t*)to + i / 4 * kPanel);
        }
        float* tail = (float*)(to + ceil_div(in_features, kStepInputs) * kStepBytes);
        for (int out = 0; out < kPanel; out++) tail[kPanel + out] = scales[out].scale;
    }
};

}  // namespace
}  // namespace pagoda

PAGODA_LINEAR(int8, pagoda::Int8)
