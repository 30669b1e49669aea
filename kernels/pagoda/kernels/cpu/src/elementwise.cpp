// Norms, rotary embedding and gated activations, each rounding where the checkpoints' own code rounds.
#include "activation.h"
#include "exports.h"

namespace pagoda {
namespace {

// Below this many elements a second thread costs more than it saves.
constexpr int64_t kWorthThreads = 1 << 15;

int threads_for(int64_t elements, int num_threads) { return elements < kWorthThreads ? 1 : num_threads; }

// The last, partial vector of a row: what is behind its end is 0 and stays untouched.
template <typename T>
PAGODA_INLINE f32x16 load_part(const T* from, int64_t count) {
    T lanes[16] = {};
    std::memcpy(lanes, from, count * sizeof(T));
    return load(lanes);
}
template <typename T>
PAGODA_INLINE void store_part(T* to, f32x16 v, int64_t count) {
    T lanes[16];
    store(lanes, v);
    std::memcpy(to, lanes, count * sizeof(T));
}

template <typename T, typename Weight>
PAGODA_INLINE f32x16 scaled(f32x16 x, float scale, f32x16 weight) {
    // A weight in the model's type comes after rounding, one in float32 before (Gemma).
    return (sizeof(Weight) == sizeof(T) ? rounded_to<T>(x * scale) : x * scale) * weight;
}

// Adds delta to x, unless it is null, and returns what norms the sum.
template <typename T>
PAGODA_INLINE float add_and_scale(T* x, const T* delta, int64_t dim, float eps) {
    f32x16 sum = {};
    int64_t i = 0;
    for (; i + 16 <= dim; i += 16) {
        f32x16 v = load(x + i);
        if (delta) store(x + i, v = rounded_to<T>(v + load(delta + i)));
        sum += v * v;
    }
    if (i < dim) {
        f32x16 v = load_part(x + i, dim - i);
        if (delta) store_part(x + i, v = rounded_to<T>(v + load_part(delta + i, dim - i)), dim - i);
        sum += v * v;
    }
    return 1.0f / __builtin_sqrtf(sum_lanes(sum) / dim + eps);
}

// out may be x.
template <typename T, typename Weight>
PAGODA_INLINE void norm_row(T* x, const T* delta, const Weight* weight, T* out, int64_t dim, float eps) {
    const float scale = add_and_scale(x, delta, dim, eps);
    int64_t i = 0;
    for (; i + 16 <= dim; i += 16) store(out + i, scaled<T, Weight>(load(x + i), scale, load(weight + i)));
    if (i < dim)
        store_part(out + i, scaled<T, Weight>(load_part(x + i, dim - i), scale, load_part(weight + i, dim - i)), dim - i);
}

template <typename T, typename Weight>
void rms_norm(T* x, const T* delta, const Weight* weight, T* out, int64_t rows, int64_t dim, float eps, int num_threads) {
#pragma omp parallel for num_threads(threads_for(rows * dim, num_threads))
    for (int64_t row = 0; row < rows; row++)
        norm_row(x + row * dim, delta ? delta + row * dim : nullptr, weight, out + row * dim, dim, eps);
}

// Rotates one head in place: dimension i with i + half.
template <typename T>
PAGODA_INLINE void rotate(T* x, const float* cosine, const float* sine, int64_t half) {
    int64_t i = 0;
    for (; i + 16 <= half; i += 16) {
        const f32x16 first = load(x + i), second = load(x + half + i), c = load(cosine + i), s = load(sine + i);
        store(x + i, first * c - second * s);
        store(x + half + i, second * c + first * s);
    }
    for (; i < half; i++) {
        const float first = widen(x[i]), second = widen(x[half + i]);
        store_one(x + i, first * cosine[i] - second * sine[i]);
        store_one(x + half + i, second * cosine[i] + first * sine[i]);
    }
}

template <typename T, typename Weight>
void norm_and_rotate(T* qkv, int64_t rows, int64_t row_size, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
                     const Weight* q_weight, const Weight* k_weight, float eps, const float* cosine, const float* sine,
                     int64_t half, int num_threads) {
#pragma omp parallel for num_threads(threads_for(rows * row_size, num_threads))
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t head = 0; head < num_heads + num_kv_heads; head++) {
            T* x = qkv + row * row_size + head * head_dim;
            if (q_weight) norm_row<T>(x, nullptr, head < num_heads ? q_weight : k_weight, x, head_dim, eps);
            rotate(x, cosine + row * half, sine + row * half, half);
        }
    }
}

