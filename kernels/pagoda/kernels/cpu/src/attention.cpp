// Paged attention: decoding tokens and chunks of prompts, in one call for a ragged batch.
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <optional>

#include "attention_plan.h"
#include "attention_tile.h"
#include "exports.h"

namespace pagoda {
namespace {

// Below this many numbers a second thread costs more than it saves.
constexpr int64_t kWorthThreads = 1 << 15;

// Memory gives more where it is read by pages: a head's part of a block may be less than one.
constexpr int64_t kPageBytes = 4096;
// Most KV heads that go through the keys together, and most rows of each of them.
constexpr int64_t kMostHeads = 4, kFewRows = 16;

// Hands out aligned pieces of memory, or, without memory, counts them.
class Arena {
  public:
    explicit Arena(void* memory) : memory_((char*)memory) {}
    template <typename T>
    T* take(int64_t count) {
        const int64_t at = used_;
        used_ += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
        return memory_ ? (T*)(memory_ + at) : nullptr;
    }
    int64_t used() const { return used_; }

  private:
    char* memory_;
    int64_t used_ = 0;
};

// The result of one split, or of several merged.
struct Partial {
    float* maximum;  // [rows, and 16 more]
    float* sum;      // [rows]
    float* out;      // [rows, head_dim]

    Partial(Arena& arena, int64_t rows, int64_t head_dim)
        : maximum(arena.take<float>(rows + 16)), sum(arena.take<float>(rows)), out(arena.take<float>(rows * head_dim)) {}

    void clear(int64_t rows, int64_t head_dim) const {
        std::fill_n(maximum, rows + 16, kLowest);
        std::fill_n(sum, rows, 0.0f);
        std::fill_n(out, rows * head_dim, 0.0f);
    }
};

// The rows of one KV head of an item, and what they know.
struct Rows {
    uint32_t* q;         // rows in blocks, each [head_dim / kPack, rows of the block] units
    float* scales;       // [rows]; of scores
    int32_t* positions;  // [rows]
    f32x16* sums;        // [rows]
    Partial split, total;

    Rows(Arena& arena, int64_t rows, int64_t head_dim)
        : q(arena.take<uint32_t>(rows * head_dim)),
          scales(arena.take<float>(rows)),
          positions(arena.take<int32_t>(rows)),
          sums(arena.take<f32x16>(rows)),
          split(arena, rows, head_dim),
          total(arena, rows, head_dim) {}
};

// What a thread needs for an item.
struct Scratch {
    Rows heads[kMostHeads];  // those behind the first have room for kFewRows
    uint32_t* tile;          // what TileReader wants
    float* tile_scales;

    Scratch(Arena& arena, int64_t rows, int64_t head_dim)
        : heads{{arena, rows, head_dim},
                {arena, kFewRows, head_dim},
                {arena, kFewRows, head_dim},
                {arena, kFewRows, head_dim}},
          tile(arena.take<uint32_t>(2 * kTileKeys * head_dim)),
          tile_scales(arena.take<float>(2 * kTileKeys)) {}

    static int64_t num_bytes(int64_t rows, int64_t head_dim) {
        Arena arena(nullptr);
        Scratch(arena, rows, head_dim);
        return arena.used();
    }
};

// A partial result's share of memory, whatever the number of rows: its pieces are rounded up to 64 bytes.
int64_t partial_bytes(int64_t rows, int64_t head_dim) { return rows * (head_dim + 48) * sizeof(float); }

// Adds a split to those before it; one in which a row saw nothing changes nothing.
__attribute__((noinline)) void merge(const Partial& into, const Partial& split, int64_t rows, int64_t head_dim) {
    for (int64_t r = 0; r < rows; r++) {
        const f32x16 old_maximum = splat(into.maximum[r]), maximum = splat(split.maximum[r]);
        const f32x16 largest = max(old_maximum, maximum);
        const f32x16 old_factor = exp2_up_to_0(old_maximum - largest), factor = exp2_up_to_0(maximum - largest);
        const f32x16 sum = splat(into.sum[r]) * old_factor + splat(split.sum[r]) * factor;
        into.maximum[r] = largest[0];
        into.sum[r] = sum[0];
        for (int64_t i = r * head_dim; i < (r + 1) * head_dim; i += 16)
            store(into.out + i, load(into.out + i) * old_factor + load(split.out + i) * factor);
    }
}

// One layer's attention.
template <typename Format>
struct Attention {
    using Element = typename Format::Element;
    using Query = typename Format::Query;
    static constexpr int kPack = Format::kPack;

