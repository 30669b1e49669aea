// The C functions that C++ calls too. Whoever defines one includes this, so that both sides agree.
#pragma once

#include <cstdint>

#define PAGODA_EXPORT extern "C" __attribute__((visibility("default")))

namespace pagoda {
struct Item;
struct PlanSizes;
}  // namespace pagoda

PAGODA_EXPORT void pagoda_rms_norm(void* x, const void* delta, const void* weight, void* out, int64_t rows, int64_t dim,
                                   float eps, int32_t is_bf16, int32_t is_weight_bf16, int32_t num_threads);
PAGODA_EXPORT void pagoda_norm_and_rotate(void* qkv, int64_t rows, int64_t row_size, int64_t num_heads,
                                          int64_t num_kv_heads, int64_t head_dim, const void* q_weight,
                                          const void* k_weight, float eps, const float* cosine, const float* sine,
                                          int64_t half, int32_t is_bf16, int32_t is_weight_bf16, int32_t num_threads);
PAGODA_EXPORT void pagoda_store_kv(const void* k, const void* v, int64_t k_stride, int64_t v_stride, void* k_cache,
                                   void* v_cache, const int64_t* slot_mapping, int64_t num_tokens, int64_t num_kv_heads,
                                   int64_t head_dim, int64_t block_size, int32_t is_bf16, int32_t is_cache_int8,
                                   int32_t num_threads);
PAGODA_EXPORT void pagoda_attend(const void* q, int64_t q_stride, void* out, const void* k_cache, const void* v_cache,
                                 const int32_t* block_tables, int64_t block_tables_stride, int64_t num_heads,
                                 int64_t num_kv_heads, int64_t head_dim, int64_t block_size, float scale, float soft_cap,
                                 int32_t window, int32_t is_bf16, int32_t is_cache_int8, const pagoda::Item* items,
                                 const pagoda::PlanSizes* sizes, void* workspace);
PAGODA_EXPORT void pagoda_linear_int8(const void* x, int64_t x_stride, int32_t is_x_bf16, int64_t rows,
                                      const void* panels, int64_t out_features, int64_t in_features, void* out,
                                      int32_t is_out_bf16, int32_t activation, int32_t num_threads);
PAGODA_EXPORT void pagoda_linear_bfloat16_listed(const void* x, int64_t x_stride, int32_t is_x_bf16, int64_t rows,
                                                 const void* panels, int64_t out_features, int64_t in_features,
                                                 void* out, int32_t is_out_bf16, const int32_t* listed,
                                                 int64_t listed_stride, const int32_t* counts, int32_t num_threads);
PAGODA_EXPORT void pagoda_linear_float32_listed(const void* x, int64_t x_stride, int32_t is_x_bf16, int64_t rows,
                                                const void* panels, int64_t out_features, int64_t in_features,
                                                void* out, int32_t is_out_bf16, const int32_t* listed,
                                                int64_t listed_stride, const int32_t* counts, int32_t num_threads);
PAGODA_EXPORT void pagoda_gather_blocks(const void* cache, int64_t num_parts, int64_t num_blocks, int64_t part_bytes,
                                        const int64_t* block_ids, int64_t num_ids, void* piece);
PAGODA_EXPORT void pagoda_copy_blocks(void* cache, int64_t num_parts, int64_t num_blocks, int64_t part_bytes,
                                      const int64_t* block_ids, const int64_t* source_ids, int64_t num_ids,
                                      const void* source, int64_t source_blocks);
PAGODA_EXPORT void pagoda_touch_blocks(void* cache, int64_t num_parts, int64_t num_blocks, int64_t part_bytes,
                                       int64_t first, int64_t last);