template <typename T, f32x16 (*activation)(f32x16)>
void activate_and_multiply(const T* gate_up, T* out, int64_t rows, int64_t width, int num_threads) {
#pragma omp parallel for num_threads(threads_for(rows * width, num_threads))
    for (int64_t row = 0; row < rows; row++) {
        const T *gate = gate_up + 2 * row * width, *up = gate + width;
        int64_t i = 0;
        for (; i + 16 <= width; i += 16)
            store(out + row * width + i, gated<T, activation>(load(gate + i), load(up + i)));
        if (i < width)
            store_part(out + row * width + i,
                       gated<T, activation>(load_part(gate + i, width - i), load_part(up + i, width - i)), width - i);
    }
}

}  // namespace
}  // namespace pagoda

using pagoda::bf16;

// x [rows, dim] gets delta [rows, dim] added, unless that is null, and out [rows, dim] is x / rms(x) * weight.
PAGODA_EXPORT void pagoda_rms_norm(void* x, const void* delta, const void* weight, void* out, int64_t rows, int64_t dim,
                                   float eps, int32_t is_bf16, int32_t is_weight_bf16, int32_t num_threads) {
    if (!is_bf16)
        pagoda::rms_norm((float*)x, (const float*)delta, (const float*)weight, (float*)out, rows, dim, eps, num_threads);
    else if (is_weight_bf16)
        pagoda::rms_norm((bf16*)x, (const bf16*)delta, (const bf16*)weight, (bf16*)out, rows, dim, eps, num_threads);
    else
        pagoda::rms_norm((bf16*)x, (const bf16*)delta, (const float*)weight, (bf16*)out, rows, dim, eps, num_threads);
}

// The query and key heads of qkv [rows, row_size] are normed, unless the weights [head_dim] are null, and rotated by
// cosine and sine [rows, half], all in place.
PAGODA_EXPORT void pagoda_norm_and_rotate(void* qkv, int64_t rows, int64_t row_size, int64_t num_heads,
                                          int64_t num_kv_heads, int64_t head_dim, const void* q_weight,
                                          const void* k_weight, float eps, const float* cosine, const float* sine,
                                          int64_t half, int32_t is_bf16, int32_t is_weight_bf16, int32_t num_threads) {
    if (!is_bf16)
        pagoda::norm_and_rotate((float*)qkv, rows, row_size, num_heads, num_kv_heads, head_dim, (const float*)q_weight,
                                (const float*)k_weight, eps, cosine, sine, half, num_threads);
    else if (is_weight_bf16)
        pagoda::norm_and_rotate((bf16*)qkv, rows, row_size, num_heads, num_kv_heads, head_dim, (const bf16*)q_weight,
                                (const bf16*)k_weight, eps, cosine, sine, half, num_threads);
    else
        pagoda::norm_and_rotate((bf16*)qkv, rows, row_size, num_heads, num_kv_heads, head_dim, (const float*)q_weight,
                                (const float*)k_weight, eps, cosine, sine, half, num_threads);
}

// out [rows, width] = activation(gate) * up, of gate_up [rows, 2 * width]; silu, or gelu by its tanh approximation.
PAGODA_EXPORT void pagoda_activate_and_multiply(const void* gate_up, void* out, int64_t rows, int64_t width,
                                                int32_t is_gelu, int32_t is_bf16, int32_t num_threads) {
    using namespace pagoda;
    if (is_bf16 && is_gelu)
        activate_and_multiply<bf16, gelu_tanh>((const bf16*)gate_up, (bf16*)out, rows, width, num_threads);
    else if (is_bf16)
        activate_and_multiply<bf16, silu>((const bf16*)gate_up, (bf16*)out, rows, width, num_threads);
    else if (is_gelu)
        activate_and_multiply<float, gelu_tanh>((const float*)gate_up, (float*)out, rows, width, num_threads);
    else
        activate_and_multiply<float, silu>((const float*)gate_up, (float*)out, rows, width, num_threads);
}
