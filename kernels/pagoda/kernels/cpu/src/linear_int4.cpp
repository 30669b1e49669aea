// Linear layers whose weights are 4-bit codes with a scale per output and 32 inputs; x is rounded to 8 bits on the fly,
// with a scale per row and the same 32 inputs.
//
// A code names one of 16 values, denser around 0 as weights are: at the same 4.5 bits per weight, the error is 8 % less
// than that of evenly spaced values with their best scales on normally distributed weights, and 18 % less on
// heavy-tailed ones.
#include "linear_export.h"
#include "quantize.h"

namespace pagoda {
namespace {

constexpr int kGroup = 32;
constexpr int kQuads = kGroup / 4;

// Found by Lloyd's algorithm (https://doi.org/10.1109/TIT.1982.1056489) on groups of 32 numbers with their best
// scales, half of them normally distributed, half by Student's t with 5 degrees of freedom.
constexpr int kValues[16] = {-127, -105, -83, -64, -48, -33, -20, -8, 2, 13, 25, 39, 54, 71, 93, 125};

// With 128 added, because the instruction wants one side unsigned.
constexpr u8x16 kBytes = {1, 23, 45, 64, 80, 95, 108, 120, 130, 141, 153, 167, 182, 199, 221, 253};

// A step is a group: scales [32] bfloat16, then eight vectors of codes. Lane i of a vector holds four inputs: of output
// i in the lower halves of its bytes, of output 16 + i in the upper ones. A packed row has, per step, its scale, the
// correction for the 128 that was added, and eight words of four inputs.
struct Int4 {
    using Sum = f32x16;
#ifdef __AVX512F__
    static constexpr int kMaxRows = 6;  // 12 float and 12 integer sums
#else
    static constexpr int kMaxRows = 1;
#endif
    static constexpr int64_t kStepInputs = kGroup, kStepBytes = 64 + 64 * kQuads, kTailBytes = 128;
    static constexpr int64_t kRowWords = 0, kStepWords = 2 + kQuads;

    template <typename T>
    static void pack_rows(const T* x, int64_t stride, int rows, int64_t in_features, uint32_t* to) {
        for (int64_t i = 0; i < in_features; i += kGroup, to += kStepWords * rows) {
            const int64_t left = in_features - i < kGroup ? in_features - i : kGroup;
            uint32_t words[kMaxRows][16];
            for (int row = 0; row < rows; row++) {
                const T* from = x + row * stride + i;
                fetch_columns(from);
                const Scale scale = scale_of(largest(from, left));
                const i32x16 first = rounded(load_columns(from, left) * scale.inverse);
                const i32x16 second = rounded(load_columns(from + 16, left - 16) * scale.inverse);
                words[row][0] = cast<uint32_t>(scale.scale);
                words[row][1] = -128 * sum_lanes(first + second);
                store_bytes(first, words[row] + 2);
                store_bytes(second, words[row] + 6);
            }
            interleave<kMaxRows>(rows, kStepWords, to, [&](int row) { return load_as<u32x16>(words[row]); });
        }
    }

    template <int rows>
    static void multiply(const uint32_t* x, const char* weights, int64_t steps, Sum (*result)[2], Ahead ahead) {
        Sum sums[rows][2];
        std::memcpy(sums, result, sizeof sums);
        ahead.stride /= kQuads;
        for (; steps; steps--, x += kStepWords * rows, weights += kStepBytes) {
            i32x16 exact[rows][2];
            PAGODA_UNROLL
            for (int row = 0; row < rows; row++) exact[row][0] = exact[row][1] = cast<i32x16>(splat_u32(x[rows + row]));
            PAGODA_UNROLL
            for (int quad = 0; quad < kQuads; quad++) {
                ahead.step();
                const u32x16 codes = load_as<u32x16>(weights + 64 + 64 * quad);
                const u32x16 low = look_up(kBytes, codes & 0x0f0f0f0f), high = look_up(kBytes, codes >> 4 & 0x0f0f0f0f);
                PAGODA_UNROLL
                for (int row = 0; row < rows; row++) {
                    const u32x16 inputs = splat_u32(x[(2 + quad) * rows + row]);
                    exact[row][0] = dot_quads(exact[row][0], low, inputs);
                    exact[row][1] = dot_quads(exact[row][1], high, inputs);
                }
            }
            const f32x16 low_scale = load((const bf16*)weights), high_scale = load((const bf16*)weights + 16);
            PAGODA_UNROLL
            for (int row = 0; row < rows; row++) {
                const float scale = cast<float>(x[row]);
                sums[row][0] += __builtin_convertvector(exact[row][0], f32x16) * (low_scale * scale);
                sums[row][1] += __builtin_convertvector(exact[row][1], f32x16) * (high_scale * scale);
            }
        }
        std::memcpy(result, sums, sizeof sums);
    }

