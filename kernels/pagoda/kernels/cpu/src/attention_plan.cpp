// Lays out one step's attention: which rows meet which keys, and on how many threads.
#include "attention_plan.h"
#include "exports.h"

#include <algorithm>

namespace pagoda {
namespace {

// Rows that go through the keys together: enough to pay for reading a tile, few enough for the cache next to it.
constexpr int64_t kItemRows = 96;
// A group of rows with AVX-512: a multiple leaves no register empty.
constexpr int64_t kGroupRows = 12;

// Rows x keys x head_dim for which a thread is woken, and items that each of them gets at least, for balance.
constexpr int64_t kWorthThread = 1 << 19;
constexpr int64_t kItemsPerThread = 4;

struct Step {
    const int32_t *cu_seqlens_q, *seq_lens;
    int64_t num_seqs, group_size, window;

    // Calls visit(item) for consecutive tokens of every sequence; items are whole.
    template <typename Visit>
    void for_each_item(Visit visit) const {
        int64_t most_tokens = std::max<int64_t>(1, kItemRows / group_size);
        if (most_tokens > kGroupRows) most_tokens -= most_tokens % kGroupRows;
        for (int64_t i = 0; i < num_seqs; i++) {
            const int64_t end = cu_seqlens_q[i + 1], first_position = seq_lens[i] - (end - cu_seqlens_q[i]);
            for (int64_t token = cu_seqlens_q[i]; token < end; token += most_tokens) {
                const int64_t num_tokens = std::min(most_tokens, end - token);
                const int64_t position = first_position + token - cu_seqlens_q[i];
                const int64_t first_key = std::max<int64_t>(0, position + 1 - window), last_key = position + num_tokens;
                visit(Item{int32_t(i), int32_t(token), int32_t(num_tokens), int32_t(position),
                           int32_t(first_key / kSplitKeys), int32_t((last_key + kSplitKeys - 1) / kSplitKeys), -1,
                           int32_t(num_tokens * (last_key - first_key))});
            }
        }
    }
};

}  // namespace
}  // namespace pagoda

// Fills `sizes`, and `items` unless that is null: num_items, the most expensive ones first, then num_merges.
PAGODA_EXPORT void pagoda_plan_attention(const int32_t* cu_seqlens_q, const int32_t* seq_lens, int64_t num_seqs,
                                         int64_t group_size, int64_t num_kv_heads, int64_t head_dim, int64_t window,
                                         int64_t num_threads, pagoda::Item* items, pagoda::PlanSizes* sizes) {
    using namespace pagoda;
    const Step step = {cu_seqlens_q, seq_lens, num_seqs, group_size, window};
    int64_t cost = 0, most_tokens = 0;
    step.for_each_item([&](const Item& item) {
        cost += item.cost;
        most_tokens = std::max<int64_t>(most_tokens, item.num_tokens);
    });
    const int64_t worth = cost * group_size * num_kv_heads * head_dim / kWorthThread;
    const int64_t threads = std::min(num_threads, std::max<int64_t>(1, worth));
    // One thread has nobody to share with.
    const int64_t most_cost = threads == 1 ? INT64_MAX : cost * num_kv_heads / (threads * kItemsPerThread);

    Item* merges = items ? items + sizes->num_items : nullptr;
    *sizes = {0, 0, 0, most_tokens * group_size, threads};
    step.for_each_item([&](Item item) {
        const int64_t first = item.first_split, last = item.last_split;
        if (item.cost <= most_cost || last - first == 1) {
            if (items) items[sizes->num_items] = item;
            sizes->num_items++;
            return;
        }
        const int64_t part_splits = std::max<int64_t>(1, most_cost / (item.num_tokens * kSplitKeys));
        const int64_t split_rows = item.num_tokens * group_size;
        item.partial = sizes->partial_rows;
        if (items) merges[sizes->num_merges] = item;
        sizes->num_merges++;
        for (int64_t split = first; split < last; split += part_splits) {
            Item part = item;
            part.first_split = split;
            part.last_split = std::min(split + part_splits, last);
            part.partial = item.partial + (split - first) * split_rows;
            part.cost = item.num_tokens * (part.last_split - split) * kSplitKeys;
            if (items) items[sizes->num_items] = part;
            sizes->num_items++;
        }
        sizes->partial_rows += (last - first) * split_rows;
    });
    if (items) std::sort(items, merges, [](const Item& a, const Item& b) { return a.cost > b.cost; });
}
