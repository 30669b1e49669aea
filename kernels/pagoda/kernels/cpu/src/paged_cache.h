// How the native kernels lay out a block of the paged KV cache, and how they read it, 64 keys at a time.
//
// A cache is a tensor [num_blocks, block_size, num_kv_heads, head_dim], but a block's bytes are in the order in which
// attention multiplies them: lanes of a vector are keys in q k^T, and dimensions in p v. In units it is
//
//     keys:   [num_kv_heads, head_dim / kPack, block_size], pairs of dimensions
//     values: [num_kv_heads, block_size / kPack, head_dim], pairs of slots
//
// In formats with scales, those of a head's slots, [block_size] float32, follow its units: a block has all that is needed
// to read it.
#pragma once

#include <algorithm>

#include "cache_formats.h"
#include "read_ahead.h"

namespace pagoda {

struct CacheShape {
    int64_t block_size, num_kv_heads, head_dim;
};

// From one head's units to those of the next in the same block.
template <typename Format>
int64_t head_units(const CacheShape& shape) {
    return shape.block_size * (shape.head_dim / Format::kPack + Format::kScaleUnits);
}

// One head of one block.
template <typename Format>
struct BlockHead {
    static constexpr int kPack = Format::kPack;
    CacheShape shape;
    int64_t index;

    BlockHead(CacheShape shape, int64_t block, int64_t head) : shape(shape), index(block * shape.num_kv_heads + head) {}
    int64_t first_unit() const { return index * head_units<Format>(shape); }
    // Row of units of a pair of dimensions, and of a pair of slots.
    int64_t key_row(int64_t pair) const { return first_unit() + pair * shape.block_size; }
    int64_t value_row(int64_t slot) const { return first_unit() + slot / kPack * shape.head_dim; }
    int64_t scales() const { return key_row(shape.head_dim / kPack); }
};

constexpr int kTileKeys = 64;
constexpr int kTileVectors = kTileKeys / 16;

// 64 consecutive keys of one head, the first at a multiple of 64, as 4 vectors of 16.
template <typename Format>
struct Tile {
    using Unit = typename Format::Unit;
    int64_t start, head;
    const Unit* keys[kTileVectors];    // [head_dim / kPack] rows of 16 units, key_stride apart
    const Unit* values[kTileVectors];  // [16 / kPack] rows of head_dim units
    const float *key_scales[kTileVectors], *value_scales[kTileVectors];  // [16], in formats with scales
    int64_t key_stride;
    int first, last;  // vectors outside [first, last) have no key that was asked for: they are the first one's again
};

// Reads keys [begin, end) of a sequence. Nothing else knows how stored keys and values become units.
template <typename Format>
class TileReader {
    using Stored = typename Format::Stored;
    using Unit = typename Format::Unit;
    static constexpr int kPack = Format::kPack;

  public:
    // buffer: 2 * kTileKeys * head_dim / kPack units, for vectors that cannot be used where they lie; scale_buffer:
    // 2 * kTileKeys, likewise.
    TileReader(const void* k_cache, const void* v_cache, const int32_t* block_table, CacheShape shape, int64_t begin,
               int64_t end, void* buffer, float* scale_buffer)
        : k_cache_((const Unit*)k_cache),
          v_cache_((const Unit*)v_cache),
          block_table_(block_table),
          shape_(shape),
          begin_(begin),
          end_(end),
          direct_(shape.block_size % 16 == 0),
          buffer_((Unit*)buffer),
          scale_buffer_(scale_buffer) {}

