// All layers of a decoder in one call: what decoder.py does layer by layer, without going back to Python in between.
#include <cstring>

#include "exports.h"

namespace {

// As in layers.py, and so are all the following.
struct Linear {
    void (*multiply)(const void* x, int64_t x_stride, int32_t is_x_bf16, int64_t rows, const void* panels,
                     int64_t out_features, int64_t in_features, void* out, int32_t is_out_bf16, int32_t activation,
                     int32_t num_threads);
    const void* panels;
    int64_t out_features, in_features;
    int32_t activation;
};

struct Layer {
    Linear qkv, o, gate_up, down;
    // [hidden_size]; the out norms may be null.
    const void *attention_out_norm, *mlp_norm, *mlp_out_norm;
    // Of the layer that follows, or the last one of all.
    const void* next_norm;
    // [head_dim], or null.
    const void *q_norm, *k_norm;
    void *k_cache, *v_cache;
    float scale, soft_cap;
    int32_t window;
    // Which of the step's ropes and attention layouts.
    int32_t rope, layout;
};

struct Shape {
    int64_t num_layers, hidden_size, num_heads, num_kv_heads, head_dim, block_size;
    float eps;
    int32_t is_bf16, is_cache_int8, is_norm_bf16, is_head_norm_bf16;
};

struct Rope {
    // [num_tokens, half].
    const float *cosine, *sine;
    int64_t half;
};

struct Layout {
    const pagoda::Item* items;
    const pagoda::PlanSizes* sizes;
};

struct Step {
    int64_t num_tokens;
    // [num_kept] ascending: those that go on behind the last layer's attention; null: all.
    const int64_t* kept_tokens;
    int64_t num_kept;
    const Rope* ropes;
    const Layout* layouts;
    const int64_t* slot_mapping;
    const int32_t* block_tables;
    int64_t block_tables_stride;
    void* attention_workspace;
    // The residual stream and its norm [num_tokens, hidden_size], both read and written.
    void *x, *normed;
    // Scratch for one row each of num_tokens: queries, keys and values; attended; activated; what is added.
    void *qkv, *attended, *activated, *delta;
    int32_t num_threads;
};

class Stack {
  public:
    Stack(const Shape& shape, const Step& step) : shape_(shape), step_(step) {}

    void run(const Layer* layers) const {
        const int64_t last = shape_.num_layers - 1;
        for (int64_t i = 0; i < last; i++) {
            store(layers[i]);
            attend(layers[i]);
            project(layers[i], step_.num_tokens);
        }
        store(layers[last]);
        if (step_.num_kept == 0) return;
        attend(layers[last]);
        keep(step_.x, shape_.hidden_size);
        keep(step_.attended, layers[last].o.in_features);
        project(layers[last], step_.num_kept);
    }

  private:
    // Queries stay in `qkv`, keys and values go into the cache.
    void store(const Layer& layer) const {
        const int64_t row = layer.qkv.out_features, head_dim = shape_.head_dim;
        const char* k = (const char*)step_.qkv + shape_.num_heads * head_dim * element();
        const char* v = k + shape_.num_kv_heads * head_dim * element();
        const Rope& rope = step_.ropes[layer.rope];
        multiply(layer.qkv, step_.normed, step_.qkv, step_.num_tokens);
        pagoda_norm_and_rotate(step_.qkv, step_.num_tokens, row, shape_.num_heads, shape_.num_kv_heads, head_dim,
                               layer.q_norm, layer.k_norm, shape_.eps, rope.cosine, rope.sine, rope.half, shape_.is_bf16,
                               shape_.is_head_norm_bf16, step_.num_threads);
        pagoda_store_kv(k, v, row, row, layer.k_cache, layer.v_cache, step_.slot_mapping, step_.num_tokens,
                        shape_.num_kv_heads, head_dim, shape_.block_size, shape_.is_bf16, shape_.is_cache_int8,
                        step_.num_threads);
    }

    void attend(const Layer& layer) const {
        const Layout& layout = step_.layouts[layer.layout];
        pagoda_attend(step_.qkv, layer.qkv.out_features, step_.attended, layer.k_cache, layer.v_cache,
                      step_.block_tables, step_.block_tables_stride, shape_.num_heads, shape_.num_kv_heads,
                      shape_.head_dim, shape_.block_size, layer.scale, layer.soft_cap, layer.window, shape_.is_bf16,
                      shape_.is_cache_int8, layout.items, layout.sizes, step_.attention_workspace);
    }

    // The first `rows` rows: what was attended is projected and added, then the MLP is.
    void project(const Layer& layer, int64_t rows) const {
        multiply(layer.o, step_.attended, step_.delta, rows);
        add(layer.attention_out_norm, layer.mlp_norm, rows);
        multiply(layer.gate_up, step_.normed, step_.activated, rows);
        multiply(layer.down, step_.activated, step_.delta, rows);
        add(layer.mlp_out_norm, layer.next_norm, rows);
    }

    void multiply(const Linear& linear, const void* x, void* out, int64_t rows) const {
        linear.multiply(x, linear.in_features, shape_.is_bf16, rows, linear.panels, linear.out_features,
                        linear.in_features, out, shape_.is_bf16, linear.activation, step_.num_threads);
    }

    // Delta, normed first if there is an `out_norm`, is added to x, of which the next norm is made.
    void add(const void* out_norm, const void* next_norm, int64_t rows) const {
        if (out_norm) norm(step_.delta, nullptr, out_norm, step_.delta, rows);
        norm(step_.x, step_.delta, next_norm, step_.normed, rows);
    }

    void norm(void* x, const void* delta, const void* weight, void* out, int64_t rows) const {
        pagoda_rms_norm(x, delta, weight, out, rows, shape_.hidden_size, shape_.eps, shape_.is_bf16, shape_.is_norm_bf16,
                        step_.num_threads);
    }

    // Moves the kept tokens' rows to the front: none is overwritten before it was moved, since they ascend.
    void keep(void* rows, int64_t row_size) const {
        if (!step_.kept_tokens) return;
        const int64_t bytes = row_size * element();
        for (int64_t i = 0; i < step_.num_kept; i++)
            std::memmove((char*)rows + i * bytes, (const char*)rows + step_.kept_tokens[i] * bytes, bytes);
    }

    int64_t element() const { return shape_.is_bf16 ? 2 : 4; }

    const Shape& shape_;
    const Step& step_;
};

}  // namespace

PAGODA_EXPORT void pagoda_run_layers(const Layer* layers, const Shape* shape, const Step* step) {
    Stack(*shape, *step).run(layers);
}
