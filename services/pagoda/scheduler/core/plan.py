"""One step of one executor: what it is told to do and what came of it. The fields are those of step.proto."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from pagoda.scheduler.core.request import Sampling


@dataclass(frozen=True, slots=True)
class RowStart:
    """A request takes a row."""

    row: int
    token_ids: array[int]
    num_computed_tokens: int
    block_ids: Sequence[int]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Differences against the executor's batch; applied in the order of the fields. Only `Draft` fills it in."""

    step: int
    ended_rows: list[int] = field(default_factory=list)
    started_rows: list[RowStart] = field(default_factory=list)
    # Parallel: block block_ids[i] is appended to the block table of row block_rows[i].
    block_rows: list[int] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)
    # Parallel: rows that run and how many of their tokens are computed.
    rows: list[int] = field(default_factory=list)
    num_new_tokens: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StepResult:
    """rows, token_ids: parallel; the rows that sampled, and their tokens."""

    step: int
    rows: Sequence[int]
    token_ids: Sequence[int]
    forward_ns: int = 0
