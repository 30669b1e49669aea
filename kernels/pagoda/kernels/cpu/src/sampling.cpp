// Draws a token from each row of logits: filters and an inverse of the cumulative distribution, without a sort.
//
// A token's weight is its probability divided by that of the most likely token of its row, so it is in [0, 1]. Sums of
// weights are in double precision, in an order that a row's logits and parameters fix. A row is one thread's work.
#include <algorithm>
#include <cfloat>
#include <cmath>

#include "exports.h"
#include "registers.h"
#include "work_sharing.h"

namespace pagoda {
namespace {

// Tokens per partial sum of the cumulative distribution; lane i of a chunk has its tokens i, i + kLanes, ...
constexpr int64_t kChunk = 256;

// A list is copied without what fell out of it when at most one in so many is left.
constexpr int64_t kWorthCopy = 4;

constexpr uint32_t kOneBits = 0x3f800000;

int64_t num_chunks(int64_t size) { return (size + kChunk - 1) / kChunk; }

struct Parameters {
    float temperature, top_p, min_p;
    int32_t top_k;
    uint64_t seed, position;
};

// Scratch memory of one thread, for rows of `chunks` chunks.
struct Memory {
    Memory(Workspace& workspace, int64_t chunks) {
        // Vectors are written whole: one more has room behind a list. Every part begins with a cache line.
        const int64_t list_size = chunks * kChunk + 16, maxima_size = (chunks * kLanes + 15) / 16 * 16;
        list = (float*)workspace.words(3 * list_size + maxima_size + 2 * chunks);
        other_list = list + list_size;
        ids = (uint32_t*)other_list + list_size;
        maxima = (float*)ids + list_size;
        ends = (double*)(maxima + maxima_size);
    }
    float *list, *other_list;
    uint32_t* ids;  // of the tokens of `list`
    float* maxima;  // [chunks, kLanes]: the largest logit of each lane of each chunk
    double* ends;   // [chunks]: running sums
};

PAGODA_INLINE floats load_lanes(const float* from) { return load_as<floats>(from); }
PAGODA_INLINE void store_lanes(float* to, floats v) { std::memcpy(to, &v, sizeof v); }

// Logits from i on; -infinity behind the end.
PAGODA_INLINE floats load_logits(const float* logits, int64_t i, int64_t size) {
    if (i + kLanes <= size) return load_lanes(logits + i);
    floats lanes;
    for (int lane = 0; lane < kLanes; lane++) lanes[lane] = i + lane < size ? logits[i + lane] : -INFINITY;
    return lanes;
}

// The weights of all tokens of a row.
struct Weights {
    const float* logits;
    int64_t size;
    float top, temperature;