    const Element* q;
    int64_t q_stride;  // from token to token, in elements
    Element* out;
    const void *k_cache, *v_cache;
    const int32_t* block_tables;
    int64_t block_tables_stride, num_heads, group_size;
    CacheShape shape;
    ScoreParams params;

    // KV heads of an item that go through the keys together, and where these are.
    struct Piece {
        const Item* item;
        int64_t first_head, num_heads;
        TileReader<Format> reader;
        int64_t first_start, last_start;  // of the first and the last tile
    };

    void run(const Item* items, const PlanSizes& sizes, char* workspace) const {
        const int64_t kv_heads = shape.num_kv_heads, scratch_bytes = Scratch::num_bytes(sizes.most_rows, shape.head_dim);
        char* const partials = workspace + sizes.num_threads * scratch_bytes;
        std::atomic<int64_t> num_taken{0};
#pragma omp parallel num_threads(sizes.num_threads)
        {
            Arena arena(workspace + omp_get_thread_num() * scratch_bytes);
            const Scratch scratch(arena, sizes.most_rows, shape.head_dim);
            const auto take = [&]() -> std::optional<Piece> {
                while (true) {
                    const int64_t i = num_taken.fetch_add(1, std::memory_order_relaxed);
                    if (i >= sizes.num_items * kv_heads) return std::nullopt;
                    const Item& item = items[i / kv_heads];
                    // The other heads are their neighbour's.
                    if (i % kv_heads % heads_together(item) == 0) return piece(item, i % kv_heads, scratch);
                }
            };
            std::optional<Piece> current = take();
            while (current) current = run_piece(*current, scratch, partials, take);
#pragma omp barrier
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < sizes.num_merges * kv_heads; i++)
                merge_item(items[sizes.num_items + i / kv_heads], i % kv_heads, scratch.heads[0].total, partials);
        }
    }

    // As many as make a page; one where rows are many, which are computed for longer than their keys are read.
    int64_t heads_together(const Item& item) const {
        if (item.num_tokens * group_size > kFewRows || shape.block_size > kTileKeys) return 1;
        const int64_t head_bytes = head_units<Format>(shape) * sizeof(typename Format::Unit);
        return std::min({(kPageBytes + head_bytes - 1) / head_bytes, kMostHeads, shape.num_kv_heads});
    }

    Piece piece(const Item& item, int64_t head, const Scratch& scratch) const {
        const int64_t begin = std::max<int64_t>(0, item.first_position + int64_t(1) - params.window);
        const int64_t end = item.first_position + item.num_tokens;
        const int32_t* const block_table = block_tables + item.sequence * block_tables_stride;
        const TileReader<Format> reader(k_cache, v_cache, block_table, shape, begin, end, scratch.tile,
                                        scratch.tile_scales);
        return {&item,
                head,
                std::min(heads_together(item), shape.num_kv_heads - head),
                reader,
                std::max(item.first_split * kSplitKeys, begin / kTileKeys * kTileKeys),
                (std::min(end, item.last_split * kSplitKeys) - 1) / kTileKeys * kTileKeys};
    }

    // Takes the next piece, whose first tile is fetched while the last one of this is computed, and returns it.
    template <typename Take>
    std::optional<Piece> run_piece(const Piece& piece, const Scratch& scratch, char* partials, const Take& take) const {
        const Item& item = *piece.item;
        const int64_t rows = item.num_tokens * group_size, head_dim = shape.head_dim;
        std::optional<Piece> following;
        for (int64_t i = 0; i < piece.num_heads; i++) {
            pack_rows(item, piece.first_head + i, scratch.heads[i]);
            scratch.heads[i].total.clear(rows, head_dim);
        }
        int64_t start = piece.first_start;
        for (int64_t split = item.first_split; split < item.last_split; split++) {
            for (int64_t i = 0; i < piece.num_heads; i++) {
                scratch.heads[i].split.clear(rows, head_dim);
                std::fill_n(scratch.heads[i].sums, rows, f32x16{});
            }
            for (bool more = true; more; start += kTileKeys) {
                const bool is_last = start == piece.last_start;
                Ahead ahead;
                if (!is_last)
                    read_ahead(piece, start + kTileKeys, ahead);
                else if ((following = take()))
                    read_ahead(*following, following->first_start, ahead);
                ahead.begin(fetching_steps(rows, piece.num_heads));
                for (int64_t i = 0; i < piece.num_heads; i++) {
                    Tile<Format> tile = piece.reader.locate(start, piece.first_head + i);
                    piece.reader.complete(tile);
                    add_tile(tile, ahead, rows, scratch.heads[i]);
                }
                more = !is_last && start + kTileKeys < (split + 1) * kSplitKeys;
            }
            for (int64_t i = 0; i < piece.num_heads; i++) {
                const Rows& head = scratch.heads[i];
                for (int64_t r = 0; r < rows; r++) head.split.sum[r] = sum_lanes(head.sums[r]);
                if (item.partial < 0) {
                    merge(head.total, head.split, rows, head_dim);
                } else {
                    const Partial kept = partial(item, split - item.first_split, piece.first_head + i, partials);
                    kept.clear(rows, head_dim);
                    merge(kept, head.split, rows, head_dim);
                }
            }
        }
        if (item.partial < 0)
            for (int64_t i = 0; i < piece.num_heads; i++) finish(item, piece.first_head + i, scratch.heads[i].total);
        return following;
    }

