// How the native kernels lay out a block of the paged KV cache, and how they read it, 64 keys at a time.
//
// A cache is a tensor [num_blocks, block_size, num_kv_heads, head_dim], but a block's bytes are in the order in which
// attention multiplies them: lanes of a vector are keys in q k^T, and dimensions in p v. In units of 32 bits, a pair of
// bfloat16 or one float32, it is
//
//     keys:   [num_kv_heads, head_dim / kPack, block_size], pairs of dimensions
//     values: [num_kv_heads, block_size / kPack, head_dim], pairs of slots
#pragma once

#include <algorithm>

#include "vec.h"

namespace pagoda {

struct Bf16Format {
    using Element = bf16;
    static constexpr int kPack = 2;
    static PAGODA_INLINE f32x16 multiply_add(f32x16 sum, u32x16 a, u32x16 b) { return dot_pairs(sum, a, b); }
    static PAGODA_INLINE f32x16 add(f32x16 sum, u32x16 a) { return dot_pairs(sum, a, splat_u32(0x3f803f80)); }
    // 32 numbers as units.
    static PAGODA_INLINE void store_units(uint32_t* to, f32x16 first, f32x16 second) {
        const u32x16 packed = pack_bf16(first, second);
        std::memcpy(to, &packed, sizeof packed);
    }
};

struct F32Format {
    using Element = float;
    static constexpr int kPack = 1;
    static PAGODA_INLINE f32x16 multiply_add(f32x16 sum, u32x16 a, u32x16 b) {
        return sum + cast<f32x16>(a) * cast<f32x16>(b);
    }
    static PAGODA_INLINE f32x16 add(f32x16 sum, u32x16 a) { return sum + cast<f32x16>(a); }
    static PAGODA_INLINE void store_units(uint32_t* to, f32x16 first, f32x16 second) {
        std::memcpy(to, &first, sizeof first);
        std::memcpy(to + 16, &second, sizeof second);
    }
};

struct CacheShape {
    int64_t block_size, num_kv_heads, head_dim;
};

// One head of one block.
template <typename Format>
struct BlockHead {
    static constexpr int kPack = Format::kPack;
    CacheShape shape;
    int64_t index;

    BlockHead(CacheShape shape, int64_t block, int64_t head) : shape(shape), index(block * shape.num_kv_heads + head) {}
    int64_t first_unit() const { return index * shape.block_size * shape.head_dim / kPack; }
    // Row of units of a pair of dimensions, and of a pair of slots.
    int64_t key_row(int64_t pair) const { return first_unit() + pair * shape.block_size; }
    int64_t value_row(int64_t slot) const { return first_unit() + slot / kPack * shape.head_dim; }
};

constexpr int kTileKeys = 64;
constexpr int kTileVectors = kTileKeys / 16;

// 64 consecutive keys, the first at a multiple of 64, as 4 vectors of 16.
struct Tile {
    int64_t start;
    const uint32_t* keys[kTileVectors];    // [head_dim / kPack] rows of 16 units, key_stride apart
    const uint32_t* values[kTileVectors];  // [16 / kPack] rows of head_dim units
    int64_t key_stride;
    int first, last;  // vectors outside [first, last) have no key that was asked for, and no values
};

// Reads keys [begin, end) of a sequence, for one head. Nothing else knows how stored keys and values become units.
template <typename Format>
class TileReader {
    static constexpr int kPack = Format::kPack;

  public:
    // buffer: 2 * kTileKeys * head_dim / kPack units, for vectors that cannot be used where they lie.
    TileReader(const void* k_cache, const void* v_cache, const int32_t* block_table, CacheShape shape, int64_t head,
               int64_t begin, int64_t end, uint32_t* buffer)
        : k_cache_((const uint32_t*)k_cache),
          v_cache_((const uint32_t*)v_cache),
          block_table_(block_table),
          shape_(shape),
          head_(head),
          begin_(begin),
          end_(end),
          direct_(shape.block_size % 16 == 0),
          buffer_(buffer) {}

