// What the linear layers of every weight format share: partition, threads, blocking, bias and rounding.
//
// Weights lie in panels of 32 output features, one after the other. A panel is a run of steps, each the weights of a
// few inputs for the 32 outputs, and a tail: bias [32] float32, then what the format adds. Rows of x are packed in
// blocks of as many rows as a tile's sums fit into registers: [steps][rows] words of 32 bits, each broadcast to all
// outputs.
//
// With an activation, a panel's first 16 outputs are gates and its last 16 what they are for, and its results are the 16
// products: what a thread has just summed is activated before it leaves the processor's caches.
//
// A sum runs over the steps in ascending order, one step after the other, whatever the number of rows and threads:
// where it is interrupted, it waits in memory at full precision. So a row's bits depend on that row only.
#pragma once

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <vector>

#include "activation.h"
#include "interleave.h"
#include "work_sharing.h"

namespace pagoda {

// Bytes of a panel that pass by before the next block of rows: from L2 for all blocks but the first.
constexpr int64_t kStripBytes = 64 << 10;
// How far ahead weights are fetched that meet one block only.
constexpr int64_t kFetchAhead = 8 << 10;
// Bytes of packed rows that stay in L2 while panels pass by, and the most rows they are.
constexpr int64_t kGroupBytes = 384 << 10;
constexpr int64_t kGroupRows = 240;
// Bytes of rows per thread that are packed at a time, and at least kGroupRows: so few that they go to caches and not to
// memory, whose way there and back a layer of few outputs would feel.
constexpr int64_t kSlabBytes = 256 << 10;

// Results of a panel.
constexpr int64_t panel_columns(Activation activation) { return activation ? kPanel / 2 : kPanel; }

// x [rows, in_features] with rows x_stride elements apart; out [rows, out_features].
struct LinearCall {
    const void* x;
    int64_t x_stride;
    bool is_x_bf16;
    int64_t rows;
    const char* panels;
    int64_t in_features, out_features;
    void* out;
    bool is_out_bf16;
    Activation activation;
    int num_threads;

    int64_t num_panels() const { return ceil_div(out_features, panel_columns(activation)); }
};

// Weights that are needed soon: each step fetches `stride` bytes more of them into L2, at most two lines, so that
// memory works while sums run.
struct Ahead {
    const char* from;
    int64_t stride;

    PAGODA_INLINE void step() {
        __builtin_prefetch(from, 0, 2);
        __builtin_prefetch(from + stride / 2, 0, 2);
        from += stride;
    }
};

// A format of weights is a class with:
//   Sum                 the type of 16 sums
//   kMaxRows            rows of a tile: its sums stay in registers
//   kStepInputs         input features of a step
//   kStepBytes          of a panel, per step
//   kTailBytes          of a panel, behind the steps
//   kRowWords           of a packed row, ahead of the steps
//   kStepWords          of a packed row, per step
//   pack_rows(x, stride, rows, in_features, to)       x is of floats or bf16; inputs behind the end are 0
//   multiply<rows>(x, weights, steps, sums, ahead)    continues the sums [rows][2]
//   result(sum, x_block, rows, row, tail, half)       what 16 sums mean, as float32 without bias
template <class Format>
struct Layout {
    int64_t steps, panel_bytes;

    explicit Layout(int64_t in_features)
        : steps(ceil_div(in_features, Format::kStepInputs)),
          panel_bytes(steps * Format::kStepBytes + Format::kTailBytes) {}

    int64_t words_per_row() const { return Format::kRowWords + steps * Format::kStepWords; }
};

// A function of its own for each number of rows, so that its sums get the registers.
template <class Format, int rows>
__attribute__((noinline)) void tile(const uint32_t* x, const char* weights, int64_t steps,
                                    typename Format::Sum (*sums)[2], Ahead ahead) {
    Format::template multiply<rows>(x, weights, steps, sums, ahead);
}

template <class Format, int max_rows>
PAGODA_INLINE void multiply_rows(int rows, const uint32_t* x, const char* weights, int64_t steps,
                                 typename Format::Sum (*sums)[2], Ahead ahead) {
    if (rows == max_rows)
        tile<Format, max_rows>(x, weights, steps, sums, ahead);
    else if constexpr (max_rows > 1)
        multiply_rows<Format, max_rows - 1>(rows, x, weights, steps, sums, ahead);
}

// One slab of rows, packed; multiplied panel by panel.
template <class Format>
class Slab {
    using Sum = typename Format::Sum;

   public:
    Slab(const LinearCall& call, int64_t first_row, int64_t rows, uint32_t* packed)
        : call_(call),
          layout_(call.in_features),
          first_row_(first_row),
          rows_(rows),
          packed_(packed),
          blocks_(ceil_div(rows, Format::kMaxRows)),
          panels_(call.num_panels()) {
        const int64_t block_bytes = Format::kMaxRows * layout_.words_per_row() * sizeof(uint32_t);
        int64_t blocks_per_group = kGroupBytes / block_bytes;
        if (blocks_per_group > kGroupRows / Format::kMaxRows) blocks_per_group = kGroupRows / Format::kMaxRows;
        if (blocks_per_group < 1) blocks_per_group = 1;
        groups_ = ceil_div(blocks_, blocks_per_group);
    }

