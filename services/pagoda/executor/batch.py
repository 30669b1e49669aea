"""The persistent batch: what the executor keeps of its requests between steps.

A row belongs to one request from its start to its end. Plans bring differences only; this module applies them and
builds a step's inputs with a few array operations, whatever the number of rows. A plan that does not fit the batch
is a bug of the scheduler or of ours: it is refused with `PlanError`, never half understood.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from pagoda.errors import InternalError
from pagoda.rpc.arrays import unpack_u32
from pagoda.v1 import step_pb2

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


class PlanError(InternalError):
    """A step plan that contradicts the batch."""

    reason = "BAD_STEP_PLAN"


@dataclass(frozen=True)
class StepInputs:
    """One step as arrays: n rows in the plan's order, T tokens, row after row."""

    token_ids: Int32
    """[T]."""

    positions: Int64
    """[T]; index in the row's sequence."""

    slot_mapping: Int64
    """[T]; block id * block_size + slot."""

    cu_seqlens_q: Int32
    """[n + 1]."""

    seq_lens: Int32
    """[n]; computed tokens once the step is done."""

    block_tables: Int32
    """[n, most blocks of a row]; entries past a row's last block are leftovers."""

    sample_rows: Int64
    """[m]; rows that sample: all their tokens are computed with this step."""

    sample_tokens: Int64
    """[m]; the last token of each of those rows, as an index in the step's T tokens."""


@dataclass(frozen=True)
class SamplingRows:
    """Sampling parameters of m rows; see `RowSampling` for their meaning."""

    temperature: NDArray[np.float32]
    top_p: NDArray[np.float32]
    top_k: Int64
    min_p: NDArray[np.float32]
    seed: NDArray[np.uint64]

    position: Int64
    """Index of the token to sample in its sequence."""

    def select(self, mask: NDArray[np.bool_]) -> SamplingRows:
        """The rows where `mask` [m] holds."""
        return SamplingRows(*(getattr(self, field.name)[mask] for field in fields(self)))