    // Where the tile at `start` lies, which holds at least one of the keys.
    Tile<Format> locate(int64_t start, int64_t head) const {
        Tile<Format> tile;
        tile.start = start, tile.head = head;
        tile.key_stride = direct_ ? shape_.block_size : 16;
        tile.first = begin_ > start ? (begin_ - start) / 16 : 0;
        tile.last = end_ < start + kTileKeys ? (end_ - start + 15) / 16 : kTileVectors;
        int64_t index = (start + 16 * tile.first) / shape_.block_size;
        int64_t slot = start + 16 * tile.first - index * shape_.block_size;
        for (int i = tile.first; i < tile.last; i++, slot += 16) {
            for (; slot >= shape_.block_size; slot -= shape_.block_size) index++;
            const BlockHead<Format> block = {shape_, block_table_[index], head};
            tile.keys[i] = k_cache_ + block.key_row(0) + slot;
            tile.values[i] = v_cache_ + block.value_row(slot);
            if constexpr (Format::kScaled) {
                tile.key_scales[i] = (const float*)(k_cache_ + block.scales()) + slot;
                tile.value_scales[i] = (const float*)(v_cache_ + block.scales()) + slot;
            }
        }
        for (int i = 0; i < kTileVectors; i++) {
            if (tile.first <= i && i < tile.last) continue;
            tile.keys[i] = tile.keys[tile.first];
            tile.values[i] = tile.values[tile.first];
        }
        return tile;
    }

    // Adds the memory of a located tile to what is fetched, with that of the heads that follow: so many in all. Of vectors
    // that are gathered, it adds nothing.
    void read_ahead(const Tile<Format>& tile, int64_t num_heads, Ahead& ahead) const {
        if (!direct_) return;
        const bool by_blocks = shape_.block_size <= kTileKeys;
        const int64_t block_bytes = num_heads * head_units<Format>(shape_) * sizeof(Unit);
        Ahead::Group keys = {{}, 0, block_bytes}, values = keys;
        int64_t slots;
        for (int i = tile.first; i < tile.last; i += slots / 16) {
            const int64_t slot = (tile.start + 16 * i) % shape_.block_size;
            slots = std::min<int64_t>(shape_.block_size - slot, 16 * (tile.last - i));
            if (by_blocks) {
                keys.pieces[keys.num_pieces++] = (const char*)(tile.keys[i] - slot);
                values.pieces[values.num_pieces++] = (const char*)(tile.values[i] - slot / kPack * shape_.head_dim);
                continue;
            }
            for (int64_t row = 0; row < shape_.head_dim / kPack; row++)
                ahead.add({{(const char*)(tile.keys[i] + row * shape_.block_size)}, 1, slots * int64_t(sizeof(Unit))});
            ahead.add({{(const char*)tile.values[i]}, 1, slots / kPack * shape_.head_dim * int64_t(sizeof(Unit))});
        }
        if (by_blocks) ahead.add(keys), ahead.add(values);
    }

    // Makes a located tile ready to be multiplied: gathers vectors that no block holds in one piece, and clears values of
    // keys that were not asked for, since 0 * NaN is NaN; of integers, which are no NaN, the scales. Those keys are
    // anything.
    void complete(Tile<Format>& tile) const {
        for (int i = tile.first; i < tile.last; i++) {
            const int64_t key = tile.start + 16 * i;
            if (direct_ && begin_ <= key && key + 16 <= end_) continue;
            Unit* const units = buffer_ + 32 * i * shape_.head_dim / kPack;
            const int64_t from = std::max(begin_, key), to = std::min(end_, key + 16);
            if (!direct_) tile.keys[i] = gather_keys(units, tile.head, key, from, to);
            if (!direct_ || !Format::kScaled)
                tile.values[i] = gather_values(units + 16 * shape_.head_dim / kPack, tile.head, key, from, to);
            if constexpr (Format::kScaled) {
                tile.key_scales[i] = gather_scales(k_cache_, scale_buffer_ + 32 * i, tile.head, key, from, to);
                tile.value_scales[i] = gather_scales(v_cache_, scale_buffer_ + 32 * i + 16, tile.head, key, from, to);
            }
        }
        static constexpr float kNoScales[16] = {};
        for (int i = 0; i < kTileVectors; i++) {
            if (tile.first <= i && i < tile.last) continue;
            tile.keys[i] = tile.keys[tile.first];
            tile.key_scales[i] = tile.value_scales[i] = kNoScales;
        }
    }