    int64_t num_blocks() const { return blocks_; }
    int64_t num_tasks() const { return groups_ * panels_; }

    void pack(int64_t block) const {
        const int64_t begin = row_of(block), rows = row_of(block + 1) - begin;
        const int64_t offset = (first_row_ + begin) * call_.x_stride;
        if (call_.is_x_bf16)
            Format::pack_rows((const bf16*)call_.x + offset, call_.x_stride, rows, call_.in_features, words_of(begin));
        else
            Format::pack_rows((const float*)call_.x + offset, call_.x_stride, rows, call_.in_features, words_of(begin));
    }

    // A group of row blocks times one panel: a strip of weights meets every block before the next strip.
    void multiply(int64_t task) const {
        const int64_t group = task / panels_, panel = task % panels_;
        const int64_t first = blocks_ * group / groups_, last = blocks_ * (group + 1) / groups_, blocks = last - first;
        const int64_t strip_steps = kStripBytes / Format::kStepBytes;
        const char* weights = call_.panels + panel * layout_.panel_bytes;
        Sum sums[kGroupRows][2];
        // Where a panel is one strip, no sum waits for the next: they stay in L1, block after block in the same place.
        const bool is_one_strip = layout_.steps <= strip_steps;
        for (int64_t step = 0; step < layout_.steps; step += strip_steps) {
            const int64_t steps = layout_.steps - step < strip_steps ? layout_.steps - step : strip_steps;
            const char* strip = weights + step * Format::kStepBytes;
            const int64_t strip_bytes = steps * Format::kStepBytes;
            for (int64_t block = first; block < last; block++) {
                const int64_t begin = row_of(block), rows = row_of(block + 1) - begin;
                const uint32_t* x = words_of(begin) + rows * (Format::kRowWords + step * Format::kStepWords);
                // The next strip, a part of it per block.
                const char* next = strip + strip_bytes * (blocks + block - first) / blocks;
                const Ahead ahead = {blocks == 1 ? strip + kFetchAhead : next, Format::kStepBytes / blocks};
                Sum(*const block_sums)[2] = is_one_strip ? sums : sums + (begin - row_of(first));
                if (step == 0) std::memset(block_sums, 0, rows * sizeof sums[0]);
                multiply_rows<Format, Format::kMaxRows>(rows, x, strip, steps, block_sums, ahead);
                if (step + steps == layout_.steps) finish(block_sums, begin, rows, panel);
            }
        }
    }

   private:
    // Rows are dealt out evenly: 32 are 11 + 11 + 10, not 12 + 12 + 8.
    int64_t row_of(int64_t block) const { return rows_ * block / blocks_; }
    uint32_t* words_of(int64_t row) const { return packed_ + row * layout_.words_per_row(); }

    void finish(const Sum (*sums)[2], int64_t begin, int64_t rows, int64_t panel) const {
        if (call_.is_out_bf16)
            finish_as((bf16*)call_.out, sums, begin, rows, panel);
        else
            finish_as((float*)call_.out, sums, begin, rows, panel);
    }

    template <typename T>
    void finish_as(T* out, const Sum (*sums)[2], int64_t begin, int64_t rows, int64_t panel) const {
        if (call_.activation == kSilu)
            store_results<T, store_gated<T, silu>>(out, sums, begin, rows, panel);
        else if (call_.activation == kGeluTanh)
            store_results<T, store_gated<T, gelu_tanh>>(out, sums, begin, rows, panel);
        else
            store_results<T, store_both<T>>(out, sums, begin, rows, panel);
    }

    template <typename T>
    static PAGODA_INLINE void store_both(T* out, f32x16 low, f32x16 high) {
        store(out, low);
        store(out + 16, high);
    }
    template <typename T, f32x16 (*activation)(f32x16)>
    static PAGODA_INLINE void store_gated(T* out, f32x16 gate, f32x16 up) {
        store(out, gated<T, activation>(rounded_to<T>(gate), rounded_to<T>(up)));
    }

    template <typename T, void (*store_panel)(T*, f32x16, f32x16)>
    void store_results(T* out, const Sum (*sums)[2], int64_t begin, int64_t rows, int64_t panel) const {
        const char* tail = call_.panels + (panel + 1) * layout_.panel_bytes - Format::kTailBytes;
        const f32x16 low_bias = load((const float*)tail), high_bias = load((const float*)tail + 16);
        const int64_t columns = panel_columns(call_.activation), stride = call_.out_features;
        const int64_t left = stride - panel * columns;
        out += (first_row_ + begin) * stride + panel * columns;
        for (int64_t row = 0; row < rows; row++, out += stride) {
            const f32x16 low = Format::result(sums[row][0], words_of(begin), rows, row, tail, 0) + low_bias;
            const f32x16 high = Format::result(sums[row][1], words_of(begin), rows, row, tail, 1) + high_bias;
            if (left >= columns) {
                store_panel(out, low, high);
            } else {
                T lanes[kPanel];
                store_panel(lanes, low, high);
                std::memcpy(out, lanes, left * sizeof(T));
            }
        }
    }

