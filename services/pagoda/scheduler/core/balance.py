"""Which running request is better off on another lane.

Those that decode where only prompts shall be computed, those whose lane is leaving, where a lane is short of blocks the
one that would be preempted next, and some of the many that decode on one lane while another has few, because it has
just come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pagoda.scheduler.core.lane import Lane
from pagoda.scheduler.core.moves import MayMove
from pagoda.scheduler.core.request import Request

# Rows are evened out where one lane has so many times as many as another, and a few. It ends well before the other has
# as many, so that nobody moves back and forth.
BOUND, SLACK = 2, 16


def proposals(lanes: Sequence[Lane], may_move: MayMove, blocks_ahead: int) -> Iterator[tuple[Request, Lane]]:
    """(who, where to). Each takes effect before the next is looked for.

    blocks_ahead: that stay free on a lane for each request that runs there
    """
    homes = [lane for lane in lanes if lane.may_decode]
    for source in lanes:
        for request in _restless(source):
            targets = [lane for lane in homes if _can_move(request, source, lane, may_move, blocks_ahead)]
            if targets:
                yield request, min(targets, key=lambda lane: (lane.num_running, -lane.pool.num_available))
    if len(homes) > 1:
        fullest, emptiest = max(homes, key=_num_rows), min(homes, key=_num_rows)
        if _num_rows(fullest) >= BOUND * _num_rows(emptiest) + SLACK and not (emptiest.prompts or emptiest.arriving):
            for request in _newest(fullest):
                if _can_move(request, fullest, emptiest, may_move, blocks_ahead):
                    yield request, emptiest


def _can_move(request: Request, source: Lane, target: Lane, may_move: MayMove, blocks_ahead: int) -> bool:
    return may_move(source, target) and target.has_room_for(source.num_tokens(request.row), blocks_ahead)


def _num_rows(lane: Lane) -> int:
    return lane.num_running + len(lane.arriving)


def _restless(lane: Lane) -> list[Request]:
    num_running = lane.num_running
    if lane.may_decode and (num_running < 2 or lane.pool.num_available >= num_running):
        return []
    if lane.may_decode:
        # One at a time: it leaves room for the others.
        return [] if any(request.move for request in lane.requests) else _newest(lane)
    settled = [request for request in lane.requests if request.move is None]
    return settled if lane.is_leaving else [request for request in settled if lane.rows.decoding[request.row]]


def _newest(lane: Lane) -> list[Request]:
    """The one that would be preempted next, of those that decode and stay; it has most ahead of it."""
    decoding = [request for request in lane.requests if request.move is None and lane.rows.decoding[request.row]]
    return [max(decoding, key=lane.rank)] if decoding else []
