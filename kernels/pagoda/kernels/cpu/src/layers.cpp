// All layers of a decoder in one call: what decoder.py does layer by layer, without going back to Python in between.
#include "exports.h"

namespace {

// As in layers.py, and so are all the following.
struct Linear {
    void (*multiply)(const void* x, int64_t x_stride, int32_t is_x_bf16, int64_t rows, const void* panels,
                     int64_t out_features, int64_t in_features, void* out, int32_t is_out_bf16, int32_t num_threads);
    const void* panels;
    int64_t out_features, in_features;
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
    int64_t num_layers, hidden_size, num_heads, num_kv_heads, head_dim, intermediate_size, block_size;
    float eps;
    int32_t is_bf16, is_norm_bf16, is_head_norm_bf16, is_gelu;
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
    const Rope* ropes;
    const Layout* layouts;
    const int64_t* slot_mapping;
    const int32_t* block_tables;
    int64_t block_tables_stride;
    void* attention_workspace;
    // The residual stream and its norm [num_tokens, hidden_size], both read and written.
    void *x, *normed;
    // Scratch for one row each of num_tokens: queries, keys and values; attended; gate and up; activated; what is added.
    void *qkv, *attended, *gate_up, *activated, *delta;
    int32_t num_threads;
};

class Stack {
  public:
    Stack(const Shape& shape, const Step& step) : shape_(shape), step_(step) {}

    void run(const Layer& layer) const {
        multiply(layer.qkv, step_.normed, step_.qkv);
        attend(layer);
        multiply(layer.o, step_.attended, step_.delta);
        add(layer.attention_out_norm, layer.mlp_norm);
        multiply(layer.gate_up, step_.normed, step_.gate_up);
        pagoda_activate_and_multiply(step_.gate_up, step_.activated, step_.num_tokens, shape_.intermediate_size,
                                     shape_.is_gelu, shape_.is_bf16, step_.num_threads);
        multiply(layer.down, step_.activated, step_.delta);
        add(layer.mlp_out_norm, layer.next_norm);
    }

  private:
    void multiply(const Linear& linear, const void* x, void* out) const {
        linear.multiply(x, linear.in_features, shape_.is_bf16, step_.num_tokens, linear.panels, linear.out_features,
                        linear.in_features, out, shape_.is_bf16, step_.num_threads);
    }

    // Delta, normed first if there is an `out_norm`, is added to x, of which the next norm is made.
    void add(const void* out_norm, const void* next_norm) const {
        if (out_norm) norm(step_.delta, nullptr, out_norm, step_.delta);
        norm(step_.x, step_.delta, next_norm, step_.normed);
    }

    void norm(void* x, const void* delta, const void* weight, void* out) const {
        pagoda_rms_norm(x, delta, weight, out, step_.num_tokens, shape_.hidden_size, shape_.eps, shape_.is_bf16,
                        shape_.is_norm_bf16, step_.num_threads);
    }

    void attend(const Layer& layer) const {
        const int64_t element = shape_.is_bf16 ? 2 : 4;
        const int64_t row = layer.qkv.out_features, head_dim = shape_.head_dim;
        const char* k = (const char*)step_.qkv + shape_.num_heads * head_dim * element;
        const char* v = k + shape_.num_kv_heads * head_dim * element;
        const Rope& rope = step_.ropes[layer.rope];
        pagoda_norm_and_rotate(step_.qkv, step_.num_tokens, row, shape_.num_heads, shape_.num_kv_heads, head_dim,
                               layer.q_norm, layer.k_norm, shape_.eps, rope.cosine, rope.sine, rope.half, shape_.is_bf16,
                               shape_.is_head_norm_bf16, step_.num_threads);
        pagoda_store_kv(k, v, row, row, layer.k_cache, layer.v_cache, step_.slot_mapping, step_.num_tokens,
                        shape_.num_kv_heads, head_dim, shape_.block_size, shape_.is_bf16, step_.num_threads);
        const Layout& layout = step_.layouts[layer.layout];
        pagoda_attend(step_.qkv, row, step_.attended, layer.k_cache, layer.v_cache, step_.block_tables,
                      step_.block_tables_stride, shape_.num_heads, shape_.num_kv_heads, head_dim, shape_.block_size,
                      layer.scale, layer.soft_cap, layer.window, shape_.is_bf16, layout.items, layout.sizes,
                      step_.attention_workspace);
    }

    const Shape& shape_;
    const Step& step_;
};

}  // namespace

PAGODA_EXPORT void pagoda_run_layers(const Layer* layers, const Shape* shape, const Step* step) {
    const Stack stack(*shape, *step);
    for (int64_t i = 0; i < shape->num_layers; i++) stack.run(layers[i]);
}