class Batch:
    """Rows of tokens, block tables and sampling parameters."""

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_model_len: int,
        max_num_batched_tokens: int,
        num_blocks: int,
        block_size: int,
        vocab_size: int,
    ) -> None:
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._max_num_batched_tokens = max_num_batched_tokens
        self._num_blocks = num_blocks
        self._block_size = block_size
        rows = max_num_seqs
        # Memory is touched when it is used. One more column: the last token of a full sequence is never computed.
        self._token_ids: Int32 = np.zeros((rows, max_model_len + 1), np.int32)
        self._blocks: Int32 = np.zeros((rows, -(-max_model_len // block_size)), np.int32)
        self._active = np.zeros(rows, np.bool_)
        # 0 <= num_computed < num_tokens for active rows: the last token is always still to be computed.
        self._num_tokens: Int64 = np.zeros(rows, np.int64)
        self._num_computed: Int64 = np.zeros(rows, np.int64)
        self._num_row_blocks: Int64 = np.zeros(rows, np.int64)
        self._temperature = np.zeros(rows, np.float32)
        self._top_p = np.zeros(rows, np.float32)
        self._top_k: Int64 = np.zeros(rows, np.int64)
        self._min_p = np.zeros(rows, np.float32)
        self._seed = np.zeros(rows, np.uint64)

    def reset(self) -> None:
        """Ends every row."""
        self._active[:] = False

    def apply(self, plan: step_pb2.StepPlan) -> StepInputs | None:
        """Brings the batch to where the step leaves it, but for the tokens it samples (see `append`).

        Returns what is to be computed, or None when no row runs.

        Raises PlanError for a plan that contradicts the batch, which is then in no defined state.
        """
        self._end(self._rows(plan.ended_rows, "ended_rows"))
        for start in plan.started_rows:
            self._start(start)
        self._append_blocks(self._rows(plan.block_rows, "block_rows"), self._block_ids(plan.block_ids))
        return self._run(self._rows(plan.rows, "rows"), unpack_u32(plan.num_new_tokens).astype(np.int64))

    def append(self, rows: Int64, token_ids: Int64) -> None:
        """The tokens that `rows` sampled, both [m]."""
        self._token_ids[rows, self._num_tokens[rows]] = token_ids
        self._num_tokens[rows] += 1

    def sampling(self, rows: Int64) -> SamplingRows:
        """What the sampler needs of `rows` [m]."""
        return SamplingRows(
            temperature=self._temperature[rows],
            top_p=self._top_p[rows],
            top_k=self._top_k[rows],
            min_p=self._min_p[rows],
            seed=self._seed[rows],
            position=self._num_tokens[rows],
        )

    def _end(self, rows: Int64) -> None:
        _require_all(self._active[rows], rows, "ended, but not active")
        self._active[rows] = False

    def _start(self, start: step_pb2.RowStart) -> None:
        row = start.row
        tokens = unpack_u32(start.token_ids)
        blocks = self._block_ids(start.block_ids)
        if row >= len(self._active) or self._active[row]:
            raise PlanError(f"row {row} starts, but it is active or outside [0, {len(self._active)})")
        if not start.num_computed_tokens < len(tokens) <= self._max_model_len:
            raise PlanError(
                f"row {row} starts with {len(tokens)} tokens, {start.num_computed_tokens} of them computed; at least "
                f"one must be left to compute, and at most {self._max_model_len} fit"
            )
        if tokens.max() >= self._vocab_size:
            raise PlanError(f"row {row} starts with token {tokens.max()}; tokens are [0, {self._vocab_size})")
        if len(blocks) > self._blocks.shape[1] or len(blocks) * self._block_size < start.num_computed_tokens:
            raise PlanError(f"row {row} starts with {len(blocks)} blocks, {start.num_computed_tokens} tokens computed")
        self._active[row] = True
        self._token_ids[row, : len(tokens)] = tokens
        self._blocks[row, : len(blocks)] = blocks
        self._num_tokens[row] = len(tokens)
        self._num_computed[row] = start.num_computed_tokens
        self._num_row_blocks[row] = len(blocks)
        sampling = start.sampling
        self._temperature[row] = sampling.temperature
        self._top_p[row] = sampling.top_p
        self._top_k[row] = sampling.top_k
        self._min_p[row] = sampling.min_p
        self._seed[row] = sampling.seed

    def _append_blocks(self, rows: Int64, blocks: Int32) -> None:
        if len(rows) != len(blocks):
            raise PlanError(f"{len(rows)} block_rows, but {len(blocks)} block_ids")
        if not len(rows):
            return
        _require_all(self._active[rows], rows, "gets a block, but is not active")
        # A row may get several: the i-th of them goes i places behind its last block.
        order = np.argsort(rows, kind="stable")
        rows, blocks = rows[order], blocks[order]
        _, first, counts = np.unique(rows, return_index=True, return_counts=True)
        columns = self._num_row_blocks[rows] + np.arange(len(rows)) - np.repeat(first, counts)
        _require_all(columns < self._blocks.shape[1], rows, f"gets more than {self._blocks.shape[1]} blocks")
        self._blocks[rows, columns] = blocks
        self._num_row_blocks[rows[first]] += counts

    def _run(self, rows: Int64, num_new: Int64) -> StepInputs | None:
        if len(rows) != len(num_new):
            raise PlanError(f"{len(rows)} rows, but {len(num_new)} num_new_tokens")
        if not len(rows):
            return None
        if len(np.unique(rows)) != len(rows):
            raise PlanError(f"a row runs twice: {rows.tolist()}")
        starts = self._num_computed[rows]
        ends = starts + num_new
        _require_all(self._active[rows], rows, "runs, but is not active")
        _require_all((num_new > 0) & (ends <= self._num_tokens[rows]), rows, "runs tokens that it does not have")
        _require_all(ends <= self._num_row_blocks[rows] * self._block_size, rows, "has too few blocks for its tokens")
        _require_all(ends <= self._max_model_len, rows, f"exceeds {self._max_model_len} tokens")
        num_tokens = int(num_new.sum())
        if num_tokens > self._max_num_batched_tokens:
            raise PlanError(f"the step has {num_tokens} tokens; at most {self._max_num_batched_tokens} are allowed")

        cu_seqlens = np.zeros(len(rows) + 1, np.int32)
        np.cumsum(num_new, out=cu_seqlens[1:])
        positions = np.repeat(starts - cu_seqlens[:-1], num_new) + np.arange(num_tokens)
        token_rows = np.repeat(rows, num_new)
        blocks = self._blocks[token_rows, positions // self._block_size].astype(np.int64)
        slots = blocks * self._block_size + positions % self._block_size
        if len(np.unique(slots)) != num_tokens:
            raise PlanError(f"two of rows {rows.tolist()} write to the same cache slot")
        self._num_computed[rows] = ends
        samples = ends == self._num_tokens[rows]
        return StepInputs(
            token_ids=self._token_ids[token_rows, positions],
            positions=positions,
            slot_mapping=slots,
            cu_seqlens_q=cu_seqlens,
            seq_lens=ends.astype(np.int32),
            block_tables=self._blocks[rows, : int(self._num_row_blocks[rows].max())],
            sample_rows=rows[samples],
            sample_tokens=cu_seqlens[1:][samples].astype(np.int64) - 1,
        )

    def _rows(self, data: bytes, name: str) -> Int64:
        rows = unpack_u32(data).astype(np.int64)
        if len(rows) and rows.max() >= len(self._active):
            raise PlanError(f"{name} has row {rows.max()}; rows are [0, {len(self._active)})")
        return rows

    def _block_ids(self, data: bytes) -> Int32:
        blocks = unpack_u32(data)
        if len(blocks) and blocks.max() >= self._num_blocks:
            raise PlanError(f"the plan names block {blocks.max()}; blocks are [0, {self._num_blocks})")
        return blocks.astype(np.int32)


def _require_all(holds: NDArray[np.bool_], rows: Int64, problem: str) -> None:
    if not holds.all():
        raise PlanError(f"row {rows[~holds][0]} {problem}")
