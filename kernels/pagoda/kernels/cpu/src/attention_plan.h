// What the plan of a step looks like to those who lay it out and to those who run it.
#pragma once

#include <cstdint>

namespace pagoda {

// Keys are summed up in splits at fixed positions, and splits are merged in order, whichever thread computed them: so
// they may be shared out without a change of bits.
constexpr int64_t kSplitKeys = 512;

// Consecutive tokens of a sequence against consecutive splits of its keys, for every KV head.
struct Item {
    int32_t sequence;
    int32_t first_token;  // in the batch
    int32_t num_tokens;
    int32_t first_position;
    int32_t first_split, last_split;  // [first_split, last_split)
    int32_t partial;                  // place of first_split's result among partial ones, in rows; -1: the item is whole
    int32_t cost;                     // tokens x keys
};

struct PlanSizes {
    int64_t num_items;
    int64_t num_merges;    // tokens whose splits were shared out, as items behind the others
    int64_t partial_rows;  // rows of partial results, per KV head
    int64_t most_rows;     // of an item
    int64_t num_threads;
};

}  // namespace pagoda
