"""Requests on their way from one lane to another, with their KV blocks.

A move begins with a reservation: blocks and a row of the target. The target's next plan grants the move the right to
write to those blocks; before that plan has come back, nothing is pushed. All the while the request goes on where it is,
and its lane's plans push what earlier ones have computed. When the steps in flight leave only its last token to
compute, its row is stopped and the next plan pushes the rest. With the last of those steps it leaves its row, and once
everything has arrived it starts on the target, which computes that token.

A push is no copy: blocks are read where they are, at any time until they have arrived. So the lane lends them, and
writes nothing else to them until the move has ended. When it has failed, some of them may still be read while they are
being overwritten; that ends in blocks of a move that nobody knows any more.

Whatever goes wrong before a request's row is stopped costs it nothing. After that it goes back to the queue and is
computed again. A push that comes late finds no right to write: the plan that gives a block to somebody else withdraws
the right first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

from pagoda.scheduler.core.counters import Counters
from pagoda.scheduler.core.lane import Arrival, Lane
from pagoda.scheduler.core.links import Links
from pagoda.scheduler.core.request import Request

MayMove = Callable[[Lane, Lane], bool]
"""Whether requests may move from the one to the other now."""

# After a push between two lanes has failed, nothing else is moved between them for so long.
PAUSE_S = 5.0


class Failure(StrEnum):
    """Why a move is given up, in metrics and traces; where a push has failed it is "push_" and the executor's word."""

    TIMEOUT = "timeout"
    """Not everything has arrived in time."""
    EXECUTOR_LOST = "executor_lost"
    """One of the two lanes is gone."""
    NO_ROOM = "no_room"
    """Requests that run on the target need its blocks."""
    OUTGROWN = "outgrown"
    """The request got more tokens on its way than there is room made for."""
    PREEMPTED = "preempted"
    ENDED = "ended"


class Move:
    """One request between two lanes."""

    __slots__ = (
        "arrival",
        "is_stopped",
        "least_tokens",
        "left_at",
        "num_arrived",
        "num_needed",
        "num_pushed",
        "request",
    )

    def __init__(self, request: Request, arrival: Arrival, least_tokens: int) -> None:
        """least_tokens: that the request has when it leaves its row"""
        self.request = request
        self.arrival = arrival
        self.least_tokens = least_tokens
        self.is_stopped = False
        """Its row gets the tokens of the steps in flight, and no others."""
        self.num_pushed = 0
        """Of the granted blocks, from the first."""
        self.num_arrived = 0
        self.num_needed = 0
        """How many must arrive; known when its row is stopped."""
        self.left_at: float | None = None
        """When it left its row."""

    @property
    def has_left(self) -> bool:
        return self.left_at is not None

    @property
    def has_arrived(self) -> bool:
        return self.has_left and self.num_arrived >= self.num_needed


