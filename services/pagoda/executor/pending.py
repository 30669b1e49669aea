"""Steps that were launched, and what comes of them."""

from __future__ import annotations

from typing import Protocol

from pagoda.v1 import step_pb2


class Pending(Protocol):
    """A step that was launched. Steps are finished in the order of their launches."""

    @property
    def is_done(self) -> bool:
        """Whether it was computed when `launch` returned, so that nobody need wait for it."""
        ...

    def wait(self) -> None:
        """Returns when it is computed; in any thread. Raises what computing it has raised."""
        ...

    def finish(self) -> step_pb2.StepResult:
        """What it brought; waits for it."""
        ...


class Done:
    """A step that was computed at once."""

    is_done = True

    def __init__(self, result: step_pb2.StepResult) -> None:
        self._result = result

    def wait(self) -> None:
        pass

    def finish(self) -> step_pb2.StepResult:
        return self._result
