"""How many threads compute a step, on cores that also serve its tokens.

Knows times only, neither models nor plans.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# About what tokenizer, gateway and scheduler spend on a token until it has left: see tests/bench/README.md.
_SERVING_NS = 110_000
# Of what the last step has shown, in what the next one is expected to cost.
_NEWS = 0.3


class CoreShare:
    """Divides cores between a step and the serving of the tokens that it samples, in proportion to their work.

    A step's threads wait for each other dozens of times. One that shares its core with another process makes all of
    them wait, so a thread less is faster where that process has much to do: with models so small that they compute a
    token about as fast as it is served.

    num_cores: for both
    """

    def __init__(self, num_cores: int) -> None:
        self._num_cores = num_cores
        # Processor time per token of a step; None before the first one.
        self._computing_ns: float | None = None

    @contextmanager
    def step(self, num_tokens: int, num_rows: int) -> Iterator[None]:
        """Around the computing of `num_tokens` >= 1 tokens, after which `num_rows` rows sample one each."""
        torch.set_num_threads(self.num_threads(num_tokens, num_rows))
        began = time.process_time_ns()
        yield
        self.took(num_tokens, time.process_time_ns() - began)

    def num_threads(self, num_tokens: int, num_rows: int) -> int:
        """For such a step, in [1, num_cores]."""
        if self._computing_ns is None:
            return self._num_cores
        computing, serving = num_tokens * self._computing_ns, num_rows * _SERVING_NS
        return max(1, round(self._num_cores * computing / (computing + serving)))

    def took(self, num_tokens: int, cpu_ns: int) -> None:
        """A step of `num_tokens` tokens has taken `cpu_ns` of processor time, of all its threads together."""
        found = cpu_ns / num_tokens
        last = found if self._computing_ns is None else self._computing_ns
        self._computing_ns = last + _NEWS * (found - last)