class Moves:
    """All moves of a cell. Those who call it put requests that it returns back into the queue."""

    def __init__(self, counters: Counters, *, timeout_s: float, first_number: int = 1) -> None:
        """timeout_s: from the last push to the last arrival
        first_number: moves have numbers from here; executors must never have seen one of them with another meaning
        """
        self.links = Links()
        self._counters = counters
        self._timeout_s = timeout_s
        self._numbers = itertools.count(first_number)
        self._moves: dict[int, Move] = {}
        # (from, to): when the two may be tried again.
        self._paused: dict[tuple[str, str], float] = {}

    def __len__(self) -> int:
        return len(self._moves)

    def __iter__(self) -> Iterator[Move]:
        return iter(self._moves.values())

    def of(self, lane: Lane) -> list[Move]:
        """Those from `lane` and those to it."""
        return [move for move in self._moves.values() if lane in (move.arrival.source, move.arrival.target)]

    def may_move(self, now: float) -> MayMove:
        """What holds now."""
        paused = {lanes for lanes, until in self._paused.items() if until > now}

        def may_move(source: Lane, target: Lane) -> bool:
            return target.spec.receives and source is not target and (source.id, target.id) not in paused

        return may_move

    def begin(self, request: Request, target: Lane, now: float) -> None:
        """`request`, which has a row, will go on on `target`, which must have room for it."""
        source, row = request.lane, request.row
        assert source is not None
        assert request.move is None
        source.rows.flush(row)
        # The token that is being computed, or that follows the prompt, need not wait until everything has arrived.
        least_tokens = len(request.token_ids) + 1
        arrival = target.reserve(next(self._numbers), request, source)
        request.move = self._moves[arrival.number] = Move(request, arrival, least_tokens)
        self._counters.moves_begun += 1
        if request.diary:
            request.diary.begin("transfer", now, source=source.name, target=target.name)

    def advance(self, now: float) -> list[Request]:
        """Whatever can be pushed is in the next plans. Returns requests that have waited too long for an arrival."""
        stranded: list[Request] = []
        for move in list(self._moves.values()):
            if move.left_at is None:
                self._push(move, now)
            elif move.left_at + self._timeout_s <= now and not move.has_arrived:
                stranded += self._fail(move, Failure.TIMEOUT, now)
        return stranded

    def note_arrived(self, number: int, target: Lane, count: int, now: float) -> None:
        """`count` blocks of a move have arrived on `target` so far."""
        move = self._moves.get(number)
        if move and move.arrival.target is target:
            num_new = min(count, move.num_pushed) - move.num_arrived
            if num_new > 0:
                move.num_arrived += num_new
                self.links.between(move.arrival.source, target).note_arrived(num_new * target.spec.block_size, now)

    def note_failed(self, number: int, lane: Lane, word: str, now: float) -> list[Request]:
        """`lane` could not push, or what was pushed to it is of no use. Returns the request if it has no row any more.

        word: why not
        """
        move = self._moves.get(number)
        return (
            self._fail(move, f"push_{word}", now) if move and lane in (move.arrival.source, move.arrival.target) else []
        )

    def arrived(self) -> list[Move]:
        """Those whose requests can start on their targets."""
        return [move for move in self._moves.values() if move.has_arrived]

    def finish(self, move: Move, now: float) -> None:
        """The request has started on its target."""
        assert move.left_at is not None
        self._forget(move)
        self._counters.moves_done += 1
        self._counters.moved_blocks += move.num_needed
        self._counters.move_wait_s += now - move.left_at
        if diary := move.request.diary:
            diary.end("transfer", now, blocks=move.num_needed)
            diary.enter("decode", now, executor=move.arrival.target.name)

    def cancel(self, move: Move, reason: str, now: float) -> list[Request]:
        """The move is off. Returns the request if it has no row any more."""
        request, source = move.request, move.arrival.source
        self._give_up(move, reason)
        if request.diary:
            request.diary.end("transfer", now, failure=reason)
        if move.is_stopped and request.lane is source:
            # Nobody would run it.
            source.leave(request.row)
            return [request]
        return [request] if move.has_left else []

    def note_ended(self, move: Move) -> None:
        """The request has ended."""
        self._give_up(move, Failure.ENDED)

    def check_integrity(self, lanes: Sequence[Lane]) -> list[str]:
        """Broken invariants, as sentences."""
        violations = []
        for number, move in self._moves.items():
            source, target, request = move.arrival.source, move.arrival.target, move.request
            name = f"move {number} of request {request.key}"
            if request.move is not move:
                violations.append(f"{name} is not its request's")
            if move.has_left != (request.lane is None) or (request.lane not in (None, source)):
                violations.append(f"{name} is of a request that is elsewhere")
            if source not in lanes or target not in lanes:
                violations.append(f"{name} is between lanes that are gone")
            if target.arriving.get(number) is not move.arrival:
                violations.append(f"{name} is not expected where it goes")
        if sum(len(lane.arriving) for lane in lanes) != len(self._moves):
            violations.append("a lane expects a request that is not on its way")
        if any(lane.lent.keys() - self._moves.keys() for lane in lanes):
            violations.append("a lane lends blocks to nobody")
        return violations

    def _push(self, move: Move, now: float) -> None:
        arrival, request = move.arrival, move.request
        source, row = arrival.source, request.row
        if not arrival.is_granted:
            return
        rows = source.rows
        num_known = int(rows.num_known[row])
        if not move.is_stopped:
            if not (rows.decoding[row] and num_known >= move.least_tokens):
                self._push_up_to(move, int(rows.num_computed[row]) // source.spec.block_size, now)
                return
            if source.num_blocks_for(num_known) > arrival.num_blocks:
                # It went on for longer than there was room made for.
                self.cancel(move, Failure.OUTGROWN, now)
                return
            source.retire(row)
            move.is_stopped = True
            num_blocks = source.num_blocks_for(num_known - 1)
            self._push_up_to(move, num_blocks, now)
            move.num_needed = max(0, num_blocks - len(arrival.shared))
        if rows.num_tokens[row] == num_known:
            move.left_at = now
            source.leave(row)
            if request.diary:
                request.diary.enter("handover", now)

    def _push_up_to(self, move: Move, num_blocks: int, now: float) -> None:
        """The first `num_blocks` of the request's table."""
        arrival, source = move.arrival, move.arrival.source
        first = len(arrival.shared) + move.num_pushed
        last = min(num_blocks, arrival.num_blocks)
        if first < last:
            block_ids = source.rows.block_ids[move.request.row][first:last]
            source.lend(arrival, move.num_pushed, block_ids)
            move.num_pushed += last - first
            link = self.links.between(source, arrival.target)
            link.num_tokens += (last - first) * source.spec.block_size
            if not source.flights:
                link.note_left(now)

    def _fail(self, move: Move, reason: str, now: float) -> list[Request]:
        self._paused = {lanes: until for lanes, until in self._paused.items() if until > now}
        self._paused[move.arrival.source.id, move.arrival.target.id] = now + PAUSE_S
        self.links.between(move.arrival.source, move.arrival.target).note_failed(now)
        return self.cancel(move, reason, now)

    def _give_up(self, move: Move, reason: str) -> None:
        self._forget(move)
        move.arrival.target.withdraw(move.arrival)
        failures = self._counters.move_failures
        failures[reason] = failures.get(reason, 0) + 1

    def _forget(self, move: Move) -> None:
        arrival = move.arrival
        num_lost = (move.num_pushed - move.num_arrived) * arrival.source.spec.block_size
        self.links.between(arrival.source, arrival.target).forget(num_lost)
        move.request.move = None
        move.arrival.source.take_back(move.arrival)
        del self._moves[move.arrival.number]
