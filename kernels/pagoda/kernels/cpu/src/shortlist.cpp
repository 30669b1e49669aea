// Logits of those tokens that a row may draw.
//
// Weights in 8 bits are read in half the time of those in 16, and tell every logit up to an error that is bounded: with
// w' and x' for what w and x are rounded to, |w x - w' x'| <= |w - w'| |x| + |w'| |x - x'| (Cauchy and Schwarz). The
// panels that look best are computed as the whole product would have them, to the bit; a panel that cannot reach what
// they have is left out, and those that can, a few of thousands, are computed, too.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>

#include "exports.h"
#include "quantize.h"
#include "registers.h"
#include "work_sharing.h"

namespace pagoda {
namespace {

// How far an approximate logit can be from the exact one, as the length of one vector times that of another, and again.
struct Error {
    float rounding, size;
};

struct Head {
    // Panels of the same weights.
    const void *int8, *dense;
    int64_t tokens, in_features, panels;
    // Of the weights [tokens]; and the largest of each panel [panels].
    const float *rounding, *size, *panel_rounding, *panel_size;
};

struct Rows {
    const void* x;
    int64_t x_stride;
    bool is_bf16;
    // [rows]
    const float* temperature;
    const int32_t* top_k;
    const float* min_p;
};

// More than what a few roundings to float32 can take away.
float rounded_up(double x) { return float(x * (1 + 1e-6)); }

// How long a vector is, and how far from what it is rounded to.
template <typename T>
Error error_of(const T* x, int64_t in_features) {
    const Scale scale = scale_of(largest(x, in_features));
    Sums squares, squared_errors;
    for (int64_t i = 0; i < in_features; i += 16) {
        const f32x16 value = load_columns(x + i, in_features - i);
        const f32x16 error = value - __builtin_convertvector(rounded(value * scale.inverse), f32x16) * scale.scale;
        float lanes[2][16];
        store(lanes[0], value * value);
        store(lanes[1], error * error);
        for (int lane = 0; lane < 16; lane += kLanes) {
            squares.add(load_as<floats>(lanes[0] + lane));
            squared_errors.add(load_as<floats>(lanes[1] + lane));
        }
    }
    return {rounded_up(std::sqrt(squared_errors.total())), rounded_up(std::sqrt(squares.total()))};
}

// Whether the filters leave few tokens, whatever the logits are.
bool has_few(const Rows& rows, int64_t row, int64_t panels) {
    if (!(rows.temperature[row] > 0)) return true;
    return (0 < rows.top_k[row] && rows.top_k[row] <= panels / 8) || rows.min_p[row] > 1e-4f;
}

// One row of logits [tokens], approximate ones at first.
class Row {
   public:
    // listed: [panels]; budget: how many panels all rows may still compute.
    Row(const Head& head, const Rows& rows, int64_t row, float* logits, int32_t* listed, std::atomic<int64_t>& budget,
        Workspace& workspace)
        : head_(head), rows_(rows), row_(row), logits_(logits), listed_(listed), budget_(budget) {
        maxima_ = (float*)workspace.words(2 * head.panels);
        scratch_ = maxima_ + head.panels;
    }

    // Lists the panels that the row may draw from, ascending, and makes their logits exact. Returns how many; 0: more
    // than there may be.
    int64_t shorten() {
        const int64_t first = row_ * rows_.x_stride;
        x_ = rows_.is_bf16 ? error_of((const bf16*)rows_.x + first, head_.in_features)
                           : error_of((const float*)rows_.x + first, head_.in_features);
        if (!std::isfinite(x_.size) || !std::isfinite(x_.rounding)) return 0;
        const bool is_greedy = !(rows_.temperature[row_] > 0);
        const int32_t top_k = rows_.top_k[row_];
        const int64_t num_best = !is_greedy && 0 < top_k && top_k <= head_.panels / 8 ? top_k : 1;
        if (!find_maxima()) return 0;
        list_best(num_best);
        if (!compute(0, num_best)) return 0;
        const float threshold = threshold_above(num_best, is_greedy);
        if (!std::isfinite(threshold)) return 0;
        const int64_t count = list_from(threshold, num_best);
        if (!compute(num_best, count)) return 0;
        std::sort(listed_, listed_ + count);
        // What is drawn from others is for those to say who see all of them.
        const auto are_numbers = [&](int32_t panel) {
            return std::all_of(begin(panel), end(panel), [](float x) { return std::isfinite(x); });
        };
        return std::all_of(listed_, listed_ + count, are_numbers) ? count : 0;
    }

