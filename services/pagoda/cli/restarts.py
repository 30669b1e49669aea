"""When services that died are restarted, and when there is no point in it. Knows names and times, and no processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 30.0
# Whoever was ready for so long was well.
WELL_S = 60.0


class Restarts:
    """A service that dies is restarted, however often: after FIRST_PAUSE_S, then after twice as long each time, up to
    LONGEST_PAUSE_S, and from the first pause again once it has been well. Others are left alone: one executor of many
    that keeps dying costs its own share only.

    The exception is what has never worked. When every service of a kind has died and none of them was ever ready,
    another attempt would end the same way, and whoever waits had better hear of it at once.
    """

    def __init__(self, kinds: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        """kinds: of all services, by name"""
        self._kinds = kinds
        self._clock = clock
        self._kinds_once_ready: set[str] = set()
        self._ready_since: dict[str, float] = {}
        self._deaths = dict.fromkeys(kinds, 0)
        """In a row, each within WELL_S after the service was ready, if it ever was."""

    def note_ready(self, name: str) -> None:
        self._kinds_once_ready.add(self._kinds[name])
        self._ready_since[name] = self._clock()

    def pause_after_death(self, name: str) -> float | None:
        """Seconds until the restart of a service that has just died; None: there is no point in one."""
        since = self._ready_since.pop(name, None)
        was_well = since is not None and self._clock() - since >= WELL_S
        self._deaths[name] = 1 if was_well else self._deaths[name] + 1
        kind = self._kinds[name]
        peers = [peer for peer, its_kind in self._kinds.items() if its_kind == kind]
        if kind not in self._kinds_once_ready and all(self._deaths[peer] for peer in peers):
            return None
        # The exponent is bounded because floats are.
        return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self._deaths[name] - 1, 60)))
