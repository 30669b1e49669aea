"""Which running request is better off on another lane.

Those that decode where only prompts shall be computed, those whose lane is leaving, and, where a lane is short of
blocks, the one that would be preempted next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pagoda.scheduler.core.lane import Lane
from pagoda.scheduler.core.moves import MayMove
from pagoda.scheduler.core.request import Request


def proposals(lanes: Sequence[Lane], may_move: MayMove, blocks_ahead: int) -> Iterator[tuple[Request, Lane]]:
    """(who, where to). Each takes effect before the next is looked for.

    blocks_ahead: that stay free on a lane for each request that runs there
    """
    homes = [lane for lane in lanes if lane.may_decode]
    for source in lanes:
        for request in _restless(source):
            targets = [
                lane
                for lane in homes
                if may_move(source, lane) and lane.has_room_for(source.num_tokens(request.row), blocks_ahead)
            ]
            if targets:
                yield request, min(targets, key=lambda lane: (lane.num_running, -lane.pool.num_available))


def _restless(lane: Lane) -> list[Request]:
    num_running = lane.num_running
    if lane.may_decode and (num_running < 2 or lane.pool.num_available >= num_running):
        return []
    settled = [request for request in lane.requests if request.move is None]
    if lane.is_leaving:
        return settled
    decoding = [request for request in settled if lane.rows.decoding[request.row]]
    if not lane.may_decode:
        return decoding
    # One at a time: it leaves room for the others.
    return [max(decoding, key=lane.rank)] if decoding and len(settled) == num_running else []
