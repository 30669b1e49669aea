"""Which lane a waiting request goes to, and when it is better off waiting a little.

Lanes that only prefill hand a request on when its prompt is computed: it gets two lanes at once, so that its blocks can
travel while the prompt is being computed, and so that nothing is computed which then finds no room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pagoda.scheduler.core.draft import Draft
from pagoda.scheduler.core.lane import Lane, Prefix
from pagoda.scheduler.core.links import Detour
from pagoda.scheduler.core.moves import MayMove
from pagoda.scheduler.core.request import Request
from pagoda.scheduler.core.spec import ExecutorRole

# A lane that only decodes computes a prompt when those that prefill would have to compute this many times as many
# tokens before it is done. Found by simulation: fewer stall the rows that decode, more let prompts wait.
PATIENCE = 4
# A request goes on where its beginning is cached while that lane has no more than so many rows for each of the emptiest
# one, and a few: among few, one more makes no difference.
BOUND, SLACK = 1.25, 8


class Candidate:
    """A lane that might take requests in this step: at once into its draft, or, while it is busy, soon."""

    def __init__(self, lane: Lane, draft: Draft | None, blocks_ahead: int) -> None:
        """blocks_ahead: that stay free for each request that runs"""
        self.lane = lane
        self.num_free_rows = lane.num_free_rows
        self.num_reserved_blocks = blocks_ahead * (lane.num_running + len(lane.arriving))
        self.num_queued_tokens = lane.num_queued_tokens
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

    def can_receive(self, request: Request) -> bool:
        """Whether `request` could go on here when another lane has computed its prompt."""
        num_blocks = self.num_blocks_to_move(request) + self.num_reserved_blocks
        return self.num_free_rows > 0 and self.lane.can_allocate(num_blocks)

    def num_blocks_to_move(self, request: Request) -> int:
        return self.lane.num_blocks_to_move(len(request.token_ids))

    @property
    def num_rows(self) -> int:
        """In use, or kept for somebody."""
        return self.lane.spec.max_num_seqs - self.num_free_rows


class Offer(NamedTuple):
    """A lane would take a request."""

    candidate: Candidate
    prefix: Prefix
    num_uncached_tokens: int
    num_new_blocks: int
    draft: Draft | None
    """The step in which it can start; None: a later one."""
    target: Candidate | None = None
    """Where it goes on when its prompt is computed; None: where it is."""
    detour: int = 0
    """How many tokens the lane could compute until everything is there."""

    @property
    def num_tokens(self) -> int:
        """A lane computes what it has queued and then what it lacks of the request, which travels meanwhile."""
        return max(self.candidate.num_queued_tokens + self.num_uncached_tokens, self.detour)

    @property
    def cost(self) -> tuple[int, bool, int]:
        """Among equals one that can start now wins over a busy one, then the one with most blocks left."""
        return self.num_tokens, self.draft is None, -self.candidate.lane.pool.num_available

    def reserve(self, request: Request) -> None:
        """Counts `request` as the lane's, so that the next one sees it and cannot take its place."""
        self.candidate.num_free_rows -= 1
        self.candidate.num_queued_tokens += self.num_uncached_tokens
        if self.draft is None:
            self.candidate.num_reserved_blocks += self.num_new_blocks
        if self.target:
            self.target.num_free_rows -= 1
            if self.draft is None:
                self.target.num_reserved_blocks += self.target.num_blocks_to_move(request)


class Placement:
    """The lanes in the step that is being made."""

    def __init__(
        self, candidates: Sequence[Candidate], may_move: MayMove, detour: Detour, max_local_prefill_tokens: int
    ) -> None:
        """max_local_prefill_tokens: prompts, or what is not cached of them, that decoding lanes always compute"""
        candidates = [candidate for candidate in candidates if not candidate.lane.is_leaving]
        # Whoever there is must do.
        self._decoding = [candidate for candidate in candidates if candidate.lane.may_decode] or candidates
        # Each with those that can go on with what it has computed.
        self._prefilling: dict[Candidate, list[Candidate]] = {}
        for source in candidates:
            if source.lane.role is ExecutorRole.PREFILL:
                targets = [target for target in self._decoding if may_move(source.lane, target.lane)]
                if targets:
                    self._prefilling[source] = targets
        self._detour = detour
        self._max_local_prefill_tokens = max_local_prefill_tokens

    def choose(self, request: Request) -> Offer | None:
        """The best offer. None: no lane has room, and nobody behind `request` is asked."""
        local = _cheapest(request, self._decoding)
        if not self._prefilling or (local and local.num_uncached_tokens <= self._max_local_prefill_tokens):
            return local
        roomy = {candidate for candidate in self._decoding if candidate.can_receive(request)}
        sources = [source for source, targets in self._prefilling.items() if not roomy.isdisjoint(targets)]
        remote = _cheapest(request, sources)
        if remote:
            remote = self._to_home(request, remote, roomy)
        return local if local and _is_better(local, remote, sources) else remote

    def _to_home(self, request: Request, remote: Offer, roomy: set[Candidate]) -> Offer:
        """Where `request` goes on: blocks that are there need not be sent, and a chat's next turn finds all of them."""
        source = remote.candidate
        targets = [target for target in self._prefilling[source] if target in roomy]
        most_rows = BOUND * min(target.num_rows for target in targets) + SLACK

        def rank(target: Candidate) -> tuple[int, int, int, int]:
            num_cached = len(target.lane.find_prefix(request).shared)
            num_to_send = len(request.token_ids) - num_cached * target.lane.spec.block_size
            detour = self._detour(source.lane, target.lane, source.num_queued_tokens + num_to_send)
            return max(remote.num_tokens, detour), -num_cached, target.num_rows, -target.lane.pool.num_available

        ranks = {target: rank(target) for target in targets if target.num_rows <= most_rows}
        target = min(ranks, key=ranks.__getitem__)
        return remote._replace(target=target, detour=ranks[target][0])


def _is_better(local: Offer, remote: Offer | None, sources: Sequence[Candidate]) -> bool:
    """sources: lanes that might compute the prompt for another to go on; `remote` is of the best with room"""
    if local.candidate.lane.role is not ExecutorRole.DECODE:
        return remote is None or local.cost <= remote.cost
    if remote:
        return PATIENCE * local.num_tokens <= remote.num_tokens
    return any(PATIENCE * local.num_tokens <= source.num_queued_tokens for source in sources)


def _cheapest(request: Request, candidates: Sequence[Candidate]) -> Offer | None:
    offers = [offer for candidate in candidates if (offer := candidate.offer(request))]
    if len(offers) <= 1:
        return offers[0] if offers else None
    return min(offers, key=lambda offer: offer.cost)
