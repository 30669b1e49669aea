"""How many prompt tokens the steps of a lane may compute, from how long its last steps took.

A prompt token costs what it cost in the last steps that computed about as many: what such a step took longer than one
that only decodes, divided by its tokens. Whatever else makes a difference (contexts, which make each chunk of a long
prompt cost more than the one before; the number of rows; what else the machine does) is followed within three steps,
and nothing has to be known of it.
"""

from __future__ import annotations

from collections import deque
from statistics import median

# Medians are over so many steps: one or two that are slow for once do not count.
RECENT = 5
# What a step with so many times the prompt tokens of the last ones would take is not known.
GROWTH = 2
# Of the target, for steps that take longer than the median.
RESERVE = 0.05
# Part of the time of a step with prompts that is theirs at least. Reading the weights may hide the first few of their
# tokens, and what decoding takes is out of date when rows came or went since the last step without prompts.
LEAST_SHARE = 0.25


class StepTimes:
    """Of one lane."""

    def __init__(self) -> None:
        self._decode_s: deque[float] = deque(maxlen=RECENT)
        """Of steps without prompts."""
        self._chunks: deque[tuple[int, float]] = deque(maxlen=RECENT)
        """(prompt tokens, seconds) of steps that used at least half of their budget, or missed the target. Others say
        little: with few tokens, other things take the time."""
        # The last ones.
        self._target_s = 0.0
        self._budget = 0

    def chunk_budget(self, target_s: float, most: int, least: int) -> int:
        """How many prompt tokens the next step may compute to last `target_s` at most.

        In [least, most], however short the target is: `least` before prompts were seen, and at most GROWTH times as
        many as in the last steps. least <= most.
        """
        self._target_s = target_s
        self._budget = max(least, min(most, self._within(target_s)))
        return self._budget

    def observe(self, num_prompt_tokens: int, seconds: float) -> None:
        """A step has come back. seconds: 0 where nobody measured"""
        if not num_prompt_tokens:
            self._decode_s.append(seconds)
        elif 2 * num_prompt_tokens >= self._budget or seconds > self._target_s:
            self._chunks.append((num_prompt_tokens, seconds))

    @property
    def seconds_per_prompt_token(self) -> float:
        """0 before prompts were seen."""
        if not self._chunks:
            return 0.0
        decode_s = self._seconds_to_decode
        return median(max(took - decode_s, LEAST_SHARE * took) / num_tokens for num_tokens, took in self._chunks)

    @property
    def _seconds_to_decode(self) -> float:
        return median(self._decode_s) if len(self._decode_s) == RECENT else 0.0

    def _within(self, seconds: float) -> int:
        if not self._chunks:
            return 0
        known = GROWTH * max(num_tokens for num_tokens, _ in self._chunks)
        room = (1 - RESERVE) * seconds - self._seconds_to_decode
        if room <= 0:
            return 0
        per_token = self.seconds_per_prompt_token
        if room >= per_token * known:
            return known
        return int(room / per_token)