   private:
    PAGODA_INLINE float error(float rounding, float size) const { return rounding * x_.size + size * x_.rounding; }
    float* begin(int64_t panel) const { return logits_ + panel * kPanel; }
    float* end(int64_t panel) const { return logits_ + std::min((panel + 1) * kPanel, head_.tokens); }

    // Whether they are numbers.
    bool find_maxima() {
        const int64_t whole = head_.tokens / kPanel;
        const auto larger = [](f32x16 a, f32x16 b) { return max(a, b); };
        for (int64_t panel = 0; panel < whole; panel++)
            maxima_[panel] = fold(max(load(begin(panel)), load(begin(panel) + 16)), larger);
        if (whole < head_.panels) maxima_[whole] = *std::max_element(begin(whole), end(whole));
        return std::all_of(maxima_, maxima_ + head_.panels, [](float x) { return std::isfinite(x); });
    }

    // Lists the panels with the largest maxima.
    void list_best(int64_t count) {
        if (count == 1) {
            listed_[0] = int32_t(std::max_element(maxima_, maxima_ + head_.panels) - maxima_);
            return;
        }
        for (int64_t panel = 0; panel < head_.panels; panel++) listed_[panel] = int32_t(panel);
        std::nth_element(listed_, listed_ + count, listed_ + head_.panels,
                         [&](int32_t a, int32_t b) { return maxima_[a] > maxima_[b]; });
    }

    // The listed panels from `first` to `last`, exactly; their maxima become infinite. False: there are too many.
    bool compute(int64_t first, int64_t last) {
        if (budget_.fetch_sub(last - first, std::memory_order_relaxed) < last - first) return false;
        const int32_t counts[] = {int32_t(last - first)};
        const void* const x = (const char*)rows_.x + row_ * rows_.x_stride * (rows_.is_bf16 ? 2 : 4);
        const auto listed = rows_.is_bf16 ? pagoda_linear_bfloat16_listed : pagoda_linear_float32_listed;
        listed(x, 0, rows_.is_bf16, 1, head_.dense, head_.tokens, head_.in_features, logits_, false, listed_ + first, 0,
               counts, 1);
        for (int64_t i = first; i < last; i++) maxima_[listed_[i]] = INFINITY;
        return true;
    }

    // A logit below which the row draws no token, as the `count` panels listed have one each.
    float threshold_above(int64_t count, bool is_greedy) {
        for (int64_t i = 0; i < count; i++) scratch_[i] = *std::max_element(begin(listed_[i]), end(listed_[i]));
        const float most = *std::max_element(scratch_, scratch_ + count);
        if (is_greedy) return most;
        const float temperature = rows_.temperature[row_], min_p = rows_.min_p[row_];
        float threshold = -INFINITY;
        if (count == rows_.top_k[row_]) threshold = *std::min_element(scratch_, scratch_ + count);
        if (min_p > 0) threshold = std::max(threshold, most + temperature * std::log(std::min(min_p, 1.0f)));
        // Weights that are equal in float32 are kept or dropped together, though their logits may differ by a little.
        return threshold - 1e-4f * temperature;
    }

    // Lists the panels that may reach the threshold behind the `count` that are computed already; returns how many now.
    int64_t list_from(float threshold, int64_t count) {
        for (int64_t panel = 0; panel < head_.panels; panel++)
            if (maxima_[panel] != INFINITY && !is_below(threshold, panel)) listed_[count++] = int32_t(panel);
        return count;
    }

    // Comparisons are such that NaN is not below.
    bool is_below(float threshold, int64_t panel) const {
        if (maxima_[panel] + error(head_.panel_rounding[panel], head_.panel_size[panel]) < threshold) return true;
        bool all = true;
        for (const float* logit = begin(panel); logit < end(panel); logit++) {
            const int64_t token = logit - logits_;
            all &= *logit + error(head_.rounding[token], head_.size[token]) < threshold;
        }
        return all;
    }

