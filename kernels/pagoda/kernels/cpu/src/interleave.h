// Rows side by side: words of 32 bits of several rows in the order in which tiles read them.
#pragma once

#include "vec.h"

#ifdef __clang__
#define PAGODA_UNROLL _Pragma("unroll")
#else
#define PAGODA_UNROLL _Pragma("GCC unroll 16")
#endif

namespace pagoda {

constexpr int64_t kPanel = 32;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows are read side by side, a line or two of each at a time, which the processor does not foresee.
template <typename T>
PAGODA_INLINE void fetch_columns(const T* from) {
    __builtin_prefetch((const char*)from + 512, 0, 3);
}

// 16 values of a row, of which `count` exist; the rest is 0.
template <typename T>
PAGODA_INLINE f32x16 load_columns(const T* from, int64_t count) {
    if (count >= 16) return load(from);
    T lanes[16] = {};
    if (count > 0) std::memcpy(lanes, from, count * sizeof(T));
    return load(lanes);
}

// 16 x 16 words, rows to columns: four times, the upper eight rows are interleaved with the lower eight.
PAGODA_INLINE void transpose(u32x16 (&rows)[16]) {
    PAGODA_UNROLL
    for (int round = 0; round < 4; round++) {
        u32x16 next[16];
        PAGODA_UNROLL
        for (int i = 0; i < 8; i++) {
            const u32x16 a = rows[i], b = rows[i + 8];
            next[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            next[2 * i + 1] =
                __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        std::memcpy(rows, next, sizeof next);
    }
}

// The first `count` words; where there is `room` for 16, the others may be written, too.
PAGODA_INLINE void store_words(uint32_t* to, u32x16 words, int count, [[maybe_unused]] int room) {
#ifdef __AVX512F__
    _mm512_mask_storeu_epi32(to, (1u << count) - 1, cast<__m512i>(words));
#else
    std::memcpy(to, &words, room >= 16 ? sizeof words : count * sizeof(uint32_t));
#endif
}

// to[j * num_rows + i] = row(i)[j], for up to max_rows rows and 16 columns.
template <int max_rows, typename Row>
PAGODA_INLINE void interleave(int num_rows, int columns, uint32_t* to, const Row& row) {
    if (num_rows == 1) {
        store_words(to, row(0), columns, columns);
        return;
    }
    u32x16 words[16] = {};
    PAGODA_UNROLL
    for (int i = 0; i < max_rows; i++)
        if (i < num_rows) words[i] = row(i);
    transpose(words);
    PAGODA_UNROLL
    for (int j = 0; j < 16; j++)
        if (j < columns) store_words(to + j * num_rows, words[j], num_rows, (columns - j) * num_rows);
}

// to[j][i] = from[i][j]
PAGODA_INLINE void interleave_panel(const uint32_t (*from)[16], int columns, uint32_t* to) {
    for (int half = 0; half < 2; half++) {
        u32x16 words[16];
        std::memcpy(words, from + 16 * half, sizeof words);
        transpose(words);
        for (int j = 0; j < columns; j++) std::memcpy(to + j * kPanel + 16 * half, &words[j], sizeof words[j]);
    }
}

}  // namespace pagoda
