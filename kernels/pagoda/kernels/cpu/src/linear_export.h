// The C functions of a format of weights; kernels/cpu/linear.py calls them.
#pragma once

#include "exports.h"
#include "linear.h"

// pagoda_linear_NAME_bytes: size of the panels.
// pagoda_linear_NAME_pack: weight [out_features, in_features], contiguous, and bias [out_features] or null to panels; with
// an activation, both have twice as many rows, gates first.
// pagoda_linear_NAME: out [rows, out_features] = x W^T + bias, or what the activation makes of that; x [rows, in_features],
// its rows x_stride elements apart.
// pagoda_linear_NAME_listed: of row i only the counts[i] panels from listed[i * listed_stride] on; the rest of out is left.
#define PAGODA_LINEAR(NAME, FORMAT)                                                                                    \
    PAGODA_EXPORT int64_t pagoda_linear_##NAME##_bytes(int64_t out_features, int64_t in_features,                      \
                                                       int32_t activation) {                                           \
        return pagoda::ceil_div(out_features, pagoda::panel_columns(pagoda::Activation(activation))) *                 \
               pagoda::Layout<FORMAT>(in_features).panel_bytes;                                                        \
    }                                                                                                                  \
    PAGODA_EXPORT void pagoda_linear_##NAME##_pack(const void* weight, int32_t is_bf16, const float* bias,             \
                                                   void* panels, int64_t out_features, int64_t in_features,            \
                                                   int32_t activation, int32_t num_threads) {                          \
        if (is_bf16)                                                                                                   \
            pagoda::pack_panels<FORMAT>((const pagoda::bf16*)weight, bias, (char*)panels, out_features, in_features,   \
                                        pagoda::Activation(activation), num_threads);                                  \
        else                                                                                                           \
            pagoda::pack_panels<FORMAT>((const float*)weight, bias, (char*)panels, out_features, in_features,          \
                                        pagoda::Activation(activation), num_threads);                                  \
    }                                                                                                                  \
    PAGODA_EXPORT void pagoda_linear_##NAME(const void* x, int64_t x_stride, int32_t is_x_bf16, int64_t rows,          \
                                            const void* panels, int64_t out_features, int64_t in_features, void* out,  \
                                            int32_t is_out_bf16, int32_t activation, int32_t num_threads) {            \
        pagoda::linear<FORMAT>({x, x_stride, bool(is_x_bf16), rows, (const char*)panels, in_features, out_features,    \
                                out, bool(is_out_bf16), pagoda::Activation(activation), num_threads});                 \
    }                                                                                                                  \
    PAGODA_EXPORT void pagoda_linear_##NAME##_listed(                                                                  \
        const void* x, int64_t x_stride, int32_t is_x_bf16, int64_t rows, const void* panels, int64_t out_features,    \
        int64_t in_features, void* out, int32_t is_out_bf16, const int32_t* listed, int64_t listed_stride,             \
        const int32_t* counts, int32_t num_threads) {                                                                  \
        pagoda::linear_listed<FORMAT>({x, x_stride, bool(is_x_bf16), rows, (const char*)panels, in_features,           \
                                       out_features, out, bool(is_out_bf16), pagoda::kNoActivation, num_threads},      \
                                      listed, listed_stride, counts);                                                  \
    }