    const Head& head_;
    const Rows& rows_;
    const int64_t row_;
    float* const logits_;
    int32_t* const listed_;
    std::atomic<int64_t>& budget_;
    Error x_;
    float *maxima_, *scratch_;  // [panels]
};

template <typename T>
void measure(const T* weight, int64_t tokens, int64_t in_features, float* rounding, float* size, int num_threads) {
    // Sums of so many products, rounded one after the other, and what is done to a sum.
    const double of_sums = double(in_features + 16) * 0x1p-23;
#pragma omp parallel for num_threads(num_threads)
    for (int64_t token = 0; token < tokens; token++) {
        const Error error = error_of(weight + token * in_features, in_features);
        rounding[token] = rounded_up(error.rounding + of_sums * error.size);
        size[token] = rounded_up(double(error.size) + error.rounding);
    }
}

}  // namespace
}  // namespace pagoda

// How far 8-bit weights [tokens, in_features] are from the given ones, and how long they are; both [tokens].
PAGODA_EXPORT void pagoda_shortlist_errors(const void* weight, int32_t is_bf16, int64_t tokens, int64_t in_features,
                                           float* rounding, float* size, int32_t num_threads) {
    if (is_bf16)
        pagoda::measure((const pagoda::bf16*)weight, tokens, in_features, rounding, size, num_threads);
    else
        pagoda::measure((const float*)weight, tokens, in_features, rounding, size, num_threads);
}

// Makes logits [rows, tokens] of x [rows, in_features] exact where the sampling parameters [rows] need them, and leaves
// approximate ones elsewhere. listed [rows, panels], counts [rows]: the panels that are exact, ascending. Returns the
// most of a row; 0, with leftovers everywhere, where too many are needed for this to be of use.
//
// int8, dense: panels of the same weights; dense ones of x's type
PAGODA_EXPORT int64_t pagoda_shortlist(const void* x, int64_t x_stride, int32_t is_bf16, int64_t num_rows,
                                       const void* int8, const void* dense, int64_t tokens, int64_t in_features,
                                       const float* rounding, const float* size, const float* panel_rounding,
                                       const float* panel_size, const float* temperature, const int32_t* top_k,
                                       const float* min_p, float* logits, int32_t* listed, int32_t* counts,
                                       int32_t num_threads) {
    using namespace pagoda;
    const Rows rows = {x, x_stride, bool(is_bf16), temperature, top_k, min_p};
    const Head head = {int8,     dense, tokens,         in_features, ceil_div(tokens, kPanel),
                       rounding, size,  panel_rounding, panel_size};
    for (int64_t row = 0; row < num_rows; row++)
        if (!has_few(rows, row, head.panels)) return 0;
    pagoda_linear_int8(x, x_stride, is_bf16, num_rows, int8, tokens, in_features, logits, false, 0, num_threads);
    // A panel of one row takes as long as one of sixteen in the whole product, where it is read once for all rows.
    std::atomic<int64_t> budget(head.panels * (16 + num_rows) / 64);
#pragma omp parallel for schedule(dynamic) num_threads(num_threads)
    for (int64_t row = 0; row < num_rows; row++) {
        static thread_local Workspace workspace;
        counts[row] = int32_t(
            Row(head, rows, row, logits + row * tokens, listed + row * head.panels, budget, workspace).shorten());
    }
    const auto [least, most] = std::minmax_element(counts, counts + num_rows);
    return *least ? *most : 0;
}

// The exact logits of pagoda_shortlist side by side, and whose they are: both [rows, width * 32], where a row has fewer
// minus infinity and 0.
PAGODA_EXPORT void pagoda_shortlist_gather(const float* logits, int64_t num_rows, int64_t tokens, const int32_t* listed,
                                           const int32_t* counts, int64_t width, float* gathered, int64_t* token_ids) {
    using namespace pagoda;
    const int64_t panels = ceil_div(tokens, kPanel);
    for (int64_t row = 0; row < num_rows; row++) {
        for (int64_t i = 0; i < width * kPanel; i++) {
            const int64_t place = i / kPanel;
            const int64_t token = place < counts[row] ? listed[row * panels + place] * kPanel + i % kPanel : tokens;
            *gathered++ = token < tokens ? logits[row * tokens + token] : -INFINITY;
            *token_ids++ = token < tokens ? token : 0;
        }
    }
}