    void merge_item(const Item& item, int64_t head, const Partial& total, char* partials) const {
        const int64_t rows = item.num_tokens * group_size;
        total.clear(rows, shape.head_dim);
        for (int64_t i = 0; i < item.last_split - item.first_split; i++)
            merge(total, partial(item, i, head, partials), rows, shape.head_dim);
        finish(item, head, total);
    }

  private:
    static void read_ahead(const Piece& piece, int64_t start, Ahead& ahead) {
        piece.reader.read_ahead(piece.reader.locate(start, piece.first_head), piece.num_heads, ahead);
    }

    // Steps of fetching while a tile is computed.
    int64_t fetching_steps(int64_t rows, int64_t num_heads) const {
        const int64_t blocks = std::min<int64_t>((rows + kBlockRows - 1) / kBlockRows, 2);
        const int64_t scores = shape.head_dim / kPack * (kTileVectors / kColumns);
        const int64_t left = shape.head_dim % (16 * kColumns);
        const int64_t columns = shape.head_dim / (16 * kColumns) + left / 32 + left % 32 / 16;
        return num_heads * blocks * (scores + kTileKeys / kPack * columns);
    }

    // The place of the item's i-th split.
    Partial partial(const Item& item, int64_t i, int64_t head, char* partials) const {
        const int64_t rows = item.num_tokens * group_size;
        const int64_t first_row = (item.partial + i * rows) * shape.num_kv_heads + head * rows;
        Arena arena(partials + partial_bytes(first_row, shape.head_dim));
        return Partial(arena, rows, shape.head_dim);
    }

    // Rows are in the order of tokens, so that those of a block see almost the same keys.
    void pack_rows(const Item& item, int64_t head, const Rows& into) const {
        const int64_t rows = item.num_tokens * group_size, units = shape.head_dim / kPack;
        for (int64_t block = 0, end; block < rows; block = end) {
            end = block + block_rows(block, rows);
            const Query* from[kBlockRows];
            alignas(64) Query buffer[kBlockRows][kMaxHeadDim];
            for (int64_t r = block; r < end; r++) {
                into.positions[r] = item.first_position + r / group_size;
                const Element* row = q + (item.first_token + r / group_size) * q_stride +
                                     (head * group_size + r % group_size) * shape.head_dim;
                float scale = 1.0f;
                from[r - block] = Format::to_query(row, shape.head_dim, buffer[r - block], scale);
                into.scales[r] = params.scale * scale;
            }
            uint32_t* to = into.q + block * units;
            for (int64_t unit = 0; unit < units; unit++)
                for (int64_t r = 0; r < end - block; r++) std::memcpy(to++, from[r] + unit * kPack, sizeof(uint32_t));
        }
    }

    void add_tile(const Tile<Format>& tile, Ahead& ahead, int64_t rows, const Rows& head) const {
        for (int64_t first = 0; first < rows;) {
            const int first_rows = block_rows(first, rows);
            const int second_rows = first + first_rows < rows ? block_rows(first + first_rows, rows) : 0;
            const int32_t* positions = head.positions + first;
            const int32_t last_position = positions[first_rows + second_rows - 1];
            if (last_position >= tile.start && positions[0] - int64_t(params.window) < tile.start + kTileKeys - 1) {
                const RowState state = {head.split.maximum + first, head.sums + first,
                                        head.split.out + first * shape.head_dim};
                const auto attend = first == 0 ? attend_group<Format, true> : attend_group<Format, false>;
                attend(head.q + first * shape.head_dim / kPack, head.scales + first, first_rows, second_rows,
                       tile, ahead, positions, params, shape.head_dim, state);
            }
            first += first_rows + second_rows;
        }
    }

