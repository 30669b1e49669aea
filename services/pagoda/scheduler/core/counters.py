"""What has happened in a cell since its scheduler started."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from enum import StrEnum

RECOVERY_BOUNDS_S = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0)


class Loss(StrEnum):
    """What happened to a request that had to be computed again, in metrics."""

    EXECUTOR = "executor"
    """Its executor was lost, and another one was there to go on with it."""
    EXECUTORS = "executors"
    """No other one was there for a while, or the one that it came to was lost, too."""
    BLOCKS = "blocks"
    """Its blocks were lost between two executors that are there."""


@dataclass(slots=True)
class Durations:
    """A histogram."""

    bounds_s: tuple[float, ...]
    """Ascending; each belongs to the bucket below it."""
    counts: list[int] = field(init=False)
    """Of each bucket; the last has no upper bound."""
    sum_s: float = 0.0
    longest_s: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds_s) + 1)

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds_s, seconds)] += 1
        self.sum_s += seconds
        self.longest_s = max(self.longest_s, seconds)


@dataclass(slots=True)
class Counters:
    """requests_admitted = requests_finished + requests_aborted + waiting + running."""

    requests_admitted: int = 0
    requests_finished: int = 0
    """Ended by stop, length or an error."""
    requests_aborted: int = 0
    requests_rejected: int = 0
    requests_expired: int = 0
    """Of those finished: their time was up."""
    preemptions: int = 0
    recoveries: int = 0
    recovery_times: dict[str, Durations] = field(
        default_factory=lambda: {loss.value: Durations(RECOVERY_BOUNDS_S) for loss in Loss}
    )
    """Of those that have led to the next token: from the loss to that token, by Loss."""
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    merged_blocks: int = 0
    """Blocks given back because another one has the same content."""
    copied_blocks: int = 0
    """Partly filled blocks in whose copy a request went on."""
    offloaded_blocks: int = 0
    loaded_blocks: int = 0
    local_prefills: int = 0
    """Prompts computed on the executor that goes on with them; those of preempted requests count again."""
    remote_prefills: int = 0
    """Requests whose prompts were computed on one executor, to go on on another."""
    moves_begun: int = 0
    moves_done: int = 0
    move_failures: dict[str, int] = field(default_factory=dict)
    """Given up, by reason. moves_begun = moves_done + moves_failed + those on their way."""
    moved_blocks: int = 0
    move_wait_s: float = 0.0
    """Of the moves done: from leaving one executor's batch to joining the other's."""

    @property
    def moves_failed(self) -> int:
        return sum(self.move_failures.values())
