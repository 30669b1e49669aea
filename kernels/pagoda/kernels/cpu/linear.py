"""Linear layers in C++ (src/linear*): weights packed for the processor, as they are or rounded to 8 or 4 bits.

Knows nothing of models: whoever builds one decides which of its layers are stored how.
"""

from __future__ import annotations

import ctypes
from typing import Literal

import torch
from torch import Tensor

from pagoda.kernels.cpu.library import INT, POINTER, SIZE, declared
from pagoda.kernels.elementwise import Activation

Storage = Literal["bfloat16", "float32", "int8", "int4"]
"""How weights are stored, and what a product with them is.

bfloat16, float32: as they are; products are summed in float32
int8: a scale per output; rows of x are rounded to 8 bits too, each with a scale, and integers are summed exactly
int4: 4.5 bits per weight: 16 values that are denser around 0, a scale per output and 32 inputs; x is rounded to 8 bits
with a scale per row and 32 inputs
"""

_MAX_INT8_INPUTS = 66_311
"""Beyond, an int32 sum of products of 8-bit numbers could overflow."""

# As src/activation.h names them.
_ACTIVATIONS: dict[Activation | None, int] = {None: 0, "silu": 1, "gelu_tanh": 2}


class CpuLinear:
    """x W^T + b, with W packed into panels for the native kernels; or, with an activation, what
    `Elementwise.activate_and_multiply` makes of that, to the bit, while it is still in the processor's caches.

    A row's result has the same bits whatever the other rows and the number of threads. The bias is added in float32.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        storage: Storage | None = None,
        out_dtype: torch.dtype | None = None,
        activation: Activation | None = None,
    ) -> None:
        """Packs; neither weight nor bias is kept.

        weight: [out_features, in_features], bfloat16 or float32
        bias: [out_features], any floating dtype
        storage: None: as weight's dtype says
        out_dtype: of results, bfloat16 or float32; None: x's
        activation: weight is [2 * out_features, in_features], gate first, and so is bias

        Raises ValueError when the weight cannot be stored that way.
        """
        if weight.dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(f"weights of {weight.dtype} cannot be packed, only bfloat16 and float32")
        self._storage = storage or _storage_of(weight.dtype)
        num_outputs, self.in_features = weight.shape
        self.weight_shape = num_outputs, self.in_features
        assert not activation or num_outputs % 2 == 0
        self.out_features = num_outputs // 2 if activation else num_outputs
        self.activation_code = _ACTIVATIONS[activation]
        sizes = self.out_features, self.in_features, self.activation_code
        if self._storage == "int8" and self.in_features > _MAX_INT8_INPUTS:
            raise ValueError(f"int8 takes at most {_MAX_INT8_INPUTS} input features, not {self.in_features}")
        self._out_dtype = out_dtype
        size = declared(getattr(library, f"pagoda_linear_{self._storage}_bytes"), [SIZE, SIZE, INT], SIZE)
        pack = declared(
            getattr(library, f"pagoda_linear_{self._storage}_pack"),
            [POINTER, INT, POINTER, POINTER, SIZE, SIZE, INT, INT],
        )
        self._multiply = declared(
            getattr(library, f"pagoda_linear_{self._storage}"),
            [POINTER, SIZE, INT, SIZE, POINTER, SIZE, SIZE, POINTER, *[INT] * 3],
        )

        weight = weight.detach().contiguous()
        bias = None if bias is None else bias.detach().to(torch.float32).contiguous()
        self._panels = torch.empty(size(*sizes), dtype=torch.uint8)
        self.panels_pointer = self._panels.data_ptr()
        pack(
            weight.data_ptr(),
            weight.dtype is torch.bfloat16,
            None if bias is None else bias.data_ptr(),
            self.panels_pointer,
            *sizes,
            torch.get_num_threads(),
        )

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., in_features], bfloat16 or float32 (of dense weights' own dtype); returns [..., out_features]."""
        shape, dtype = x.shape, x.dtype
        assert shape[-1] == self.in_features
        assert dtype in (torch.bfloat16, torch.float32)
        assert self._storage in ("int8", "int4", _storage_of(dtype))
        if x.dim() != 2:
            x = x.reshape(-1, self.in_features)
        if x.stride(1) != 1:
            x = x.contiguous()
        num_rows = x.shape[0]
        out_dtype = self._out_dtype or dtype
        out = torch.empty(num_rows, self.out_features, dtype=out_dtype)
        self._multiply(
            x.data_ptr(),
            x.stride(0),
            dtype is torch.bfloat16,
            num_rows,
            self.panels_pointer,
            self.out_features,
            self.in_features,
            out.data_ptr(),
            out_dtype is torch.bfloat16,
            self.activation_code,
            torch.get_num_threads(),
        )
        return out if len(shape) == 2 else out.view(*shape[:-1], self.out_features)

    @property
    def function_pointer(self) -> int:
        """Of the C function that multiplies, for other C functions."""
        address = ctypes.cast(self._multiply, POINTER).value
        assert address
        return address

    @property
    def num_bytes(self) -> int:
        return self._panels.nbytes


def _storage_of(dtype: torch.dtype) -> Storage:
    return "bfloat16" if dtype is torch.bfloat16 else "float32"
