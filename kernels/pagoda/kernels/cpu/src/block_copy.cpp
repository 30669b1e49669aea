// Blocks of a cache, out of it and into it, in the calling thread alone. What they hold does not matter here.
//
// A cache is [num_parts, num_blocks, part_bytes], a piece is [num_parts, piece_blocks, part_bytes].
#include <cstdint>
#include <cstring>

#include "exports.h"

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kLine = 64;

typedef char Line __attribute__((vector_size(kLine), aligned(1), may_alias));

// Copies a part while the one that is next is fetched: the processor foresees what follows in a part, but not where
// another one lies.
void copy_and_prefetch(char* to, const char* from, const char* next, int64_t num_bytes) {
    int64_t done = 0;
    for (; done + kLine <= num_bytes; done += kLine) {
        __builtin_prefetch(next + done);
        *reinterpret_cast<Line*>(to + done) = *reinterpret_cast<const Line*>(from + done);
    }
    std::memcpy(to + done, from + done, num_bytes - done);
}

#ifdef __SSE2__
// `to` is aligned to a line. Its lines are neither read first nor kept in the processor's cache.
void stream_line(char* to, const char* from) {
#ifdef __AVX512F__
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
#else
    for (int64_t i = 0; i < kLine; i += 16) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
        _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), bytes);
    }
#endif
}

// For a target that is not read soon.
void copy_past_cache(char* to, const char* from, int64_t num_bytes) {
    int64_t done = -reinterpret_cast<intptr_t>(to) & (kLine - 1);
    if (done > num_bytes) done = num_bytes;
    std::memcpy(to, from, done);
    for (; done + kLine <= num_bytes; done += kLine) stream_line(to + done, from + done);
    std::memcpy(to + done, from + done, num_bytes - done);
}

// Streamed lines are seen by others in no order before this.
void settle() { _mm_sfence(); }
#else
void copy_past_cache(char* to, const char* from, int64_t num_bytes) { std::memcpy(to, from, num_bytes); }

void settle() {}
#endif

}  // namespace

// piece[:, i] = cache[:, block_ids[i]].
void pagoda_gather_blocks(const void* cache, int64_t num_parts, int64_t num_blocks, int64_t part_bytes,
                          const int64_t* block_ids, int64_t num_ids, void* piece) {
    char* to = static_cast<char*>(piece);
    for (int64_t part = 0; part < num_parts; ++part) {
        const char* blocks = static_cast<const char*>(cache) + part * num_blocks * part_bytes;
        for (int64_t i = 0; i < num_ids; ++i, to += part_bytes) {
            const char* next = blocks + block_ids[i + 1 < num_ids ? i + 1 : i] * part_bytes;
            copy_and_prefetch(to, blocks + block_ids[i] * part_bytes, next, part_bytes);
        }
    }
}

// cache[:, block_ids[i]] = piece[:, positions[i]]; null positions are 0, 1, 2 ...
void pagoda_scatter_blocks(void* cache, int64_t num_parts, int64_t num_blocks, int64_t part_bytes,
                           const int64_t* block_ids, const int64_t* positions, int64_t num_ids, const void* piece,
                           int64_t piece_blocks) {
    for (int64_t part = 0; part < num_parts; ++part) {
        char* blocks = static_cast<char*>(cache) + part * num_blocks * part_bytes;
        const char* from = static_cast<const char*>(piece) + part * piece_blocks * part_bytes;
        for (int64_t i = 0; i < num_ids; ++i) {
            const int64_t position = positions ? positions[i] : i;
            copy_past_cache(blocks + block_ids[i] * part_bytes, from + position * part_bytes, part_bytes);
        }
    }
    settle();
}
