"""Paged attention in C++ (src/attention.cpp), for bfloat16 and float32, over a cache of the same dtype or in int8.

Knows which tensors fit and where their memory is; how blocks are laid out in the cache is known to the C++ alone, so
what `store` of this backend wrote can be read by `attend` of this backend only.

Bits: a token's result depends on its own sequence only, not on the rest of the batch, on how the sequence was cut into
chunks, or on the number of threads.
"""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor

from pagoda.kernels.attention import AttentionBatch, AttentionParams, head_elements
from pagoda.kernels.cpu.library import FLOAT, INT, POINTER, SIZE, CompilerError, declared, library

_DTYPES = (torch.bfloat16, torch.float32)
# As in src/cache_formats.h.
_MAX_HEAD_DIM = 256

# A window that nothing is outside of.
_NO_WINDOW = 2**31 - 1

_ITEM_INTS = 8


def window_tokens(sliding_window: int | None) -> int:
    """A sliding window as the C++ takes it."""
    return _NO_WINDOW if sliding_window is None else sliding_window


class _PlanSizes(ctypes.Structure):
    """As in src/attention_plan.h."""

    _fields_ = (
        ("num_items", SIZE),
        ("num_merges", SIZE),
        ("partial_rows", SIZE),
        ("most_rows", SIZE),
        ("num_threads", SIZE),
    )


class Layout:
    """The step's work for one sliding window and number of heads."""

    def __init__(self, functions: _Functions, batch: AttentionBatch, shape: tuple[int, int, int], window: int) -> None:
        """shape: query heads per key/value head, key/value heads, head_dim"""
        self._sizes = _PlanSizes()
        self.sizes = ctypes.addressof(self._sizes)
        arguments = (batch.cu_seqlens_q.data_ptr(), batch.seq_lens.data_ptr(), len(batch.seq_lens), *shape, window)
        threads = torch.get_num_threads()
        functions.plan(*arguments, threads, None, self.sizes)
        num_items = self._sizes.num_items + self._sizes.num_merges
        self._items = np.empty((num_items, _ITEM_INTS), np.int32)
        self.items = self._items.ctypes.data
        functions.plan(*arguments, threads, self.items, self.sizes)
        self.workspace_bytes: int = functions.workspace_bytes(self.sizes, *shape[1:])


