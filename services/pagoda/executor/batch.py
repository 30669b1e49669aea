"""The persistent batch: what the executor keeps of its requests between steps.

A row belongs to one request from its start to its end. Plans bring differences only; this module applies them and
builds a step's inputs with a few array operations, whatever the number of rows. A plan that does not fit the batch
is a bug of the scheduler or of ours: it is refused with `PlanError`, never half understood.

Knows the ids of KV blocks, not what is in them: `block_copies` moves that.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from pagoda.executor.plan_arrays import (
    Int64,
    PlanError,
    read_indices,
    require_all,
    require_distinct,
    require_parallel,
)
from pagoda.v1 import step_pb2

Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class StepInputs:
    """One step as arrays: n rows, ascending; T tokens, row after row. Valid until the batch gets its next plan."""

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

    rows: Int64
    """[n]."""

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
        self._num_rows = rows = max_num_seqs
        self._max_row_blocks = -(-max_model_len // block_size)
        # Memory is touched when it is used. One more column: the last token of a full sequence is never computed.
        self._token_ids: Int32 = np.zeros((rows, max_model_len + 1), np.int32)
        self._blocks: Int32 = np.zeros((rows, self._max_row_blocks), np.int32)
        # Active rows have 0 <= num_computed < num_tokens: the last token is always still to be computed. The others
        # have no tokens.
        self._num_tokens: Int64 = np.zeros(rows, np.int64)
        self._num_computed: Int64 = np.zeros(rows, np.int64)
        self._num_row_blocks: Int64 = np.zeros(rows, np.int64)
        # How many tokens may be computed: what the row's blocks hold, at most max_model_len.
        self._room: Int64 = np.zeros(rows, np.int64)
        self._temperature = np.zeros(rows, np.float32)
        self._top_p = np.zeros(rows, np.float32)
        self._top_k: Int64 = np.zeros(rows, np.int64)
        self._min_p = np.zeros(rows, np.float32)
        self._seed = np.zeros(rows, np.uint64)
        # For the slots that a step writes: which of its tokens goes there. Leftovers in all others.
        self._writers: Int32 = np.zeros(num_blocks * block_size, np.int32)

    def reset(self) -> None:
        """Ends every row."""
        self._num_tokens[:] = 0
        self._num_computed[:] = 0

    def apply(self, plan: step_pb2.StepPlan) -> StepInputs | None:
        """Brings the batch to where the step leaves it, but for the tokens it samples (see `append`).

        Returns what is to be computed, or None when no row runs.

        Raises PlanError for a plan that contradicts the batch, which is then in no defined state.
        """
        if plan.ended_rows:
            self._end(plan)
        for start in plan.started_rows:
            self._start(start)
        if plan.block_rows or plan.block_positions or plan.block_ids:
            self._change_tables(plan)
        num_left = self._num_tokens - self._num_computed
        runs = num_left == 1
        if plan.chunk_rows or plan.chunk_num_tokens:
            num_new = self._add_chunks(plan, num_left, runs)
            rows = np.flatnonzero(num_new)
            return self._run(rows, num_new[rows])
        rows = np.flatnonzero(runs)
        return self._run(rows, np.ones(len(rows), np.int64)) if len(rows) else None

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

    def _end(self, plan: step_pb2.StepPlan) -> None:
        rows = read_indices(plan.ended_rows, "ended_rows", self._num_rows)
        require_distinct(rows, "ended_rows")
        require_all(self._num_tokens[rows] > 0, rows, "ends, but is not active")
        self._num_tokens[rows] = 0
        self._num_computed[rows] = 0

    def _start(self, start: step_pb2.RowStart) -> None:
        row, num_computed = start.row, start.num_computed_tokens
        tokens = read_indices(start.token_ids, "token_ids", self._vocab_size)
        blocks = read_indices(start.block_ids, "block_ids", self._num_blocks)
        if row >= self._num_rows or self._num_tokens[row]:
            raise PlanError(f"row {row} starts, but it is active or outside [0, {self._num_rows})")
        if not num_computed < len(tokens) <= self._max_model_len:
            raise PlanError(
                f"row {row} starts with {len(tokens)} tokens, {num_computed} of them computed; at least one must be "
                f"left to compute, and at most {self._max_model_len} fit"
            )
        if len(blocks) > self._max_row_blocks or len(blocks) * self._block_size < num_computed:
            raise PlanError(f"row {row} starts with {len(blocks)} blocks, {num_computed} tokens computed")
        self._token_ids[row, : len(tokens)] = tokens
        self._blocks[row, : len(blocks)] = blocks
        self._num_tokens[row] = len(tokens)
        self._num_computed[row] = num_computed
        self._num_row_blocks[row] = len(blocks)
        self._room[row] = min(len(blocks) * self._block_size, self._max_model_len)
        sampling = start.sampling
        self._temperature[row] = sampling.temperature
        self._top_p[row] = sampling.top_p
        self._top_k[row] = sampling.top_k
        self._min_p[row] = sampling.min_p
        self._seed[row] = sampling.seed

    def _change_tables(self, plan: step_pb2.StepPlan) -> None:
        rows = read_indices(plan.block_rows, "block_rows", self._num_rows)
        positions = read_indices(plan.block_positions, "block_positions", self._max_row_blocks)
        blocks = read_indices(plan.block_ids, "block_ids", self._num_blocks)
        require_parallel(block_rows=rows, block_positions=positions, block_ids=blocks)
        require_all(self._num_tokens[rows] > 0, rows, "gets a block, but is not active")
        # Where a row's table ends before a change is the maximum of its end before the plan and the places of its
        # earlier changes. All rows' ends lie on one line, on which those of a row come after those of lower rows.
        order = np.argsort(rows, kind="stable")
        sorted_rows = rows[order]
        origins = sorted_rows * (self._max_row_blocks + 1)
        places = origins + positions[order]
        ends = origins + self._num_row_blocks[sorted_rows]
        ends[1:] = np.maximum(ends[1:], np.maximum.accumulate(places)[:-1] + 1)
        require_all(places <= ends, sorted_rows, "gets a block beyond the end of its block table")
        self._blocks[rows, positions] = blocks  # of several for one place, the last stays
        np.maximum.at(self._num_row_blocks, rows, positions + 1)
        self._room[rows] = np.minimum(self._num_row_blocks[rows] * self._block_size, self._max_model_len)

    def _add_chunks(self, plan: step_pb2.StepPlan, num_left: Int64, runs: NDArray[np.bool_]) -> Int64:
        """How many tokens of each row are computed: one where it `runs` by itself, the plan's chunks elsewhere."""
        rows = read_indices(plan.chunk_rows, "chunk_rows", self._num_rows)
        num_tokens = read_indices(plan.chunk_num_tokens, "chunk_num_tokens", self._max_num_batched_tokens + 1)
        require_parallel(chunk_rows=rows, chunk_num_tokens=num_tokens)
        require_distinct(rows, "chunk_rows")
        left = num_left[rows]
        require_all(left > 0, rows, "runs a chunk, but is not active")
        require_all(left > 1, rows, "runs a chunk, but has one token left and runs by itself")
        require_all((num_tokens > 0) & (num_tokens <= left), rows, "runs a chunk of no tokens or more than it has left")
        num_new = runs.astype(np.int64)
        num_new[rows] = num_tokens
        return num_new

    def _run(self, rows: Int64, num_new: Int64) -> StepInputs:
        """rows: ascending; num_new: tokens of each that are computed now."""
        # Rows in use are mostly the first ones, and a slice of an array costs nothing.
        which = slice(len(rows)) if rows[-1] == len(rows) - 1 else rows
        starts = self._num_computed[which]
        ends = starts + num_new
        num_tokens = int(num_new.sum())
        if num_tokens > self._max_num_batched_tokens:
            raise PlanError(f"the step has {num_tokens} tokens; at most {self._max_num_batched_tokens} are allowed")
        fits = ends <= self._room[which]
        if not fits.all():
            require_all(fits | (ends > self._max_model_len), rows, "has too few blocks for its tokens")
            require_all(fits, rows, f"exceeds {self._max_model_len} tokens")

        if num_tokens == len(rows):  # one each, as in most steps
            cu_seqlens = np.arange(len(rows) + 1, dtype=np.int32)
            token_rows, positions = rows, ends - 1
        else:
            cu_seqlens = np.zeros(len(rows) + 1, np.int32)
            np.cumsum(num_new, out=cu_seqlens[1:])
            token_rows = np.repeat(rows, num_new)
            positions = np.repeat(starts - cu_seqlens[:-1], num_new) + np.arange(num_tokens)
        blocks = self._blocks[token_rows, positions // self._block_size].astype(np.int64)
        slots = blocks * self._block_size + positions % self._block_size
        self._require_own_slots(slots, token_rows)
        samples = ends == self._num_tokens[which]
        self._num_computed[which] = ends
        return StepInputs(
            token_ids=self._token_ids[token_rows, positions],
            positions=positions,
            slot_mapping=slots,
            cu_seqlens_q=cu_seqlens,
            seq_lens=ends.astype(np.int32),
            block_tables=self._blocks[which, : int(self._num_row_blocks[which].max())],
            rows=rows,
            sample_rows=rows[samples],
            sample_tokens=cu_seqlens[1:][samples].astype(np.int64) - 1,
        )

    def _require_own_slots(self, slots: Int64, token_rows: Int64) -> None:
        """No two tokens are stored in one slot; both are [T]."""
        tokens = np.arange(len(slots), dtype=np.int32)
        self._writers[slots] = tokens
        alone = self._writers[slots] == tokens
        if not alone.all():
            loser = np.flatnonzero(~alone)[0]
            winner = self._writers[slots[loser]]
            raise PlanError(
                f"rows {token_rows[loser]} and {token_rows[winner]} write to the same slot of block "
                f"{slots[loser] // self._block_size}"
            )
