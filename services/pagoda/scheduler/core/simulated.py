"""An executor without a model: it applies plans exactly as the contract says and answers at once.

Each slot of its paged cache holds a digest of the sequence up to that token, computed from the digest in the slot
before it, which is found through the block table. So a token is a function of the sequence and the seed, and one
wrong, stale or foreign block makes it a wrong token, as with a real model. Whatever the contract forbids raises
AssertionError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pagoda.scheduler.core.plan import BlockCopies, Grant, Push, RowStart, StepPlan, StepResult
from pagoda.scheduler.core.spec import LaneSpec

_START = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def expected_tokens(prompt: Sequence[int], seed: int, vocab_size: int, count: int) -> list[int]:
    """The first `count` tokens that every simulated executor generates after `prompt`."""
    digest = _START
    for token_id in prompt:
        digest = _digest(digest, token_id)
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(_sample(digest, seed, vocab_size))
        digest = _digest(digest, tokens[-1])
    return tokens


@dataclass(slots=True)
class _Row:
    token_ids: list[int]
    num_computed_tokens: int
    block_ids: list[int]
    seed: int

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens


class Parcel(NamedTuple):
    """A push on its way. Its blocks are read when it arrives, where they are."""

    push: Push
    cache: list[list[int | None]]
    """Of the executor that pushes."""


class SimulatedExecutor:
    """The batch, the paged cache and the host memory of one executor."""

    def __init__(self, spec: LaneSpec) -> None:
        self._spec = spec
        self._rows: dict[int, _Row] = {}
        # [num_blocks][block_size]: a digest, or None where nothing was written.
        self._cache = [_empty(spec.block_size) for _ in range(spec.num_blocks)]
        self._host = [_empty(spec.block_size) for _ in range(spec.num_host_blocks)]
        # Blocks that were granted and have not come; how many of each grant have.
        self._awaited: dict[int, dict[int, int]] = {}
        self._num_arrived: dict[int, int] = {}
        self.outbox: list[Parcel] = []
        """What plans have pushed; whoever drives this delivers it."""
        self._last_step = 0
        self.work: dict[int, int] = {}
        """Of the last step: rows that ran, and how many of their tokens."""

    def run(self, plan: StepPlan) -> StepResult:
        assert plan.step == self._last_step + 1
        self._last_step = plan.step
        for number in plan.withdrawn:
            del self._awaited[number], self._num_arrived[number]
        for grant in plan.grants:
            self._grant(grant)
        for row in plan.ended_rows:
            del self._rows[row]
        for push in plan.pushes:
            self.outbox.append(Parcel(push, self._cache))
        _copy(plan.offloads, self._cache, self._host)
        _copy(plan.copies, self._cache, self._cache)
        _copy(plan.loads, self._host, self._cache)
        for start in plan.started_rows:
            self._start(start)
        for row, position, block_id in zip(plan.block_rows, plan.block_positions, plan.block_ids, strict=True):
            table = self._rows[row].block_ids
            assert position <= len(table)
            table[position : position + 1] = [block_id]
        counts = {row: 1 for row, each in self._rows.items() if each.num_uncomputed_tokens == 1}
        for row, num_new in zip(plan.chunk_rows, plan.chunk_num_tokens, strict=True):
            assert row not in counts
            assert 0 < num_new <= self._rows[row].num_uncomputed_tokens
            counts[row] = num_new
        has_orders = plan.withdrawn or plan.grants or plan.pushes
        assert counts or has_orders, "a plan does something"
        self._check_grants()
        assert sum(counts.values()) <= self._spec.max_num_batched_tokens
        self.work = counts
        sampled: dict[int, int] = {}
        for row in sorted(counts):
            token_id = self._run_row(self._rows[row], counts[row])
            if token_id is not None:
                sampled[row] = token_id
        rows, token_ids = np.array(list(sampled), np.uint32), np.array(list(sampled.values()), np.uint32)
        return StepResult(plan.step, rows, token_ids)

    def receive(self, parcel: Parcel) -> tuple[int, int] | None:
        """A push arrives. (number of the grant, how many of its blocks have come), or None: the grant is over."""
        number, _, first_position, block_ids = parcel.push
        if number not in self._awaited:
            return None
        for position, block_id in enumerate(block_ids, first_position):
            self._cache[self._awaited[number].pop(position)] = list(parcel.cache[block_id])
        self._num_arrived[number] += len(block_ids)
        return number, self._num_arrived[number]

    def _grant(self, grant: Grant) -> None:
        assert grant.number not in self._awaited, f"grant {grant.number} is there already"
        self._awaited[grant.number] = dict(enumerate(grant.block_ids))
        self._num_arrived[grant.number] = 0

    def _check_grants(self) -> None:
        """Nobody else uses a block that pushes may still write to."""
        awaited = [block_id for blocks in self._awaited.values() for block_id in blocks.values()]
        assert len(set(awaited)) == len(awaited), "a block is granted twice"
        used = {block_id for row in self._rows.values() for block_id in row.block_ids}
        assert used.isdisjoint(awaited), "a row uses a block that others may write to"

    def _start(self, start: RowStart) -> None:
        assert start.row not in self._rows, f"row {start.row} is taken"
        assert 0 <= start.row < self._spec.max_num_seqs
        assert start.num_computed_tokens < len(start.token_ids)
        self._rows[start.row] = _Row(
            list(start.token_ids), start.num_computed_tokens, list(start.block_ids), start.sampling.seed
        )

    def _run_row(self, row: _Row, num_new: int) -> int | None:
        end = row.num_computed_tokens + num_new
        assert len(set(row.block_ids)) == len(row.block_ids)
        digest: int | None = _START
        for position in range(row.num_computed_tokens, end):
            if position > 0:
                digest = self._read(row, position - 1)
            assert digest is not None, "a slot is read before it was written"
            block, slot = divmod(position, self._spec.block_size)
            self._cache[row.block_ids[block]][slot] = _digest(digest, row.token_ids[position])
        row.num_computed_tokens = end
        if end < len(row.token_ids):
            return None
        digest = self._read(row, end - 1)
        assert digest is not None
        row.token_ids.append(_sample(digest, row.seed, self._spec.model.vocab_size))
        return row.token_ids[-1]

    def _read(self, row: _Row, position: int) -> int | None:
        block, slot = divmod(position, self._spec.block_size)
        return self._cache[row.block_ids[block]][slot]


def _empty(block_size: int) -> list[int | None]:
    return [None] * block_size


def _copy(copies: BlockCopies, source: list[list[int | None]], target: list[list[int | None]]) -> None:
    """All sources are read before a target is written."""
    contents = [list(source[block_id]) for block_id in copies.sources]
    assert len(set(copies.targets)) == len(copies.targets)
    for block_id, content in zip(copies.targets, contents, strict=True):
        target[block_id] = content


def _digest(digest: int, token_id: int) -> int:
    mixed = ((digest ^ token_id) * 0xBF58476D1CE4E5B9) & _MASK
    return mixed ^ (mixed >> 29)


def _sample(digest: int, seed: int, vocab_size: int) -> int:
    return (_digest(digest, seed & 0xFFFFFFFF) >> 11) % vocab_size