    // The maximum is taken off first: then no temperature, however small, overflows.
    PAGODA_INLINE floats of(floats x) const { return exp_up_to_0((x - top) / temperature); }
    PAGODA_INLINE floats operator()(int64_t i) const { return of(load_logits(logits, i, size)); }
};

// Those of a list that are at or above a bound; 0 for the others.
struct BoundedList {
    const float* list;
    float bound;
    PAGODA_INLINE floats operator()(int64_t i) const {
        const floats w = load_lanes(list + i);
        return w >= all(bound) ? w : floats{};
    }
};

struct Tail {
    int64_t count;
    double sum;
};

// Number and sum of the weights from `bound` up.
Tail tail_from(const float* list, int64_t size, float bound) {
    ints counts = {};
    Sums sums;
    for (int64_t i = 0; i < size; i += kLanes) {
        const floats w = load_lanes(list + i);
        const ints above = w >= all(bound);
        counts -= above;
        sums.add(above ? w : floats{});
    }
    int64_t count = 0;
    for (int lane = 0; lane < kLanes; lane++) count += counts[lane];
    return {count, sums.total()};
}

// Copies the weights in [low, high), in their order, and fills the last vector with 0; `to` may be `list`.
int64_t copy_between(const float* list, int64_t size, float low, float high, float* to) {
    int64_t kept = 0;
    for (int64_t i = 0; i < size; i += kLanes) {
        const floats w = load_lanes(list + i);
        kept += compress(to + kept, w, (w >= all(low)) & (w < all(high)));
    }
    store_lanes(to + kept, floats{});
    return kept;
}

// The highest bound from which on there are `enough` weights; `low` if no higher one does.
//
// list: weights, the last vector filled with 0; other_list: memory for as many
template <typename Enough>
float highest_bound(const float* list, int64_t size, float low, float* other_list, Enough enough) {
    // Bits of floats from 0 on order like the floats. Invariant: the bound is in [low_bits, high_bits); the list has
    // all weights in there, and `dropped` counts and sums up those from high_bits up that it no longer has.
    uint32_t low_bits = cast<uint32_t>(low), high_bits = kOneBits + 1;
    int64_t from_low = size, from_high = 0;
    Tail dropped = {0, 0.0}, beyond = dropped;
    while (high_bits - low_bits > 1) {
        const uint32_t middle = low_bits + (high_bits - low_bits) / 2;
        Tail tail = tail_from(list, size, cast<float>(middle));
        tail.count += dropped.count;
        tail.sum += dropped.sum;
        if (enough(tail)) {
            low_bits = middle;
            from_low = tail.count;
        } else {
            high_bits = middle;
            from_high = tail.count;
            beyond = tail;
        }
        if ((from_low - from_high) * kWorthCopy <= size && size > kLanes) {
            size = copy_between(list, size, cast<float>(low_bits), cast<float>(high_bits), other_list);
            list = other_list;
            dropped = beyond;
        }
    }
    return cast<float>(low_bits);
}

// Lists the tokens with weights from `bound` up, and their weights, the last vector filled with 0; returns how many.
int64_t gather(const Weights& weights, float bound, const Memory& memory) {
    ints lanes;
    for (int lane = 0; lane < kLanes; lane++) lanes[lane] = lane;
    int64_t count = 0;
    for (int64_t first = 0; first < weights.size; first += kChunk) {
        if (max_lanes(weights.of(load_lanes(memory.maxima + first / kChunk * kLanes))) < bound) continue;
        for (int64_t i = first; i < std::min(first + kChunk, weights.size); i += kLanes) {
            const floats w = weights(i);
            const ints above = w >= all(bound);
            compress(memory.ids + count, lanes + int32_t(i), above);
            count += compress(memory.list + count, w, above);
        }
    }
    store_lanes(memory.list + count, floats{});
    return count;
}

// Drops the weights below `bound`, and the last vector is filled with 0 again; returns how many are left.
//
// What is summed from here on is fixed by what the filters keep, not by what the list had before.
int64_t keep_from(float bound, float* list, uint32_t* ids, int64_t count) {
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i += kLanes) {
        const floats w = load_lanes(list + i);
        const ints above = w >= all(bound);
        compress(ids + kept, load_as<ints>(ids + i), above);
        kept += compress(list + kept, w, above);
    }
    store_lanes(list + kept, floats{});
    return kept;
}

// ends: the running sum at the end of each chunk; returns the last one.
template <typename Source>
double sum_chunks(const Source& weights, int64_t size, double* ends) {
    double total = 0.0;
    for (int64_t first = 0; first < size; first += kChunk) {
        Sums sums;
        for (int64_t i = first; i < std::min(first + kChunk, size); i += kLanes) sums.add(weights(i));
        total += sums.total();
        ends[first / kChunk] = total;
    }
    return total;
}

// The index at which the running sum passes the share u of all; never one with a weight of 0.
template <typename Source>
int64_t invert_cdf(const Source& weights, int64_t size, const double* ends, double u) {
    const int64_t chunks = num_chunks(size);
    const double target = u * ends[chunks - 1];
    const int64_t chunk = std::upper_bound(ends, ends + chunks, target) - ends;
    double sum = chunk ? ends[chunk - 1] : 0.0;
    // The two ways to sum a chunk round differently: what falls between them belongs to its last token.
    int64_t last = 0;
    for (int64_t i = chunk * kChunk; i < std::min((chunk + 1) * kChunk, size); i += kLanes) {
        const floats w = weights(i);
        for (int lane = 0; lane < kLanes; lane++) {
            if (!(w[lane] > 0)) continue;
            last = i + lane;
            sum += w[lane];
            if (sum > target) return last;
        }
    }
    return last;
}

// A number in [0, 1) with 52 random bits: Philox-4x32-10 (Salmon et al., SC 2011), as in the executor's philox.py.
double uniform(uint64_t seed, uint64_t position) {
    uint32_t counter[4] = {uint32_t(position), uint32_t(position >> 32), 0, 0};
    uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        const uint64_t a = uint64_t(0xD2511F53) * counter[0], b = uint64_t(0xCD9E8D57) * counter[2];
        counter[0] = uint32_t(b >> 32) ^ counter[1] ^ key[0];
        counter[1] = uint32_t(b);
        counter[2] = uint32_t(a >> 32) ^ counter[3] ^ key[1];
        counter[3] = uint32_t(a);
        key[0] += 0x9E3779B9;
        key[1] += 0xBB67AE85;
    }
    return double(uint64_t(counter[0]) << 20 | counter[1] >> 12) * 0x1p-52;
}

struct Maximum {
    float value;
    bool has_nan;
};

