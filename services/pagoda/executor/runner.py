"""Runs step plans: batch, copies of KV blocks, forward pass, sampling.

Knows nothing of transport: a plan message in, a result message out.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda.executor.batch import Batch, SamplingRows, StepInputs
from pagoda.executor.block_copies import BlockCopier
from pagoda.executor.config import ExecutorOptions
from pagoda.executor.core_share import CoreShare
from pagoda.executor.device.arrays import UNKNOWN
from pagoda.executor.device.graph import CudaGraphs, EagerGraph, MakeGraph
from pagoda.executor.device.launched import Clock, Launched
from pagoda.executor.device.memory import free_beside_steps
from pagoda.executor.device.steps import DeviceSteps
from pagoda.executor.huge_pages import shared_can_be_huge
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
from pagoda.executor.pages_ahead import PagesAhead
from pagoda.executor.pending import Done, Pending
from pagoda.executor.plan_arrays import Int64
from pagoda.executor.sampler import sample, to_tensors
from pagoda.executor.transfer.shared_memory import SharedMemory
from pagoda.kernels.attention import AttentionBackend, AttentionBatch, HostLengths
from pagoda.rpc.arrays import pack_u32, unpack_u32
from pagoda.v1 import step_pb2

logger = logging.getLogger(__name__)

# Long enough to reach every kernel, short enough not to be noticed.
_WARM_UP_TOKENS = 8
_NO_ROWS = np.empty(0, np.int64)


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
        make_graph: MakeGraph | None = None,
        share_cache: bool = False,
    ) -> None:
        """attention: the backend; the model's own when None
        make_graph: steps are then launched on the device without waiting for them, those of one token per row as
        graphs (see `warm_up`); the kernels must be able to sample there
        share_cache: other processes of this host may read the cache, if it is in the CPU's memory
        """
        self.model = model
        self.layout = layout
        self.host_memory = host_memory
        self.attention = attention or model.kernels.attention
        self.max_num_batched_tokens = max_num_batched_tokens
        """Most tokens of one step."""
        self.steps = 0
        """Steps run since the start."""
        self.cores: CoreShare | None = None
        """Sets the number of threads of each step on a CPU; None: it stays what it is."""
        self._device = model.decoder.device
        is_shared = share_cache and self._device.type == "cpu"
        self.shared_memory = SharedMemory(layout.num_bytes) if is_shared else None
        """Where the cache is, if others may read it."""
        self.cache = cache = allocate(layout, self._device, self.shared_memory)
        """See `allocate`; the blocks are the entries of its third axis."""
        self._pages = PagesAhead(cache) if self._device.type == "cpu" else None
        self._kv = split_layers(cache)
        self._clock = Clock()
        self._device_steps: DeviceSteps | None = None
        if make_graph:
            assert model.kernels.sample
            self._device_steps = DeviceSteps(
                model,
                layout,
                self._kv,
                self.attention,
                model.kernels.sample,
                make_graph,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
            )
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

    def execute(self, plan: step_pb2.StepPlan) -> step_pb2.StepResult:
        """Runs one step. Raises PlanError for a plan that contradicts the batch."""
        return self.launch(plan).finish()

    @torch.inference_mode()
    def launch(self, plan: step_pb2.StepPlan) -> Pending:
        """Begins a step, which may be done when this returns; others can be launched before it is finished.

        Raises PlanError for a plan that contradicts the batch.
        """
        started_ns = time.perf_counter_ns()
        inputs = self._batch.apply(plan)
        self._copier.apply(plan)
        if self._pages:
            self._pages.use(self._last_block(plan, inputs))
        self.steps += 1
        if self._device_steps:
            return self._launch_on_device(self._device_steps, plan, inputs, started_ns)
        result = step_pb2.StepResult(step=plan.step)
        if inputs is not None:
            rows = inputs.sample_rows
            with self.cores.step(len(inputs.token_ids), len(rows)) if self.cores else nullcontext():
                hidden = self.forward(inputs, inputs.sample_tokens)
                if len(rows):
                    tokens = self._draw(hidden, self._batch.sampling(rows))
                    self._batch.append(rows, tokens)
                    result.rows, result.token_ids = pack_u32(rows), pack_u32(tokens)
        result.forward_ns = time.perf_counter_ns() - started_ns
        return Done(result)

    def _last_block(self, plan: step_pb2.StepPlan, inputs: StepInputs | None) -> int:
        """Of those that will be written to."""
        last_blocks = [int(unpack_u32(grant.block_ids).max(initial=0)) for grant in plan.grants]
        if inputs is not None:
            last_blocks.append(int(inputs.slot_mapping.max()) // self.layout.block_size)
        return max(last_blocks, default=0)

    def _draw(self, hidden: Tensor, rows: SamplingRows) -> Int64:
        decoder = self.model.decoder
        if (shortlist := decoder.shortlist(hidden, to_tensors(rows))) is None:
            return sample(decoder.logits(hidden), rows)
        places = torch.from_numpy(sample(shortlist.logits, rows))
        tokens: Int64 = shortlist.token_ids.gather(1, places[:, None])[:, 0].numpy()
        return tokens

    def _launch_on_device(
        self, steps: DeviceSteps, plan: step_pb2.StepPlan, inputs: StepInputs | None, started_ns: int
    ) -> Launched:
        rows = _NO_ROWS if inputs is None else inputs.sample_rows
        tokens = steps.launch(plan, inputs, self._batch.sampling(rows))
        launched = Launched(plan.step, rows, tokens, self._device, started_ns, self._clock)
        self._batch.append(rows, np.full(len(rows), UNKNOWN))
        return launched

    def forward(self, inputs: StepInputs, tokens: NDArray[np.int64] | None = None) -> Tensor:
        """The final hidden states of the step's tokens, [num_tokens, hidden_size]; fills the KV cache.

        tokens: [n], strictly ascending; those whose states are wanted, all when None
        """
        batch = AttentionBatch(
            cu_seqlens_q=self._to_device(inputs.cu_seqlens_q),
            seq_lens=self._to_device(inputs.seq_lens),
            block_tables=self._to_device(inputs.block_tables),
            slot_mapping=self._to_device(inputs.slot_mapping),
            host=HostLengths(inputs.cu_seqlens_q, inputs.seq_lens),
        )
        plan = self.attention.plan(batch, self.layout.block_size)
        token_ids, positions = self._to_device(inputs.token_ids), self._to_device(inputs.positions)
        wanted = None if tokens is None else self._to_device(tokens)
        return self.model.decoder.forward(token_ids, positions, self._kv, plan, wanted)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """A small forward pass into block 0, before any row is active: the first request does not pay for set-up. Makes
        the graphs, too."""
        started = time.perf_counter()
        num_tokens = min(_WARM_UP_TOKENS, self.layout.block_size, self.model.max_model_len)
        inputs = StepInputs(
            token_ids=np.zeros(num_tokens, np.int32),
            positions=np.arange(num_tokens),
            slot_mapping=np.arange(num_tokens),
            cu_seqlens_q=np.array([0, num_tokens], np.int32),
            seq_lens=np.array([num_tokens], np.int32),
            block_tables=np.zeros((1, 1), np.int32),
            rows=np.zeros(1, np.int64),
            sample_rows=np.empty(0, np.int64),
            sample_tokens=np.empty(0, np.int64),
        )
        self.model.decoder.logits(self.forward(inputs)[-1:])
        if self._device_steps:
            self._device_steps.capture()
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
    max_num_batched_tokens = options.max_num_batched_tokens or _default_batched_tokens(options.max_num_seqs)
    plan_cache = partial(
        plan_layout,
        model.decoder.config,
        block_size=options.block_size,
        dtype=model.kernels.cache_dtype(options.kv_cache_dtype, model.decoder.dtype),
        limits=CacheLimits(
            max_num_seqs=options.max_num_seqs,
            max_model_len=model.max_model_len,
            gpu_memory_utilization=options.gpu_memory_utilization,
            kv_cache_memory_bytes=options.kv_cache_memory_bytes,
            num_gpu_blocks_override=options.num_gpu_blocks_override,
        ),
        device=device,
    )
    layout = plan_cache(available_bytes=available_bytes(device))
    launches = device.type == "cuda" and model.kernels.sample is not None
    if launches:
        free = free_beside_steps(
            model,
            layout,
            _graphs(options),
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
        )
        layout = plan_cache(available_bytes=free)
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
        max_num_batched_tokens=max_num_batched_tokens,
        host_memory=host_memory,
        make_graph=_graphs(options) if launches else None,
        share_cache=options.transfer in ("auto", "shm") and (options.role == "prefill" or shared_can_be_huge()),
    )


def _graphs(options: ExecutorOptions) -> MakeGraph:
    return EagerGraph if options.enforce_eager else CudaGraphs()


def _default_batched_tokens(max_num_seqs: int) -> int:
    """As many as use any device well. Where so many take long, the scheduler plans shorter steps: it has a target for
    the time between two tokens."""
    return max(2048, max_num_seqs + 64)


def _resolve_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but torch finds no GPU")
    return torch.device(name)