    const LinearCall call_;
    const Layout<Format> layout_;
    const int64_t first_row_, rows_;
    uint32_t* const packed_;
    const int64_t blocks_, panels_;
    int64_t groups_;
};

// So little work is done before a second thread is awake.
constexpr int64_t kWorthThreads = 192 << 10;

template <class Format>
void linear(const LinearCall& call) {
    thread_local Workspace workspace;
    const Layout<Format> layout(call.in_features);
    const int64_t work = call.num_panels() * layout.panel_bytes * (16 + call.rows) / 16;
    const int wanted = call.num_threads < kMaxThreads ? call.num_threads : kMaxThreads;
    const int num_threads = work < kWorthThreads ? 1 : wanted;
    const int64_t row_bytes = layout.words_per_row() * sizeof(uint32_t);
    const int64_t most_rows = std::max(kSlabBytes * num_threads / row_bytes, kGroupRows);
    // Slabs are of one size: 256 rows are 128 + 128, not 240 + 16.
    const int64_t slab_rows = call.rows <= most_rows ? call.rows : ceil_div(call.rows, ceil_div(call.rows, most_rows));
    uint32_t* packed = workspace.words(slab_rows * layout.words_per_row());
    for (int64_t row = 0; row < call.rows; row += slab_rows) {
        const int64_t left = call.rows - row;
        const Slab<Format> slab(call, row, left < slab_rows ? left : slab_rows, packed);
        Packing packing(slab.num_blocks());
        Tasks tasks(slab.num_tasks(), num_threads);
#pragma omp parallel num_threads(num_threads)
        {
            packing.run([&](int64_t block) { slab.pack(block); });
            tasks.run(omp_get_thread_num(), [&](int64_t task) { slab.multiply(task); });
        }
    }
}

// Of row i, the counts[i] panels listed from i * stride on, alone: what `linear` stores there.
template <class Format>
void linear_listed(const LinearCall& call, const int32_t* listed, int64_t stride, const int32_t* counts) {
#pragma omp parallel for schedule(dynamic) num_threads(call.num_threads)
    for (int64_t row = 0; row < call.rows; row++) {
        thread_local Workspace workspace;
        const Slab<Format> slab(call, row, 1, workspace.words(Layout<Format>(call.in_features).words_per_row()));
        slab.pack(0);
        for (int64_t i = 0; i < counts[row]; i++) slab.multiply(listed[row * stride + i]);
    }
}

// Fewer misses of the address translation when weights stream by; a hint that may be refused.
inline void advise_huge_pages(char* memory, int64_t bytes) {
    constexpr uintptr_t kHugePage = 2 << 20;
    const uintptr_t begin = (uintptr_t(memory) + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t end = (uintptr_t(memory) + bytes) / kHugePage * kHugePage;
    if (begin < end) madvise((void*)begin, end - begin, MADV_HUGEPAGE);
}

// Which row of the weight is output i of a panel; -1: none is.
constexpr int64_t weight_row(int64_t panel, int i, int64_t out_features, Activation activation) {
    const int64_t columns = panel_columns(activation), column = panel * columns + i % columns;
    return column < out_features ? i / columns * out_features + column : -1;
}

// Weights of one tensor as panels. Format::pack_panel(rows, in_features, to) gets the panel's rows, zeros where it has
// none.
template <class Format, typename T>
void pack_panels(const T* weight, const float* bias, char* panels, int64_t out_features, int64_t in_features,
                 Activation activation, int num_threads) {
    const Layout<Format> layout(in_features);
    const std::vector<T> zeros(in_features);
    const int64_t num_panels = ceil_div(out_features, panel_columns(activation));
    advise_huge_pages(panels, num_panels * layout.panel_bytes);
#pragma omp parallel for num_threads(num_threads)
    for (int64_t panel = 0; panel < num_panels; panel++) {
        const T* rows[kPanel];
        float biases[kPanel];
        for (int i = 0; i < kPanel; i++) {
            const int64_t row = weight_row(panel, i, out_features, activation);
            rows[i] = row < 0 ? zeros.data() : weight + row * in_features;
            biases[i] = bias && row >= 0 ? bias[row] : 0.0f;
        }
        char* to = panels + panel * layout.panel_bytes;
        Format::pack_panel(rows, in_features, to);
        std::memcpy(to + layout.panel_bytes - Format::kTailBytes, biases, sizeof biases);
    }
}

}  // namespace pagoda