    void finish(const Item& item, int64_t head, const Partial& total) const {
        for (int64_t r = 0; r < item.num_tokens * group_size; r++) {
            const int64_t token = item.first_token + r / group_size;
            Element* row = out + (token * num_heads + head * group_size + r % group_size) * shape.head_dim;
            const float factor = 1.0f / total.sum[r];
            for (int64_t d = 0; d < shape.head_dim; d += 16)
                store(row + d, load(total.out + r * shape.head_dim + d) * factor);
        }
    }
};

template <typename Format>
void store_kv(const void* k, const void* v, int64_t k_stride, int64_t v_stride, void* k_cache, void* v_cache,
              const int64_t* slot_mapping, int64_t num_tokens, CacheShape shape, int64_t num_threads) {
    using Element = typename Format::Element;
    if (num_tokens * shape.num_kv_heads * shape.head_dim < kWorthThreads) num_threads = 1;
#pragma omp parallel for num_threads(num_threads)
    for (int64_t token = 0; token < num_tokens; token++) {
        const int64_t slot = slot_mapping[token];
        if (slot < 0) continue;
        for (int64_t head = 0; head < shape.num_kv_heads; head++)
            store_token<Format>((const Element*)k + token * k_stride + head * shape.head_dim,
                                (const Element*)v + token * v_stride + head * shape.head_dim, k_cache, v_cache,
                                {shape, slot / shape.block_size, head}, slot % shape.block_size);
    }
}

// Calls run(format) for the format of a cache of a model.
template <typename Run>
void with_format(bool is_bf16, bool is_cache_int8, Run run) {
    if (is_bf16)
        is_cache_int8 ? run(Int8Format<bf16>()) : run(Bf16Format());
    else
        is_cache_int8 ? run(Int8Format<float>()) : run(F32Format());
}

}  // namespace
}  // namespace pagoda

// k, v: [num_tokens, num_kv_heads, head_dim], tokens k_stride and v_stride elements apart; slot_mapping: [num_tokens],
// -1 = skipped; is_cache_int8: instead of the dtype of k and v.
PAGODA_EXPORT void pagoda_store_kv(const void* k, const void* v, int64_t k_stride, int64_t v_stride, void* k_cache,
                                   void* v_cache, const int64_t* slot_mapping, int64_t num_tokens, int64_t num_kv_heads,
                                   int64_t head_dim, int64_t block_size, int32_t is_bf16, int32_t is_cache_int8,
                                   int32_t num_threads) {
    using namespace pagoda;
    with_format(is_bf16, is_cache_int8, [&](auto format) {
        store_kv<decltype(format)>(k, v, k_stride, v_stride, k_cache, v_cache, slot_mapping, num_tokens,
                                   {block_size, num_kv_heads, head_dim}, num_threads);
    });
}

// Memory that pagoda_attend needs, in bytes.
PAGODA_EXPORT int64_t pagoda_attention_workspace(const pagoda::PlanSizes* sizes, int64_t num_kv_heads, int64_t head_dim) {
    using namespace pagoda;
    return sizes->num_threads * Scratch::num_bytes(sizes->most_rows, head_dim) +
           partial_bytes(sizes->partial_rows * num_kv_heads, head_dim);
}

// q: [num_tokens, num_heads, head_dim], tokens q_stride elements apart; out: [num_tokens, num_heads, head_dim];
// block_tables: [num_seqs, ...], rows block_tables_stride apart; items, sizes: of pagoda_plan_attention with the same
// window; soft_cap 0: none.
PAGODA_EXPORT void pagoda_attend(const void* q, int64_t q_stride, void* out, const void* k_cache, const void* v_cache,
                                 const int32_t* block_tables, int64_t block_tables_stride, int64_t num_heads,
                                 int64_t num_kv_heads, int64_t head_dim, int64_t block_size, float scale, float soft_cap,
                                 int32_t window, int32_t is_bf16, int32_t is_cache_int8, const pagoda::Item* items,
                                 const pagoda::PlanSizes* sizes, void* workspace) {
    using namespace pagoda;
    const float log2_e = 1.44269504f;
    const ScoreParams params = {soft_cap == 0.0f ? scale * log2_e : scale / soft_cap, soft_cap * log2_e, window};
    with_format(is_bf16, is_cache_int8, [&](auto format) {
        using Format = decltype(format);
        using Element = typename Format::Element;
        const Attention<Format> attention = {
            (const Element*)q,
            q_stride,
            (Element*)out,
            k_cache,
            v_cache,
            block_tables,
            block_tables_stride,
            num_heads,
            num_heads / num_kv_heads,
            {block_size, num_kv_heads, head_dim},
            params,
        };
        attention.run(items, *sizes, (char*)workspace);
    });
}