    static f32x16 result(Sum sum, const uint32_t*, int, int, const char*, int) { return sum; }

    template <typename T>
    static void pack_panel(const T* const* rows, int64_t in_features, char* to) {
        for (int64_t i = 0; i < in_features; i += kGroup, to += kStepBytes) {
            float columns[kGroup][kPanel] = {};
            for (int out = 0; out < kPanel; out++) {
                fetch_columns(rows[out] + i);
                float row[kGroup];
                store(row, load_columns(rows[out] + i, in_features - i));
                store(row + 16, load_columns(rows[out] + i + 16, in_features - i - 16));
                for (int j = 0; j < kGroup; j++) columns[j][out] = row[j];
            }
            u32x16 words[2][kQuads];
            for (int half = 0; half < 2; half++) encode(columns, 16 * half, (bf16*)to + 16 * half, words[half]);
            for (int quad = 0; quad < kQuads; quad++) {
                const u32x16 both = words[0][quad] | words[1][quad] << 4;
                std::memcpy(to + 64 + 64 * quad, &both, sizeof both);
            }
        }
    }

   private:
    // 16 groups at once, one per lane.
    struct Codes {
        f32x16 scale;
        f32x16 error;
        f32x16 weights_by_values, values_by_values;
        u32x16 words[kQuads];
    };

    // The nearest values at a given scale, rounded to bfloat16.
    static Codes nearest(const float (*columns)[kPanel], int first, f32x16 scale) {
        Codes codes = {rounded_to<bf16>(scale), {}, {}, {}, {}};
        const f32x16 inverse = codes.scale != 0.0f ? 1.0f / codes.scale : f32x16{};
        for (int i = 0; i < kGroup; i++) {
            const f32x16 weight = load(columns[i] + first), x = weight * inverse;
            u32x16 code = {};
            f32x16 value = splat(kValues[0]);
            for (int j = 1; j < 16; j++) {
                const i32x16 above = x > splat((kValues[j - 1] + kValues[j]) * 0.5f);
                code -= cast<u32x16>(above);
                value = above ? splat(kValues[j]) : value;
            }
            const f32x16 error = weight - value * codes.scale;
            codes.error += error * error;
            codes.weights_by_values += weight * value;
            codes.values_by_values += value * value;
            codes.words[i / 4] |= code << (8 * (i % 4));
        }
        return codes;
    }

    static void keep_better(Codes& best, const Codes& other) {
        const i32x16 better = other.error < best.error;
        best.scale = better ? other.scale : best.scale;
        best.error = better ? other.error : best.error;
        best.weights_by_values = better ? other.weights_by_values : best.weights_by_values;
        best.values_by_values = better ? other.values_by_values : best.values_by_values;
        for (int quad = 0; quad < kQuads; quad++) best.words[quad] = better ? other.words[quad] : best.words[quad];
    }

    // The largest weight becomes the first value or its opposite, whichever is better; then, twice, the scale that is
    // best for these codes (least squares) and the codes that are best for that scale.
    static void encode(const float (*columns)[kPanel], int first, bf16* scales, u32x16* words) {
        f32x16 largest = {};
        for (int i = 0; i < kGroup; i++) {
            const f32x16 weight = load(columns[i] + first);
            largest = weight * weight > largest * largest ? weight : largest;
        }
        Codes best = nearest(columns, first, largest / float(kValues[0]));
        keep_better(best, nearest(columns, first, largest / float(-kValues[0])));
        for (int i = 0; i < 2; i++) {
            const i32x16 any = best.values_by_values > 0.0f;
            keep_better(best, nearest(columns, first, any ? best.weights_by_values / best.values_by_values : f32x16{}));
        }
        store(scales, best.scale);
        std::memcpy(words, best.words, sizeof best.words);
    }
};

}  // namespace
}  // namespace pagoda

PAGODA_LINEAR(int4, pagoda::Int4)
