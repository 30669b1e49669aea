"""What has happened in a cell since its scheduler started."""

from __future__ import annotations

from dataclasses import dataclass


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
    remote_prefills: int = 0
    """Requests whose prompts were computed on one executor, to go on on another."""
    moves_begun: int = 0
    moves_done: int = 0
    moves_failed: int = 0
    """Given up, for whatever reason. moves_begun = moves_done + moves_failed + those on their way."""
    moved_blocks: int = 0
