"""An executor without a model: it applies plans exactly as the contract says and answers at once.

Each slot of its paged cache holds a digest of the sequence up to that token, computed from the digest in the slot
before it, which is found through the block table. So a token is a function of the sequence and the seed, and one
wrong, stale or foreign block makes it a wrong token, as with a real model. Whatever the contract forbids raises
AssertionError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagoda.scheduler.core.plan import RowStart, StepPlan, StepResult
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


class SimulatedExecutor:
    """The batch and the paged cache of one executor."""

    def __init__(self, spec: LaneSpec) -> None:
        self._spec = spec
        self._rows: dict[int, _Row] = {}
        self._slots: list[int | None] = [None] * (spec.num_blocks * spec.block_size)
        self._last_step = 0

    def run(self, plan: StepPlan) -> StepResult:
        assert plan.step == self._last_step + 1
        self._last_step = plan.step
        for row in plan.ended_rows:
            del self._rows[row]
        for start in plan.started_rows:
            self._start(start)
        for row, block_id in zip(plan.block_rows, plan.block_ids, strict=True):
            self._rows[row].block_ids.append(block_id)
        assert plan.rows, "a plan runs at least one row"
        assert len(set(plan.rows)) == len(plan.rows)
        assert sum(plan.num_new_tokens) <= self._spec.max_num_batched_tokens
        sampled: dict[int, int] = {}
        for row, num_new in zip(plan.rows, plan.num_new_tokens, strict=True):
            token_id = self._run_row(self._rows[row], num_new)
            if token_id is not None:
                sampled[row] = token_id
        return StepResult(plan.step, list(sampled), list(sampled.values()), forward_ns=1)

    def _start(self, start: RowStart) -> None:
        assert start.row not in self._rows, f"row {start.row} is taken"
        assert 0 <= start.row < self._spec.max_num_seqs
        assert start.num_computed_tokens < len(start.token_ids)
        self._rows[start.row] = _Row(
            list(start.token_ids), start.num_computed_tokens, list(start.block_ids), start.sampling.seed
        )

    def _run_row(self, row: _Row, num_new: int) -> int | None:
        assert 0 < num_new <= len(row.token_ids) - row.num_computed_tokens
        end = row.num_computed_tokens + num_new
        assert len(set(row.block_ids)) == len(row.block_ids)
        digest: int | None = _START
        for position in range(row.num_computed_tokens, end):
            if position > 0:
                digest = self._slots[self._slot(row, position - 1)]
            assert digest is not None, "a slot is read before it was written"
            self._slots[self._slot(row, position)] = _digest(digest, row.token_ids[position])
        row.num_computed_tokens = end
        if end < len(row.token_ids):
            return None
        digest = self._slots[self._slot(row, end - 1)]
        assert digest is not None
        row.token_ids.append(_sample(digest, row.seed, self._spec.model.vocab_size))
        return row.token_ids[-1]

    def _slot(self, row: _Row, position: int) -> int:
        block_size = self._spec.block_size
        return row.block_ids[position // block_size] * block_size + position % block_size


def _digest(digest: int, token_id: int) -> int:
    mixed = ((digest ^ token_id) * 0xBF58476D1CE4E5B9) & _MASK
    return mixed ^ (mixed >> 29)


def _sample(digest: int, seed: int, vocab_size: int) -> int:
    return (_digest(digest, seed & 0xFFFFFFFF) >> 11) % vocab_size
