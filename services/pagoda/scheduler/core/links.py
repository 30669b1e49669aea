"""How fast KV blocks travel between two lanes, learned from those that have arrived, and what that means for prompts.

Blocks leave a lane when the step begins whose plan pushes them, and travel to another one after the other, so they have
taken the time since then, or since those before them arrived. The first ones of all say nothing: they wait until there
is a connection. While nothing travels an estimate fades: sooner or later a prompt goes that way again, and tells
whether the link has recovered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from pagoda.scheduler.core.lane import Lane

Detour = Callable[[Lane, Lane, int], int]
"""(from, to, tokens) -> how many prompt tokens the one could compute while the keys and values of so many travel to the
other, behind all that is on its way there. 0 where nothing is known."""

# What plans, and the news of arrivals, take besides. Links on which blocks take no longer need no care.
LATENCY_S = 0.05
# News of so many tokens counts as much as all that was known before.
MEMORY_TOKENS = 1024
HALF_LIFE_S = 10.0


class Link:
    """From one lane to another."""

    __slots__ = ("_is_connected", "_num_travelling", "_seconds_per_token", "_since", "num_tokens")

    def __init__(self) -> None:
        self.num_tokens = 0
        """Pushed by plans, and not there yet."""
        self._num_travelling = 0
        """Of them, those that have left."""
        self._since = 0.0
        """When the first of them began to travel; where there are none, when the last had arrived."""
        self._seconds_per_token = 0.0
        self._is_connected = False
        """Something has arrived."""

    def seconds_per_token(self, now: float) -> float:
        if self._num_travelling:
            # Those that should have been there by now are news, too.
            return max(self._seconds_per_token, (now - self._since) / self._num_travelling)
        return float(self._seconds_per_token * 0.5 ** ((now - self._since) / HALF_LIFE_S))

    def note_left(self, now: float) -> None:
        """All that was pushed so far has left."""
        if self.num_tokens and not self._num_travelling:
            self._seconds_per_token = self.seconds_per_token(now)
            self._since = now + LATENCY_S
        self._num_travelling = self.num_tokens

    def note_arrived(self, num_tokens: int, now: float) -> None:
        if self._num_travelling:
            if self._is_connected:
                new = max(0.0, now - self._since) / num_tokens
                self._seconds_per_token += (new - self._seconds_per_token) * num_tokens / (num_tokens + MEMORY_TOKENS)
            self._is_connected = True
            self._since = max(self._since, now)
        self.forget(num_tokens)

    def note_failed(self, now: float) -> None:
        """A push has failed, perhaps because it took too long."""
        self._seconds_per_token = self.seconds_per_token(now)

    def forget(self, num_tokens: int) -> None:
        """Nobody waits for so many tokens any more."""
        self.num_tokens -= num_tokens
        self._num_travelling = max(0, self._num_travelling - num_tokens)


class Links:
    """Of all lanes of a cell."""

    def __init__(self) -> None:
        # By whom they are from, and to.
        self._links: defaultdict[str, defaultdict[str, Link]] = defaultdict(lambda: defaultdict(Link))

    def between(self, source: Lane, target: Lane) -> Link:
        return self._links[source.id][target.id]

    def note_step_began(self, source: Lane, now: float) -> None:
        for link in self._links.get(source.id, {}).values():
            link.note_left(now)

    def forget(self, lane: Lane) -> None:
        self._links.pop(lane.id, None)
        for links in self._links.values():
            links.pop(lane.id, None)

    def detour(self, now: float) -> Detour:
        """What holds now."""

        def detour(source: Lane, target: Lane, num_tokens: int) -> int:
            link = self._links[source.id][target.id]
            computing_s = source.step_time.seconds_per_prompt_token
            return int((link.num_tokens + num_tokens) * link.seconds_per_token(now) / computing_s) if computing_s else 0

        return detour
