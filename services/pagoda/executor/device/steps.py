"""Launches steps on a device, one after the other, without waiting for any of them.

The device keeps each row's block table and the token it sampled last. A plan changes tables only where rows start or
get blocks; what else a step needs is as long as its rows and tokens, and comes with it. So the host can launch a step
before it knows what the one before has sampled.

Most steps have one token per row, and sample from each. They are graphs: the same work, captured once for each of a few
sizes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pagoda.executor.batch import SamplingRows, StepInputs
from pagoda.executor.device.arrays import UNKNOWN, Array, StepArrays, idle_step, padded, step_arrays
from pagoda.executor.device.changes import table_changes
from pagoda.executor.device.graph import Graph, MakeGraph
from pagoda.executor.device.staging import Staging
from pagoda.executor.kv_cache import KvLayout
from pagoda.executor.loader import Model
from pagoda.executor.models.decoder import KvLayer
from pagoda.executor.plan_arrays import Int64
from pagoda.kernels.attention import AttentionBackend, AttentionBatch, HostLengths
from pagoda.kernels.sampling import SampleTokens, SamplingTensors
from pagoda.v1 import step_pb2

logger = logging.getLogger(__name__)


class DeviceSteps:
    """One model over one cache. Not thread-safe: one thread launches."""

    def __init__(
        self,
        model: Model,
        layout: KvLayout,
        kv: Sequence[KvLayer],
        attention: AttentionBackend,
        sample: SampleTokens,
        make_graph: MakeGraph,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
    ) -> None:
        self._decoder = model.decoder
        self._block_size = layout.block_size
        self._kv = kv
        self._attention = attention
        self._sample = sample
        self._make_graph = make_graph
        self._graphs: dict[int, Graph] = {}
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_model_len = model.max_model_len
        self._vocab_size = model.decoder.config.vocab_size
        device = model.decoder.device
        width = -(-model.max_model_len // layout.block_size)
        self.most_rows = min(max_num_seqs, max_num_batched_tokens)
        """Of one step: a row brings one token at least."""
        # One more row than requests can have: that of the padding.
        self._next_tokens = torch.zeros(max_num_seqs + 1, dtype=torch.int64, device=device)
        self._block_tables = torch.zeros((max_num_seqs + 1, width), dtype=torch.int32, device=device)
        changes = np.zeros(max_num_seqs * width, np.int64), np.zeros(max_num_seqs * width, np.int32)
        steps = [*self._largest(), *changes], list(self._mixed(1))
        self._staging = Staging(max(Staging.num_bytes(arrays) for arrays in steps), device)

    @torch.inference_mode()
    def capture(self, sizes: Sequence[int] | None = None) -> None:
        """Makes the graphs; before, every step is launched operation by operation. Kernels that no graph has are
        compiled, too, so that no request waits for that.

        sizes: numbers of rows; `graph_sizes` of the most rows when None
        """
        started = time.perf_counter()
        for seq_len in (1, self._max_model_len):
            self._run_idle(self._mixed(seq_len))
        width = self._block_tables.shape[1]
        # The largest first: the others then do with its memory.
        for size in sorted(sizes or graph_sizes(self.most_rows), reverse=True):
            idle = self._idle(size)
            step = self._tensors(idle, self._send(idle))

            def work(step: StepArrays[Tensor] = step) -> Tensor:
                return self._compute(step, width, None)

            self._graphs[size] = self._make_graph(work)
        logger.info("made %d graphs in %.2f s", len(self._graphs), time.perf_counter() - started)

    @torch.inference_mode()
    def run_largest(self) -> None:
        """A step that takes as much memory as any: all rows, all tokens. What it computes is stored nowhere."""
        self._run_idle(self._largest())

    def _run_idle(self, step: StepArrays[Array]) -> None:
        tensors = self._tensors(step, self._send(step))
        lengths = HostLengths(step.cu_seqlens_q, step.seq_lens)
        self._compute(tensors, -(-int(step.seq_lens.max()) // self._block_size), lengths)

    def launch(
        self, plan: step_pb2.StepPlan, inputs: StepInputs | None, sampling: SamplingRows | None
    ) -> Tensor | None:
        """Launches the step that `plan` brings; the batch has been told of it.

        inputs: None when no row runs
        sampling: of inputs.sample_rows

        Returns the token ids [m] that those rows sample, on the device, where they stay until the next launch.
        """
        changes = table_changes(plan, self._block_tables.shape[1])
        if inputs is None or sampling is None:
            self._send((), changes)
            return None
        num_rows = len(inputs.rows)
        step = step_arrays(inputs, sampling, self._vocab_size)
        # As many samples as tokens: every row brings one token and samples from it.
        if len(inputs.sample_rows) == len(inputs.positions) and (size := self._graph_size(num_rows)):
            self._send(padded(step, self._idle(size)) if num_rows < size else step, changes)
            return self._graphs[size].replay()[:num_rows]
        tensors = self._tensors(step, self._send(step, changes))
        lengths = HostLengths(inputs.cu_seqlens_q, inputs.seq_lens)
        return self._compute(tensors, inputs.block_tables.shape[1], lengths)

    def _compute(self, step: StepArrays[Tensor], width: int, lengths: HostLengths | None) -> Tensor:
        """width: of the block tables, as far as they are looked at. Returns the tokens sampled, [m] int64."""
        token_ids = torch.where(
            step.token_ids == UNKNOWN, self._next_tokens.index_select(0, step.token_rows), step.token_ids
        )
        batch = AttentionBatch(
            cu_seqlens_q=step.cu_seqlens_q,
            seq_lens=step.seq_lens,
            block_tables=self._block_tables[:, :width].index_select(0, step.rows),
            slot_mapping=step.slot_mapping,
            host=lengths,
        )
        plan = self._attention.plan(batch, self._block_size)
        hidden = self._decoder.forward(token_ids, step.positions, self._kv, plan, step.sample_tokens)
        if not len(step.sample_rows):
            return step.sample_rows
        parameters = SamplingTensors(
            step.temperature, step.top_p, step.top_k, step.min_p, step.seed, step.sample_positions
        )
        tokens = self._sample(self._decoder.logits(hidden), parameters)
        self._next_tokens.index_copy_(0, step.sample_rows, tokens)
        return tokens

    def _send(self, step: Sequence[Array], changes: tuple[Array, Array] | tuple[()] = ()) -> list[int]:
        """Brings a step to the device, and changes the block tables. Returns the places of the step's arrays."""
        places = self._staging.send([*step, *changes])
        if changes:
            sent = (self._staging.tensor(*each) for each in zip(places[-2:], changes, strict=True))
            self._block_tables.view(-1).index_copy_(0, *sent)
        return places[: len(step)]

    def _tensors(self, step: StepArrays[Array], places: Sequence[int]) -> StepArrays[Tensor]:
        """The step that was sent there."""
        return StepArrays(*(self._staging.tensor(*each) for each in zip(places, step, strict=True)))

    def _idle(self, size: int) -> StepArrays[Array]:
        return idle_step(size, self._max_num_seqs)

    def _graph_size(self, num_rows: int) -> int | None:
        return min((size for size in self._graphs if size >= num_rows), default=None)

    def _largest(self) -> StepArrays[Array]:
        """A step of as many rows and tokens as there can be; each row is the start of a sequence."""
        row_tokens = np.full(self.most_rows, self._max_num_batched_tokens // self.most_rows)
        row_tokens[: self._max_num_batched_tokens % self.most_rows] += 1
        row_tokens = np.minimum(row_tokens, self._max_model_len)
        return self._idle_chunks(row_tokens, row_tokens)

    def _mixed(self, seq_len: int) -> StepArrays[Array]:
        """A row that decodes, with so many tokens, beside a prompt of two tokens."""
        return self._idle_chunks(np.array([1, 2]), np.array([seq_len, 2]))

    def _idle_chunks(self, row_tokens: Int64, seq_lens: Int64) -> StepArrays[Array]:
        """An idle step of rows that bring more than one token; both [n]."""
        ends = np.cumsum(row_tokens)
        tokens = self._idle(int(ends[-1]))
        return self._idle(len(row_tokens))._replace(
            token_ids=tokens.token_ids,
            token_rows=tokens.token_rows,
            positions=np.arange(ends[-1]) + np.repeat(seq_lens - ends, row_tokens),
            slot_mapping=tokens.slot_mapping,
            cu_seqlens_q=np.concatenate(([0], ends)).astype(np.int32),
            seq_lens=seq_lens.astype(np.int32),
            sample_tokens=ends - 1,
        )


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Numbers of rows to make graphs for: at most an eighth more than a step has, or seven."""
    sizes = [1, 2, 4]
    while sizes[-1] < max_num_seqs:
        sizes.append(sizes[-1] + max(8, sizes[-1] // 64 * 8) - sizes[-1] % 8)
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]
