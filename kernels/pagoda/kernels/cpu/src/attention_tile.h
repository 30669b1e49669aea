// One step of online softmax (https://arxiv.org/abs/2205.14135): a few query rows against one tile of keys.
//
// A row is one query head of one token; rows of all heads that share a KV head are computed together. No operation mixes
// rows, and the order in which dimensions and a tile's keys are summed up is fixed, so a row's bits do not depend on
// the other rows.
#pragma once

#include <algorithm>
#include <utility>

#include "paged_cache.h"

namespace pagoda {

// A block of rows: as many sums as fit in the registers beside their operands, rows x columns (of 16 keys or
// dimensions).
#ifdef __AVX512F__
constexpr int kBlockRows = 6, kColumns = 4;
#else
constexpr int kBlockRows = 2, kColumns = 2;
#endif

// Rows whose softmax is computed together, which hides latency: two blocks.
constexpr int kGroupRows = 2 * kBlockRows;
static_assert(kGroupRows <= 16);

// No score is below kLowest but that of a masked key, and 2 to the power of their difference is 0.
constexpr float kLowest = -1e38f, kMasked = -3e38f;

// Scores are in units of log 2: softmax is 2^score / sum.
struct ScoreParams {
    float scale;     // of q k^T, times log2(e); with a soft cap, divided by the cap instead
    float soft_cap;  // times log2(e); 0: none
    int32_t window;  // a row sees so many keys, its own position the last
};

// What a few rows know after some keys.
struct RowState {
    float* maximum;  // [rows, and 16 more]
    f32x16* sum;     // [rows]; lanes are to be added up
    float* out;      // [rows, head_dim]; the sum of values, weighted
};

// How a tile is added to what rows know: out = kept * out + added * weights values.
struct Factors {
    alignas(64) float kept[16], added[16];  // added: in formats with scales; otherwise it is 1
};

template <typename Format, bool kFetch, int kRows, int kCount>
PAGODA_INLINE void score_columns(const uint32_t* q, const float* scales, const Tile<Format>& tile, int first,
                                 int64_t units, Ahead& ahead, float* scores) {
    typename Format::Sum sums[kRows][kCount] = {};
    auto* lines = kFetch ? ahead.take(units) : nullptr;
    for (int64_t unit = 0; unit < units; unit++) {
        if constexpr (kFetch) ahead.step(lines);
        u32x16 key[kCount];
#pragma GCC unroll 8
        for (int c = 0; c < kCount; c++) key[c] = Format::load_units(tile.keys[first + c] + unit * tile.key_stride);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; r++) {
            const u32x16 query = splat_u32(q[unit * kRows + r]);
#pragma GCC unroll 8
            for (int c = 0; c < kCount; c++) sums[r][c] = Format::multiply_add(sums[r][c], query, key[c]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 8
        for (int c = 0; c < kCount; c++) {
            f32x16 score = Format::to_float(sums[r][c]) * scales[r];
            if constexpr (Format::kScaled) score *= load(tile.key_scales[first + c]);
            store(scores + r * kTileKeys + 16 * (first + c), score);
        }
}

// scores [kRows, kTileKeys] = scales q k^T; q: [head_dim / kPack, kRows] units, scales: [kRows].
template <typename Format, bool kFetch, int kRows>
void score_tile(const uint32_t* q, const float* scales, const Tile<Format>& tile, int64_t head_dim, Ahead& ahead,
                float* scores) {
    for (int i = 0; i < kTileVectors; i += kColumns)
        score_columns<Format, kFetch, kRows, kColumns>(q, scales, tile, i, head_dim / Format::kPack, ahead, scores);
}

template <typename Format, bool kFetch, int kRows, int kCount>
PAGODA_INLINE void weigh_columns(const uint32_t* weights, const Tile<Format>& tile, int64_t head_dim, int64_t column,
                                 const float* kept, const float* added, Ahead& ahead, float* out) {
    constexpr int64_t kPairs = 16 / Format::kPack;
    typename Format::Sum sums[kRows][kCount] = {};
    const int64_t last = tile.last;
    auto* lines = kFetch ? ahead.take(kPairs * (last - tile.first)) : nullptr;
    int64_t offset = column;
    for (int64_t pair = 0; pair < kPairs; pair++, offset += head_dim) {
        for (int64_t vector = tile.first; vector < last; vector++) {
            if constexpr (kFetch) ahead.step(lines);
            u32x16 value[kCount];
#pragma GCC unroll 8
            for (int c = 0; c < kCount; c++) value[c] = Format::load_units(tile.values[vector] + offset + 16 * c);
#pragma GCC unroll 8
            for (int r = 0; r < kRows; r++) {
                const u32x16 weight = splat_u32(weights[r * kTileKeys / Format::kPack + vector * kPairs + pair]);
#pragma GCC unroll 8
                for (int c = 0; c < kCount; c++) sums[r][c] = Format::multiply_add(sums[r][c], weight, value[c]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 8
        for (int c = 0; c < kCount; c++) {
            float* sum = out + r * head_dim + column + 16 * c;
            f32x16 more = Format::to_float(sums[r][c]);
            if constexpr (Format::kScaled) more *= added[r];
            store(sum, load(sum) * kept[r] + more);
        }
}

// out [kRows, head_dim] = kept out + added weights v; weights: [kRows, kTileKeys / kPack] units, factors: [kRows].
template <typename Format, bool kFetch, int kRows>
void weigh_tile(const uint32_t* weights, const Tile<Format>& tile, int64_t head_dim, const float* kept,
                const float* added, Ahead& ahead, float* out) {
    int64_t column = 0;
    for (; column + 16 * kColumns <= head_dim; column += 16 * kColumns)
        weigh_columns<Format, kFetch, kRows, kColumns>(weights, tile, head_dim, column, kept, added, ahead, out);
    for (; column + 32 <= head_dim; column += 32)
        weigh_columns<Format, kFetch, kRows, 2>(weights, tile, head_dim, column, kept, added, ahead, out);
    for (; column < head_dim; column += 16)
        weigh_columns<Format, kFetch, kRows, 1>(weights, tile, head_dim, column, kept, added, ahead, out);
}

// Caps scores [rows, kTileKeys], and masks those of keys that the row does not see.
__attribute__((noinline)) inline void adjust_scores(float* scores, int rows, const int32_t* positions,
                                                    int64_t tile_start, const ScoreParams& params) {
    const i32x16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int r = 0; r < rows; r++) {
        for (int i = 0; i < kTileVectors; i++) {
            float* at = scores + r * kTileKeys + 16 * i;
            f32x16 score = load(at);
            if (params.soft_cap != 0.0f) score = tanh(score) * params.soft_cap;
            // How far before the row the key is.
            const i32x16 distance = int32_t(positions[r] - tile_start - 16 * i) - lanes;
            store(at, ((distance >= 0) & (distance < params.window)) ? score : splat(kMasked));
        }
    }
}

// The largest of scores [rows, kTileKeys], row by row; lanes behind the rows are masked.
PAGODA_INLINE f32x16 largest_scores(const float* scores, int rows) {
    f32x16 largest[16];
    for (int r = 0; r < rows; r++) {
        const float* row = scores + r * kTileKeys;
        largest[r] = load(row);
        for (int i = 1; i < kTileVectors; i++) largest[r] = max(largest[r], load(row + 16 * i));
    }
    for (int r = rows; r < 16; r++) largest[r] = splat(kMasked);
    return max_of_rows(largest);
}

// Turns scores [rows, kTileKeys] into weights [rows, kTileKeys / kPack] relative to the new maxima.
template <typename Format>
PAGODA_INLINE void update_softmax(const float* scores, int rows, const RowState& state, uint32_t* weights,
                                  Factors& factors) {
    constexpr int kPack = Format::kPack;
    // Lanes behind the rows belong to other rows, and stay as they are.
    const f32x16 old_maximum = load(state.maximum), maximum = max(old_maximum, largest_scores(scores, rows));
    store(state.maximum, maximum);
    store(factors.kept, exp2_up_to_0(old_maximum - maximum));
    for (int r = 0; r < rows; r++) {
        const f32x16 row_maximum = splat(state.maximum[r]);
        const float* row = scores + r * kTileKeys;
        uint32_t* units = weights + r * kTileKeys / kPack;
        f32x16 sum = state.sum[r] * factors.kept[r];
        for (int i = 0; i < kTileVectors; i += 2) {
            const f32x16 first = exp2_up_to_0(load(row + 16 * i) - row_maximum);
            const f32x16 second = exp2_up_to_0(load(row + 16 * i + 16) - row_maximum);
            Format::store_units(units + i * 16 / kPack, first, second);
        }
        // What is added up is what is multiplied with the values, after rounding.
        for (int i = 0; i < kTileVectors / kPack; i++) sum = Format::add(sum, load_as<u32x16>(units + 16 * i));
        state.sum[r] = sum;
    }
}

// The same for values with scales, which the weights are multiplied with before they are rounded. They are relative to
// the row's largest score and largest weight in this tile, so that what rounding costs does not depend on other tiles.
// Overwrites the scores.
template <typename Format>
PAGODA_INLINE void update_scaled_softmax(float* scores, int rows, const Tile<Format>& tile, const RowState& state,
                                         uint32_t* weights, Factors& factors) {
    constexpr int kPack = Format::kPack;
    // Where a row sees nothing, masked scores are far below this one too.
    alignas(64) float tile_maximum[16], inverse[16];
    store(tile_maximum, max(splat(kLowest), largest_scores(scores, rows)));
    const f32x16 old_maximum = load(state.maximum), maximum = max(old_maximum, load(tile_maximum));
    store(state.maximum, maximum);
    store(factors.kept, exp2_up_to_0(old_maximum - maximum));
    const f32x16 tile_factor = exp2_up_to_0(load(tile_maximum) - maximum);
    store(factors.added, tile_factor);

    // As integers, numbers that are not negative are in the order of their bits, and NaN is above infinity.
    i32x16 largest[16] = {};
    for (int r = 0; r < rows; r++) {
        float* row = scores + r * kTileKeys;
        f32x16 sum = {};
        for (int i = 0; i < kTileVectors; i++) {
            const f32x16 weight = exp2_up_to_0(load(row + 16 * i) - tile_maximum[r]);
            sum += weight;
            const f32x16 scaled = weight * load(tile.value_scales[i]);
            largest[r] = max(largest[r], cast<i32x16>(scaled));
            store(row + 16 * i, scaled);
        }
        state.sum[r] = state.sum[r] * factors.kept[r] + sum * factors.added[r];
    }
    const f32x16 most = cast<f32x16>(max_of_rows(largest));
    // Below this the inverse would overflow.
    store(inverse, most >= splat(1e-36f) ? float(Format::kMostQuery) / most : f32x16{});
    store(factors.added, tile_factor * (most / float(Format::kMostQuery)));
    for (int r = 0; r < rows; r++) {
        const float* row = scores + r * kTileKeys;
        for (int i = 0; i < kTileVectors; i += 2)
            Format::store_units(weights + (r * kTileKeys + 16 * i) / kPack, load(row + 16 * i) * inverse[r],
                                load(row + 16 * i + 16) * inverse[r]);
    }
}

template <typename Format, bool kFetch>
struct BlockFunctions {
    decltype(&score_tile<Format, kFetch, 1>) score;
    decltype(&weigh_tile<Format, kFetch, 1>) weigh;
};

template <typename Format, bool kFetch, int... kRows>
PAGODA_INLINE BlockFunctions<Format, kFetch> block_functions(int rows, std::integer_sequence<int, kRows...>) {
    static constexpr BlockFunctions<Format, kFetch> functions[] = {
        {score_tile<Format, kFetch, kRows + 1>, weigh_tile<Format, kFetch, kRows + 1>}...};
    return functions[rows - 1];
}

// Rows of the block that starts with row `first`: blocks are as equal as can be, the larger ones first.
inline int block_rows(int64_t first, int64_t rows) {
    const int64_t left = rows - first, blocks = (left + kBlockRows - 1) / kBlockRows;
    return (left + blocks - 1) / blocks;
}

// Adds a tile to the state of one or two blocks of rows; q: [head_dim / kPack, rows of the block] units, for each;
// scales: of scores, [rows]. ahead: what to fetch meanwhile, if kFetch.
template <typename Format, bool kFetch>
void attend_group(const uint32_t* q, const float* scales, int first_rows, int second_rows, const Tile<Format>& tile,
                  Ahead& ahead, const int32_t* positions, const ScoreParams& params, int64_t head_dim,
                  const RowState& state) {
    alignas(64) float scores[kGroupRows * kTileKeys];
    alignas(64) uint32_t weights[kGroupRows * kTileKeys / Format::kPack];
    Factors factors;
    const auto all = std::make_integer_sequence<int, kBlockRows>();
    const int rows = first_rows + second_rows;
    if (rows > kGroupRows) __builtin_unreachable();
    const auto first = block_functions<Format, kFetch>(first_rows, all);
    const auto second = block_functions<Format, kFetch>(std::max(second_rows, 1), all);

    first.score(q, scales, tile, head_dim, ahead, scores);
    if (second_rows)
        second.score(q + first_rows * head_dim / Format::kPack, scales + first_rows, tile, head_dim, ahead,
                     scores + first_rows * kTileKeys);
    const bool all_visible =
        positions[0] >= tile.start + kTileKeys - 1 && positions[rows - 1] - int64_t(params.window) < tile.start;
    if (!all_visible || params.soft_cap != 0.0f) adjust_scores(scores, rows, positions, tile.start, params);
    if constexpr (Format::kScaled)
        update_scaled_softmax<Format>(scores, rows, tile, state, weights, factors);
    else
        update_softmax<Format>(scores, rows, state, weights, factors);
    first.weigh(weights, tile, head_dim, factors.kept, factors.added, ahead, state.out);
    if (second_rows)
        second.weigh(weights + first_rows * kTileKeys / Format::kPack, tile, head_dim, factors.kept + first_rows,
                     factors.added + first_rows, ahead, state.out + first_rows * head_dim);
}

}  // namespace pagoda
