// Gated activations (https://arxiv.org/abs/2002.05202), rounding where the checkpoints' own code rounds.
#pragma once

#include "vec.h"

namespace pagoda {

// As Python names them, in linear.py.
enum Activation : int32_t { kNoActivation, kSilu, kGeluTanh };

// x / (1 + e^-y), through e^(-|y|), which cannot overflow.
PAGODA_INLINE f32x16 times_sigmoid(f32x16 x, f32x16 y) {
    const f32x16 power = exp2_up_to_0(cast<f32x16>(cast<u32x16>(y) | 0x80000000) * 1.44269504f);
    return (y < f32x16{} ? x * power : x) / (1.0f + power);
}

PAGODA_INLINE f32x16 silu(f32x16 x) { return times_sigmoid(x, x); }

// x Phi(x) with the tanh approximation: (1 + tanh(y)) / 2 = 1 / (1 + e^(-2 y)).
PAGODA_INLINE f32x16 gelu_tanh(f32x16 x) { return times_sigmoid(x, (x + x * x * x * 0.044715f) * 1.5957691216f); }

// activation(gate) * up, of what T can hold; the product is not yet rounded.
template <typename T, f32x16 (*activation)(f32x16)>
PAGODA_INLINE f32x16 gated(f32x16 gate, f32x16 up) {
    return rounded_to<T>(activation(gate)) * up;
}

}  // namespace pagoda
