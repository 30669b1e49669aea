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

// to[j * num_rows + i] = from[i][j], for up to 16 rows.
PAGODA_INLINE void interleave(const uint32_t (*from)[16], int num_rows, int columns, uint32_t* to) {
    if (num_rows == 1) {
        std::memcpy(to, from[0], columns * sizeof(uint32_t));
        return;
    }
    u32x16 words[16] = {};
    for (int i = 0; i < num_rows; i++) words[i] = load_as<u32x16>(from[i]);
    transpose(words);
    for (int j = 0; j < columns; j++) {
        // Whole vectors reach into columns that come later, but never behind the last one.
        if (j * num_rows + 16 <= columns * num_rows)
            std::memcpy(to + j * num_rows, &words[j], sizeof words[j]);
        else
            std::memcpy(to + j * num_rows, &words[j], num_rows * sizeof(uint32_t));
    }
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
