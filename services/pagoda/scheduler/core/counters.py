"""What has happened in a cell since its scheduler started."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    recoveries_done: int = 0
    """Of them, those that have led to the next token."""
    recovery_s: float = 0.0
    """From the loss to that token."""
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