  private:
    BlockHead<Format> block_of(int64_t key, int64_t head) const {
        return {shape_, block_table_[key / shape_.block_size], head};
    }

    // Keys [from, to) of the vector that starts with `key`.
    const Unit* gather_keys(Unit* units, int64_t head, int64_t key, int64_t from, int64_t to) const {
        for (int64_t i = from; i < to; i++) {
            const Unit* source = k_cache_ + block_of(i, head).key_row(0) + i % shape_.block_size;
            for (int64_t pair = 0; pair < shape_.head_dim / kPack; pair++)
                units[16 * pair + i - key] = source[pair * shape_.block_size];
        }
        return units;
    }

    const Unit* gather_values(Unit* units, int64_t head, int64_t key, int64_t from, int64_t to) const {
        constexpr int kBits = 8 * sizeof(Stored);
        constexpr Unit kElement = Unit(-1) >> kBits * (kPack - 1);
        int64_t index = key / shape_.block_size, slot = key % shape_.block_size;
        for (int64_t i = key; i < key + 16; i += kPack, slot += kPack) {
            if (slot == shape_.block_size) index++, slot = 0;
            // A pair may have a key that is not read.
            Unit mask = 0;
            for (int element = 0; element < kPack; element++)
                if (from <= i + element && i + element < to) mask |= kElement << kBits * element;
            Unit* const target = units + (i - key) / kPack * shape_.head_dim;
            if (!mask) {
                std::fill_n(target, shape_.head_dim, Unit{});
                continue;
            }
            const Unit* source = v_cache_ + BlockHead<Format>(shape_, block_table_[index], head).value_row(slot);
            for (int64_t d = 0; d < shape_.head_dim; d++) target[d] = source[d] & mask;
        }
        return units;
    }

    const float* gather_scales(const Unit* cache, float* scales, int64_t head, int64_t key, int64_t from,
                               int64_t to) const {
        std::fill_n(scales, 16, 0.0f);
        for (int64_t i = from; i < to; i++)
            scales[i - key] = ((const float*)(cache + block_of(i, head).scales()))[i % shape_.block_size];
        return scales;
    }

    const Unit *k_cache_, *v_cache_;
    const int32_t* block_table_;
    CacheShape shape_;
    int64_t begin_, end_;
    bool direct_;  // vectors can be used where they lie
    Unit* buffer_;
    float* scale_buffer_;
};

// Stores a token's keys and values of one head, [head_dim] each.
template <typename Format>
PAGODA_INLINE void store_token(const typename Format::Element* k, const typename Format::Element* v, void* k_cache,
                               void* v_cache, BlockHead<Format> block, int64_t slot) {
    using Stored = typename Format::Stored;
    using Unit = typename Format::Unit;
    constexpr int kPack = Format::kPack;
    const int64_t head_dim = block.shape.head_dim;
    alignas(64) Stored buffer[kMaxHeadDim];
    float scale;

    const Stored* stored = Format::to_stored(k, head_dim, buffer, scale);
    Unit* keys = (Unit*)k_cache + block.key_row(0) + slot;
    for (int64_t pair = 0; pair < head_dim / kPack; pair++)
        std::memcpy(keys + pair * block.shape.block_size, stored + kPack * pair, sizeof *keys);
    if constexpr (Format::kScaled) ((float*)((Unit*)k_cache + block.scales()))[slot] = scale;

    stored = Format::to_stored(v, head_dim, buffer, scale);
    Stored* values = (Stored*)((Unit*)v_cache + block.value_row(slot)) + slot % kPack;
    for (int64_t d = 0; d < head_dim; d++) values[kPack * d] = stored[d];
    if constexpr (Format::kScaled) ((float*)((Unit*)v_cache + block.scales()))[slot] = scale;
}

}  // namespace pagoda
