"""Which lane a waiting request goes to, and when it is better off waiting a little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pagoda.scheduler.core.draft import Draft
from pagoda.scheduler.core.lane import Lane, Prefix
from pagoda.scheduler.core.request import Request


class Candidate:
    """A lane that might take requests in this step: at once into its draft, or, while it is busy, soon."""

    def __init__(self, lane: Lane, draft: Draft | None, blocks_ahead: int) -> None:
        """blocks_ahead: that stay free for each request that runs"""
        self.lane = lane
        self.num_free_rows = lane.num_free_rows
        self.num_reserved_blocks = blocks_ahead * lane.num_running
        self.num_queued_tokens = lane.num_decoding + sum(lane.num_uncomputed_tokens(row) for row in lane.prompts)
        self._draft = draft

    def offer(self, request: Request) -> Offer | None:
        """None when there is no room for `request`."""
        if self.num_free_rows == 0 or (self._draft is not None and self._draft.budget == 0):
            return None
        prefix = self.lane.find_prefix(request)
        num_tokens = len(request.token_ids)
        num_new_blocks = self.lane.num_blocks_for(num_tokens) - len(prefix.shared)
        if num_new_blocks > self.lane.pool.num_available_besides(prefix.shared) - self.num_reserved_blocks:
            # Those who have left may have left enough.
            return self.offer(request) if self.lane.free_departed() else None
        num_uncached = num_tokens - prefix.num_tokens
        # When another row is computing most of what is left, the two would do the same work side by side.
        is_worth_waiting = 2 * prefix.num_expected_tokens >= num_uncached
        return Offer(self, prefix, num_uncached, num_new_blocks, None if is_worth_waiting else self._draft)


class Offer(NamedTuple):
    """A lane would take a request."""

    candidate: Candidate
    prefix: Prefix
    num_uncached_tokens: int
    num_new_blocks: int
    draft: Draft | None
    """The step in which it can start; None: a later one."""

    @property
    def cost(self) -> tuple[int, bool, int]:
        """A lane computes what it has queued and then what it lacks of the request. Among equals one that can start now
        wins over a busy one, then the one with most blocks left."""
        num_tokens = self.candidate.num_queued_tokens + self.num_uncached_tokens
        return num_tokens, self.draft is None, -self.candidate.lane.pool.num_available

    def reserve(self) -> None:
        """Counts the request as the lane's, so that the next one sees it and cannot take its place."""
        self.candidate.num_free_rows -= 1
        self.candidate.num_queued_tokens += self.num_uncached_tokens
        if self.draft is None:
            self.candidate.num_reserved_blocks += self.num_new_blocks


def choose(request: Request, candidates: Sequence[Candidate]) -> Offer | None:
    """The offer of least cost. None: no lane has room, and nobody behind `request` is asked."""
    offers = [offer for candidate in candidates if (offer := candidate.offer(request))]
    if len(offers) <= 1:
        return offers[0] if offers else None
    return min(offers, key=lambda offer: offer.cost)
