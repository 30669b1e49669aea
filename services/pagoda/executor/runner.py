"""Runs step plans: batch, copies of KV blocks, forward pass, sampling.

Knows nothing of transport: a plan message in, a result message out.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda.executor.batch import Batch, StepInputs
from pagoda.executor.block_copies import BlockCopier
from pagoda.executor.config import ExecutorOptions
from pagoda.executor.kv_cache import (
    CacheLimits,
    HostMemory,
    KvLayout,
    allocate,
    plan_host_memory,
    plan_layout,
    split_layers,
)
from pagoda.executor.loader import Model, load_model
from pagoda.executor.machine import available_bytes, usable_cores
from pagoda.executor.sampler import sample
from pagoda.kernels.attention import AttentionBackend, AttentionBatch
from pagoda.rpc.arrays import pack_u32
from pagoda.v1 import step_pb2

logger = logging.getLogger(__name__)

# Long enough to reach every kernel, short enough not to be noticed.
_WARM_UP_TOKENS = 8


class Runner:
    """One model with its KV cache and its batch. Not thread-safe: one thread runs the steps."""

    def __init__(
        self,
        model: Model,
        layout: KvLayout,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        host_memory: HostMemory | None = None,
        attention: AttentionBackend | None = None,
    ) -> None:
        """attention: the backend; the model's own when None."""
        self.model = model
        self.layout = layout
        self.host_memory = host_memory
        self.attention = attention or model.kernels.attention
        self.max_num_batched_tokens = max_num_batched_tokens
        """Most tokens of one step."""
        self.steps = 0
        """Steps run since the start."""
        self._device = model.decoder.device
        cache = allocate(layout, self._device)
        self._kv = split_layers(cache)
        self._copier = BlockCopier(cache, host_memory.num_blocks if host_memory else 0)
        self._batch = Batch(
            max_num_seqs=max_num_seqs,
            max_model_len=model.max_model_len,
            vocab_size=model.decoder.config.vocab_size,
            max_num_batched_tokens=max_num_batched_tokens,
            num_blocks=layout.num_blocks,
            block_size=layout.block_size,
        )

    @property
    def device_name(self) -> str:
        """For people: the GPU's name, or "cpu"."""
        return torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"

    def reset(self) -> None:
        """Ends every row; nothing in the cache or in host memory is of use any more."""
        self._batch.reset()
        self._copier.reset()

    @torch.inference_mode()
    def execute(self, plan: step_pb2.StepPlan) -> step_pb2.StepResult:
        """Runs one step. Raises PlanError for a plan that contradicts the batch."""
        started = time.perf_counter_ns()
        result = step_pb2.StepResult(step=plan.step)
        inputs = self._batch.apply(plan)
        self._copier.apply(plan)
        if inputs is not None:
            hidden = self.forward(inputs)
            rows = inputs.sample_rows
            if len(rows):
                logits = self.model.decoder.logits(hidden[self._to_device(inputs.sample_tokens)])
                tokens = sample(logits, self._batch.sampling(rows))
                self._batch.append(rows, tokens)
                result.rows, result.token_ids = pack_u32(rows), pack_u32(tokens)
        self.steps += 1
        result.forward_ns = time.perf_counter_ns() - started
        return result

    def forward(self, inputs: StepInputs) -> Tensor:
        """The final hidden states of the step's tokens, [num_tokens, hidden_size]; fills the KV cache."""
        batch = AttentionBatch(
            cu_seqlens_q=self._to_device(inputs.cu_seqlens_q),
            seq_lens=self._to_device(inputs.seq_lens),
            block_tables=self._to_device(inputs.block_tables),
            slot_mapping=self._to_device(inputs.slot_mapping),
        )
        plan = self.attention.plan(batch, self.layout.block_size)
        token_ids, positions = self._to_device(inputs.token_ids), self._to_device(inputs.positions)
        return self.model.decoder.forward(token_ids, positions, self._kv, plan)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """A small forward pass into block 0, before any row is active: the first request does not pay for set-up."""
        started = time.perf_counter()
        num_tokens = min(_WARM_UP_TOKENS, self.layout.block_size, self.model.max_model_len)
        inputs = StepInputs(
            token_ids=np.zeros(num_tokens, np.int32),
            positions=np.arange(num_tokens),
            slot_mapping=np.arange(num_tokens),
            cu_seqlens_q=np.array([0, num_tokens], np.int32),
            seq_lens=np.array([num_tokens], np.int32),
            block_tables=np.zeros((1, 1), np.int32),
            sample_rows=np.empty(0, np.int64),
            sample_tokens=np.empty(0, np.int64),
        )
        self.model.decoder.logits(self.forward(inputs)[-1:])
        logger.info("warmed up in %.2f s", time.perf_counter() - started)

    def _to_device(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def load_runner(options: ExecutorOptions) -> Runner:
    """Loads the model of `options` and allocates its cache.

    Raises ValueError, naming the option to change, when that is not possible.
    """
    if options.model is None:
        raise ValueError("no model: name the folder of a checkpoint")
    torch.set_num_threads(options.threads or usable_cores())
    device = _resolve_device(options.device)
    model = load_model(
        Path(options.model),
        device=device,
        dtype=options.dtype,
        max_model_len=options.max_model_len,
        dummy=options.load_format == "dummy",
        block_size=options.block_size,
        kernels=options.kernels,
        quantization=options.quantization,
    )
    layout = plan_layout(
        model.decoder.config,
        block_size=options.block_size,
        dtype=model.decoder.dtype,
        limits=CacheLimits(
            max_num_seqs=options.max_num_seqs,
            max_model_len=model.max_model_len,
            gpu_memory_utilization=options.gpu_memory_utilization,
            kv_cache_memory_bytes=options.kv_cache_memory_bytes,
            num_gpu_blocks_override=options.num_gpu_blocks_override,
        ),
        device=device,
        available_bytes=available_bytes(device),
    )
    logger.info(
        "KV cache: %d blocks of %d tokens, %.1f MiB", layout.num_blocks, layout.block_size, layout.num_bytes / 2**20
    )
    host_memory = plan_host_memory(
        layout,
        swap_space=options.swap_space,
        kv_offloading_size=options.kv_offloading_size,
        available_bytes=available_bytes(torch.device("cpu")),
    )
    if host_memory:
        logger.info("host memory: %d KV blocks", host_memory.num_blocks)
    return Runner(
        model,
        layout,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens or _default_batched_tokens(device, options.max_num_seqs),
        host_memory=host_memory,
    )


def _default_batched_tokens(device: torch.device, max_num_seqs: int) -> int:
    """As many as use the device well. More would only make running requests wait longer beside a prompt: on two CPU
    cores, a model of 0.5 B parameters computes about a thousand tokens per second."""
    return max(2048 if device.type == "cuda" else 256, max_num_seqs + 64)


def _resolve_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but torch finds no GPU")
    return torch.device(name)
