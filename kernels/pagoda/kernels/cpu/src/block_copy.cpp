// Blocks of a cache, out of it and into it, in the calling thread alone. What they hold does not matter here.
//
// A cache is [num_parts, num_blocks, part_bytes], a piece is [num_parts, piece_blocks, part_bytes]; a source is either.
#include <cstdint>
#include <cstring>

#include "exports.h"

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kLine = 64;

typedef char Line __attribute__((vector_size(kLine), aligned(1), may_alias));

// `to` is aligned to a line, as `from` need not be. Streamed lines are neither read first nor kept in the processor's
// cache: they are for a target that is not read soon.
struct Streamed {
    static void line(char* to, const char* from) {
#if defined(__AVX512F__)
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
#elif defined(__SSE2__)
        for (int64_t i = 0; i < kLine; i += 16) {
            const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
            _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), bytes);
        }
#else
        *reinterpret_cast<Line*>(to) = *reinterpret_cast<const Line*>(from);
#endif
    }
};

struct Cached {
    static void line(char* to, const char* from) { *reinterpret_cast<Line*>(to) = *reinterpret_cast<const Line*>(from); }
};

// Copies a part while the one that is next is fetched: the processor foresees what follows in a part, but not where
// another one lies.
template <typename Stored>
void copy_part(char* to, const char* from, const char* next, int64_t num_bytes) {
    int64_t done = -reinterpret_cast<intptr_t>(to) & (kLine - 1);
    if (done > num_bytes) done = num_bytes;
    std::memcpy(to, from, done);
    for (; done + kLine <= num_bytes; done += kLine) {
        __builtin_prefetch(next + done);
        Stored::line(to + done, from + done);
    }
    std::memcpy(to + done, from + done, num_bytes - done);
}

// Streamed lines are seen by others in no order before this.
void settle() {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

}  // namespace

// piece[:, i] = cache[:, block_ids[i]].
void pagoda_gather_blocks(const void* cache, int64_t num_parts, int64_t num_blocks, int64_t part_bytes,
                          const int64_t* block_ids, int64_t num_ids, void* piece) {
    char* to = static_cast<char*>(piece);
    for (int64_t part = 0; part < num_parts; ++part) {
        const char* blocks = static_cast<const char*>(cache) + part * num_blocks * part_bytes;
        for (int64_t i = 0; i < num_ids; ++i, to += part_bytes) {
            const char* next = blocks + block_ids[i + 1 < num_ids ? i + 1 : i] * part_bytes;
            copy_part<Cached>(to, blocks + block_ids[i] * part_bytes, next, part_bytes);
        }
    }
}

// cache[:, block_ids[i]] = source[:, source_ids[i]].
void pagoda_copy_blocks(void* cache, int64_t num_parts, int64_t num_blocks, int64_t part_bytes,
                        const int64_t* block_ids, const int64_t* source_ids, int64_t num_ids, const void* source,
                        int64_t source_blocks) {
    for (int64_t part = 0; part < num_parts; ++part) {
        char* blocks = static_cast<char*>(cache) + part * num_blocks * part_bytes;
        const char* theirs = static_cast<const char*>(source) + part * source_blocks * part_bytes;
        for (int64_t i = 0; i < num_ids; ++i) {
            const char* next = theirs + source_ids[i + 1 < num_ids ? i + 1 : i] * part_bytes;
            copy_part<Streamed>(blocks + block_ids[i] * part_bytes, theirs + source_ids[i] * part_bytes, next,
                                part_bytes);
        }
    }
    settle();
}

// Writes to every page of blocks [first, last), by which memory gets its pages; others may write there meanwhile.
void pagoda_touch_blocks(void* cache, int64_t num_parts, int64_t num_blocks, int64_t part_bytes, int64_t first,
                         int64_t last) {
    constexpr int64_t kSmallPage = 4096;
    for (int64_t part = 0; part < num_parts; ++part) {
        volatile char* blocks = static_cast<char*>(cache) + part * num_blocks * part_bytes;
        for (int64_t at = first * part_bytes; at < last * part_bytes; at += kSmallPage)
            __atomic_fetch_or(blocks + at, 0, __ATOMIC_RELAXED);
        if (first < last) __atomic_fetch_or(blocks + last * part_bytes - 1, 0, __ATOMIC_RELAXED);
    }
}