// Of a row, and of each lane of each of its chunks, NaN left out.
Maximum find_maxima(const float* logits, int64_t size, float* maxima) {
    const floats lowest = all(-INFINITY);
    floats top = lowest;
    ints nan = {};
    for (int64_t first = 0; first < size; first += kChunk) {
        floats most = lowest;
        for (int64_t i = first; i < std::min(first + kChunk, size); i += kLanes) {
            const floats x = load_logits(logits, i, size);
            most = max(x, most);
            nan |= x != x;
        }
        store_lanes(maxima + first / kChunk * kLanes, most);
        top = max(most, top);
    }
    bool has_nan = false;
    for (int lane = 0; lane < kLanes; lane++) has_nan |= nan[lane] != 0;
    return {max_lanes(top), has_nan};
}

// The first token with the largest logit, or with NaN.
int64_t first_of(Maximum top, const float* logits, int64_t size, const float* maxima) {
    if (top.has_nan) return std::find_if(logits, logits + size, [](float x) { return x != x; }) - logits;
    int64_t chunk = 0;
    while (max_lanes(load_lanes(maxima + chunk * kLanes)) != top.value) chunk++;
    return std::find(logits + chunk * kChunk, logits + size, top.value) - logits;
}

int64_t sample_row(const float* logits, int64_t size, const Parameters& row, const Memory& memory) {
    const Maximum top = find_maxima(logits, size, memory.maxima);
    if (!(row.temperature > 0)) return first_of(top, logits, size, memory.maxima);
    if (top.has_nan || !std::isfinite(top.value)) return 0;

    const Weights weights = {logits, size, top.value, row.temperature};
    const double u = uniform(row.seed, row.position);
    const bool is_limited = 0 < row.top_k && row.top_k < size, has_bound = is_limited || row.min_p > 0;
    if (!has_bound && !(row.top_p < 1)) {
        sum_chunks(weights, size, memory.ends);
        return invert_cdf(weights, size, memory.ends, u);
    }

    // First a bound below which all is dropped, so that most rows' lists are short.
    float bound = FLT_MIN;
    double total = 0.0;
    const auto are_enough = [&](Tail tail) { return tail.count >= row.top_k; };
    if (has_bound) {
        bound = std::max(bound, std::min(row.min_p, 1.0f));
        if (is_limited) {
            // At least k tokens are as likely as the k-th of the lanes' maxima; there may be fewer lanes than k.
            const int64_t groups = num_chunks(size) * kLanes;
            for (int64_t i = 0; i < groups; i += kLanes)
                store_lanes(memory.list + i, weights.of(load_lanes(memory.maxima + i)));
            bound = highest_bound(memory.list, groups, bound, memory.other_list, are_enough);
        }
    } else {
        // All weights below sum up to less than half of what top-p drops.
        total = sum_chunks(weights, size, memory.ends);
        bound = std::max(bound, float(0.5 * (1.0 - row.top_p) * total / size));
    }
    int64_t count = gather(weights, bound, memory);
    if (is_limited) {
        bound = highest_bound(memory.list, count, bound, memory.other_list, are_enough);
        count = keep_from(bound, memory.list, memory.ids, count);
    }
    if (has_bound) total = sum_chunks(BoundedList{memory.list, bound}, count, memory.ends);
    if (row.top_p < 1) {
        const double target = row.top_p * total;
        bound = highest_bound(memory.list, count, bound, memory.other_list,
                              [&](Tail tail) { return tail.sum >= target; });
        sum_chunks(BoundedList{memory.list, bound}, count, memory.ends);
    }
    return memory.ids[invert_cdf(BoundedList{memory.list, bound}, count, memory.ends, u)];
}

}  // namespace
}  // namespace pagoda

// logits: [rows, vocab_size], rows `row_stride` apart; everything else is [rows].
PAGODA_EXPORT void pagoda_sample(const float* logits, int64_t row_stride, int64_t rows, int64_t vocab_size,
                                 const float* temperature, const float* top_p, const int32_t* top_k,
                                 const float* min_p, const uint64_t* seed, const uint64_t* position, int64_t* tokens,
                                 int32_t num_threads) {
    using namespace pagoda;
    // Below this many logits a second thread costs more than it saves.
    constexpr int64_t kWorthThreads = 1 << 15;
    const int64_t threads = rows * vocab_size < kWorthThreads ? 1 : std::min<int64_t>(num_threads, rows);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        static thread_local Workspace workspace;
        const Parameters parameters = {temperature[row], top_p[row], min_p[row], top_k[row], seed[row], position[row]};
        const Memory memory(workspace, num_chunks(vocab_size));
        tokens[row] = sample_row(logits + row * row_stride, vocab_size, parameters, memory);
    }
}