    // Where the tile at `start` lies, which holds at least one of the keys.
    Tile locate(int64_t start) const {
        Tile tile;
        tile.start = start;
        tile.key_stride = direct_ ? shape_.block_size : 16;
        tile.first = begin_ > start ? (begin_ - start) / 16 : 0;
        tile.last = end_ < start + kTileKeys ? (end_ - start + 15) / 16 : kTileVectors;
        int64_t index = (start + 16 * tile.first) / shape_.block_size;
        int64_t slot = start + 16 * tile.first - index * shape_.block_size;
        for (int i = tile.first; i < tile.last; i++, slot += 16) {
            for (; slot >= shape_.block_size; slot -= shape_.block_size) index++;
            const BlockHead<Format> block = {shape_, block_table_[index], head_};
            tile.keys[i] = k_cache_ + block.key_row(0) + slot;
            tile.values[i] = v_cache_ + block.value_row(slot);
        }
        return tile;
    }

    // Makes a located tile ready to be multiplied: gathers vectors that no block holds in one piece, and clears values of
    // keys that were not asked for, since 0 * NaN is NaN. Those keys are anything.
    void complete(Tile& tile) const {
        for (int i = tile.first; i < tile.last; i++) {
            const int64_t key = tile.start + 16 * i;
            if (direct_ && begin_ <= key && key + 16 <= end_) continue;
            uint32_t* const units = buffer_ + 32 * i * shape_.head_dim / kPack;
            const int64_t from = std::max(begin_, key), to = std::min(end_, key + 16);
            if (!direct_) tile.keys[i] = gather_keys(units, key, from, to);
            tile.values[i] = gather_values(units + 16 * shape_.head_dim / kPack, key, from, to);
        }
        for (int i = 0; i < kTileVectors; i++)
            if (i < tile.first || i >= tile.last) tile.keys[i] = tile.keys[tile.first];
    }

  private:
    BlockHead<Format> block_of(int64_t key) const { return {shape_, block_table_[key / shape_.block_size], head_}; }

    // Keys [from, to) of the vector that starts with `key`.
    const uint32_t* gather_keys(uint32_t* units, int64_t key, int64_t from, int64_t to) const {
        for (int64_t i = from; i < to; i++) {
            const uint32_t* source = k_cache_ + block_of(i).key_row(0) + i % shape_.block_size;
            for (int64_t pair = 0; pair < shape_.head_dim / kPack; pair++)
                units[16 * pair + i - key] = source[pair * shape_.block_size];
        }
        return units;
    }

    const uint32_t* gather_values(uint32_t* units, int64_t key, int64_t from, int64_t to) const {
        using Element = typename Format::Element;
        const int64_t row_size = shape_.head_dim;
        for (int64_t i = key; i < key + 16; i++) {
            // Elements kPack apart; a pair may have a key that is not read.
            Element* target = (Element*)(units + (i - key) / kPack * row_size) + i % kPack;
            const bool read = from <= i && i < to;
            const Element* source = nullptr;
            if (read) source = (const Element*)(v_cache_ + block_of(i).value_row(i % shape_.block_size)) + i % kPack;
            for (int64_t d = 0; d < row_size; d++) target[kPack * d] = read ? source[kPack * d] : Element{};
        }
        return units;
    }

    const uint32_t *k_cache_, *v_cache_;
    const int32_t* block_table_;
    CacheShape shape_;
    int64_t head_, begin_, end_;
    bool direct_;  // vectors can be used where they lie
    uint32_t* buffer_;
};

// Stores a token's keys and values of one head, [head_dim] each.
template <typename Format>
PAGODA_INLINE void store_token(const typename Format::Element* k, const typename Format::Element* v, uint32_t* k_cache,
                               uint32_t* v_cache, BlockHead<Format> block, int64_t slot) {
    using Element = typename Format::Element;
    constexpr int kPack = Format::kPack;
    uint32_t* keys = k_cache + block.key_row(0) + slot;
    for (int64_t pair = 0; pair < block.shape.head_dim / kPack; pair++)
        std::memcpy(keys + pair * block.shape.block_size, k + kPack * pair, sizeof *keys);
    Element* values = (Element*)(v_cache + block.value_row(slot)) + slot % kPack;
    for (int64_t d = 0; d < block.shape.head_dim; d++) values[kPack * d] = v[d];
}

}  // namespace pagoda
