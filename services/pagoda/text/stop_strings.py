"""Stop strings in streamed text: what may be shown now, and where the text ends.

Knows only text. One Knuth-Morris-Pratt automaton per stop string ("Fast pattern matching in strings", SIAM J.
Computing 6(2), 1977), so a character costs O(1) amortized per stop string, whatever the text and the strings.
"""

from __future__ import annotations

from collections.abc import Sequence

from pagoda.errors import InvalidArgumentError


class StopStringMatcher:
    """Cuts a stream of text at the first stop string.

    The stop string that *completes* first wins; if several complete with the same character, the one listed
    first does. That is vLLM's rule, and the only one under which the result cannot depend on how the text was
    cut into pushes.

    stop: non-empty strings; an empty sequence makes every push pass through
    include_stop: True keeps the matched stop string at the end of the emitted text; nothing is then ever held
        back, because no character will have to be taken back
    """

    def __init__(self, stop: Sequence[str], include_stop: bool = False) -> None:
        if any(not text for text in stop):
            raise InvalidArgumentError(
                "A stop string must not be empty: it would end every answer before its first character.",
                reason="EMPTY_STOP_STRING",
                param="stop",
            )
        self.matched: str | None = None
        self._include_stop = include_stop
        self._progress = [_Progress(text) for text in stop]
        # Without include_stop: the longest suffix of the text so far that begins some stop string.
        self._held = ""

    def push(self, text: str) -> str:
        """Take the next text and return what may be emitted now; "" once a stop string has matched."""
        if self.matched is not None:
            return ""
        if not self._progress:
            return text
        for position, character in enumerate(text):
            # Every automaton advances, also behind one that completes: none may miss a character.
            completed = [progress for progress in self._progress if progress.advance(character)]
            if completed:
                return self._cut(text[: position + 1], completed[0].pattern)
        if self._include_stop:
            return text
        seen = self._held + text
        emitted = len(seen) - max(progress.length for progress in self._progress)
        self._held = seen[emitted:]
        return seen[:emitted]

    def flush(self) -> str:
        """End the text: return what was held back for a stop string that did not come."""
        held, self._held = self._held, ""
        return held

    def _cut(self, text: str, stop: str) -> str:
        self.matched = stop
        if self._include_stop:
            return text
        # A completed stop string begins at or after the held text: what was emitted is never part of it.
        seen = self._held + text
        self._held = ""
        return seen[: len(seen) - len(stop)]


class _Progress:
    """How much of one stop string the end of the text spells: `pattern[:length]`, the longest such prefix."""

    __slots__ = ("_borders", "length", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.length = 0
        # _borders[n]: length of the longest proper prefix of pattern[:n+1] that is also its suffix
        self._borders = [0] * len(pattern)
        border = 0
        for end in range(1, len(pattern)):
            while border and pattern[end] != pattern[border]:
                border = self._borders[border - 1]
            if pattern[end] == pattern[border]:
                border += 1
            self._borders[end] = border

    def advance(self, character: str) -> bool:
        """Read one character; True when it completes the stop string."""
        length = self.length
        while length and self.pattern[length] != character:
            length = self._borders[length - 1]
        if self.pattern[length] == character:
            length += 1
        self.length = length
        return length == len(self.pattern)