class CpuPlan:
    """One step; see `AttentionPlan`. Its tensors are held until it goes."""

    def __init__(self, functions: _Functions, batch: AttentionBatch, block_size: int) -> None:
        for tensor in (batch.cu_seqlens_q, batch.seq_lens, batch.block_tables):
            assert tensor.dtype is torch.int32
            assert tensor.device.type == "cpu"
        assert batch.slot_mapping.dtype is torch.int64
        self._functions = functions
        self.batch = AttentionBatch(
            cu_seqlens_q=batch.cu_seqlens_q.contiguous(),
            seq_lens=batch.seq_lens.contiguous(),
            block_tables=batch.block_tables if batch.block_tables.stride(1) == 1 else batch.block_tables.contiguous(),
            slot_mapping=batch.slot_mapping.contiguous(),
        )
        self._block_size = block_size
        self._layouts: dict[tuple[int, int, int, int], Layout] = {}

    def store(self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
        """See `AttentionPlan.store`; tokens of k and v may lie apart, as in a view of all heads of a layer."""
        self._require_supported(k, k_cache, v_cache)
        assert v.dtype is k.dtype
        assert v.shape == k.shape
        num_tokens, kv_heads, head_dim = k.shape
        k, v = _dense_tokens(k), _dense_tokens(v)
        self._functions.store(
            k.data_ptr(),
            v.data_ptr(),
            k.stride(0),
            v.stride(0),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            self.batch.slot_mapping.data_ptr(),
            num_tokens,
            kv_heads,
            head_dim,
            self._block_size,
            k.dtype is torch.bfloat16,
            k_cache.dtype is torch.int8,
            torch.get_num_threads(),
        )

    def attend(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, params: AttentionParams) -> Tensor:
        """See `AttentionPlan.attend`; tokens of q may lie apart, as in a view of all heads of a layer."""
        self._require_supported(q, k_cache, v_cache)
        if params.k_scale != 1.0 or params.v_scale != 1.0:
            raise ValueError("native attention has no scales for the whole of keys and values")
        num_tokens, num_heads, head_dim = q.shape
        kv_heads = k_cache.shape[2]
        layout = self.layout(num_heads // kv_heads, kv_heads, head_dim, params.sliding_window)
        q = _dense_tokens(q)
        out = q.new_empty(num_tokens, num_heads, head_dim)
        block_tables = self.batch.block_tables
        self._functions.attend(
            q.data_ptr(),
            q.stride(0),
            out.data_ptr(),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            block_tables.data_ptr(),
            block_tables.stride(0),
            num_heads,
            kv_heads,
            head_dim,
            self._block_size,
            params.scale,
            params.soft_cap or 0.0,
            window_tokens(params.sliding_window),
            q.dtype is torch.bfloat16,
            k_cache.dtype is torch.int8,
            layout.items,
            layout.sizes,
            self.workspace(layout.workspace_bytes),
        )
        return out

    def layout(self, group_size: int, kv_heads: int, head_dim: int, sliding_window: int | None) -> Layout:
        """The work of layers of one shape; group_size: query heads per key/value head."""
        window = window_tokens(sliding_window)
        key = group_size, kv_heads, head_dim, window
        layout = self._layouts.get(key)
        if layout is None:
            layout = self._layouts[key] = Layout(self._functions, self.batch, key[:3], window)
        return layout

    def workspace(self, num_bytes: int) -> int:
        """Address of scratch memory for one call."""
        return self._functions.workspace(num_bytes)

    def _require_supported(self, x: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
        """x: queries or keys."""
        block_size, head_dim, cache_dtype = k_cache.shape[1], x.shape[-1], k_cache.dtype
        if not CpuBackend.supports(dtype=x.dtype, head_dim=head_dim, block_size=block_size):
            raise ValueError(
                f"native attention is for bfloat16 and float32, head sizes that are multiples of 16 up to "
                f"{_MAX_HEAD_DIM} and even block sizes, not for {x.dtype}, {head_dim} and {block_size}"
            )
        if cache_dtype not in (x.dtype, torch.int8):
            raise ValueError(f"native attention is for a cache in {x.dtype} or int8 here, not in {cache_dtype}")
        assert block_size == self._block_size
        assert k_cache.shape[3] == head_elements(head_dim, cache_dtype)
        assert v_cache.shape == k_cache.shape
        assert v_cache.dtype is cache_dtype
        assert k_cache.is_contiguous()
        assert v_cache.is_contiguous()


class CpuBackend:
    """Attention in C++. Not thread-safe: the plans of a backend share its scratch memory."""

    name = "cpu"

    def __init__(self, level: str | None = None) -> None:
        """level: one of `library.LEVELS`; the best that this processor has when None.

        Raises CompilerError where the kernels cannot be compiled.
        """
        loaded = library(level)
        if loaded is None:
            raise CompilerError("the native kernels cannot be compiled on this machine")
        self._functions = _Functions(loaded)

    @staticmethod
    def supports(*, dtype: torch.dtype, head_dim: int, block_size: int) -> bool:
        """Whether a model of that dtype can be computed; everything else is for another backend."""
        return dtype in _DTYPES and head_dim % 16 == 0 and 0 < head_dim <= _MAX_HEAD_DIM and block_size % 2 == 0

    def plan(self, batch: AttentionBatch, block_size: int) -> CpuPlan:
        """See `AttentionBackend.plan`."""
        return CpuPlan(self._functions, batch, block_size)


class _Functions:
    """The library's functions, and memory for them."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self.plan = declared(loaded.pagoda_plan_attention, [POINTER, POINTER, *[SIZE] * 6, POINTER, POINTER])
        self.store = declared(
            loaded.pagoda_store_kv,
            [POINTER, POINTER, SIZE, SIZE, POINTER, POINTER, POINTER, *[SIZE] * 4, INT, INT, INT],
        )
        self.workspace_bytes = declared(loaded.pagoda_attention_workspace, [POINTER, SIZE, SIZE], SIZE)
        self.attend = declared(
            loaded.pagoda_attend,
            [
                *(POINTER, SIZE, POINTER, POINTER, POINTER, POINTER, SIZE),
                *(SIZE, SIZE, SIZE, SIZE, FLOAT, FLOAT, INT, INT, INT),
                *(POINTER, POINTER, POINTER),
            ],
        )
        self._workspace = torch.empty(0, dtype=torch.uint8)

    def workspace(self, num_bytes: int) -> int:
        """Address of so much memory, whose contents last for one call."""
        if self._workspace.nbytes < num_bytes:
            self._workspace = torch.empty(num_bytes, dtype=torch.uint8)
            # The C++ keeps whole vectors in it.
            assert self._workspace.data_ptr() % 64 == 0
        return self._workspace.data_ptr()


def _dense_tokens(x: Tensor) -> Tensor:
    """x [num_tokens, heads, head_dim], copied unless a token's numbers lie side by side."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
