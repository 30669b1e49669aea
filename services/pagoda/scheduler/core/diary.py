"""What became of a request, and when. Knows neither where it is told nor in which form.

A diary is kept for requests that somebody traces, and written to when a request changes its state: never per token.
"""

from __future__ import annotations

from dataclasses import dataclass

Detail = str | int


@dataclass(slots=True)
class Stage:
    """A stretch of a request's life. Times are on the core's clock."""

    name: str
    began_at: float
    details: dict[str, Detail]
    ended_at: float | None = None
    """None: it goes on."""


class Diary:
    """A request is in one state at a time: queued, prefill, decode, handover. Beside it may go on a transfer to another
    lane, and a recovery."""

    __slots__ = ("_beside", "_state", "stages")

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        """In the order in which they began."""
        self._state: Stage | None = None
        self._beside: dict[str, Stage] = {}

    def enter(self, state: str, now: float, **details: Detail) -> None:
        """The request is in `state` from now on; nothing if it was already, on the same executor."""
        last = self._state
        if last is not None:
            if last.name == state and last.details.get("executor") == details.get("executor"):
                return
            last.ended_at = now
        self._state = self._write(state, now, details)

    def begin(self, name: str, now: float, **details: Detail) -> None:
        """Something goes on beside the states; nothing if it does so already."""
        if name not in self._beside:
            self._beside[name] = self._write(name, now, details)

    def end(self, name: str, now: float, **details: Detail) -> None:
        """What `begin` began is over; nothing if it is already."""
        if stage := self._beside.pop(name, None):
            stage.ended_at = now
            stage.details.update(details)

    def close(self, now: float) -> None:
        """The request has ended."""
        for stage in self.stages:
            if stage.ended_at is None:
                stage.ended_at = now

    def _write(self, name: str, now: float, details: dict[str, Detail]) -> Stage:
        self.stages.append(Stage(name, now, details))
        return self.stages[-1]
