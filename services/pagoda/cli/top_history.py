"""The scheduler's states of the last minute or so, and what happened between them.

The scheduler counts and `pagoda top` divides: a rate is the difference of two counters over the difference of the
uptimes that came with them, so that neither the network nor this machine's clock is in it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from itertools import pairwise

from pagoda.v1.scheduler_pb2 import LaneState, SchedulerState

RECENT_S = 60.0

# For the sparklines, where the interval is long.
_FEWEST_STATES = 120


class History:
    """interval_s: how often a state will be added"""

    def __init__(self, interval_s: float) -> None:
        self.states: deque[SchedulerState] = deque(maxlen=max(_FEWEST_STATES, math.ceil(RECENT_S / interval_s) + 1))

    def add(self, state: SchedulerState) -> None:
        """A state of another scheduler than the last one's begins a new history."""
        if self.states and state.uptime_s <= self.states[-1].uptime_s:
            self.states.clear()
        self.states.append(state)

    @property
    def last(self) -> SchedulerState | None:
        return self.states[-1] if self.states else None

    @property
    def recent_s(self) -> float:
        """What `recent` covers: a minute, less where there is less, and one interval where that is more."""
        return self.states[-1].uptime_s - self._first_recent().uptime_s

    def rates(self, counter: str) -> list[float]:
        """How fast a counter of the cell grew from each state to the next, per second; oldest first."""
        return [
            (getattr(after, counter) - getattr(before, counter)) / (after.uptime_s - before.uptime_s)
            for before, after in pairwise(self.states)
        ]

    def rate(self, counter: str) -> float | None:
        """The latest of `rates`; None: there is only one state."""
        return rates[-1] if (rates := self.rates(counter)) else None

    def recent(self, counter: str) -> int:
        """How much a counter of the cell grew within `recent_s`."""
        return int(getattr(self.states[-1], counter) - getattr(self._first_recent(), counter))

    def values(self, value: Callable[[SchedulerState], float]) -> list[float | None]:
        return [value(state) for state in self.states]

    def lane_values(self, session_id: str, value: Callable[[LaneState], float | None]) -> list[float | None]:
        """`value` in each state, oldest first; None where the lane was not there."""
        lanes = [_lane(state, session_id) for state in self.states]
        return [None if lane is None else value(lane) for lane in lanes]

    def lane_rate(self, session_id: str, counter: Callable[[LaneState], float]) -> float | None:
        """How fast a counter of a lane grew between the last two states, per second; None: the lane was not there, or
        there is only one state."""
        if len(self.states) < 2:
            return None
        before, after = (_lane(self.states[position], session_id) for position in (-2, -1))
        if before is None or after is None:
            return None
        return (counter(after) - counter(before)) / (self.states[-1].uptime_s - self.states[-2].uptime_s)

    def _first_recent(self) -> SchedulerState:
        *earlier, last = self.states
        within = (state for state in earlier if state.uptime_s >= last.uptime_s - RECENT_S)
        return next(within, earlier[-1] if earlier else last)


def _lane(state: SchedulerState, session_id: str) -> LaneState | None:
    return next((lane for lane in state.lanes if lane.session_id == session_id), None)
