"""How long a step of a lane takes, learned from how long its steps took.

    seconds = base + per_row * decoding rows + per_token * prompt tokens,    no coefficient below 0

Least squares over the steps so far, in which a step counts less the longer ago it was. It knows numbers of rows and
tokens only: what contexts cost, or the machine's other load, shows as a drift of the coefficients, and is followed.
"""

from __future__ import annotations

from math import inf, sqrt

# A step counts this much for the next one: about the last 50 matter.
MEMORY = 0.98
# Units of rows and tokens that make the columns of the least squares about equally large.
ROWS_UNIT = 64.0
TOKENS_UNIT = 512.0
# What the coefficients are held at, in squared units: where steps tell nothing (anymore), they stay as they are.
STIFFNESS = 1e-3
# A step that is further off than so many times what is usual is counted as if it were only that far off.
OUTLIER = 3.0
# "Usual" is at least this part of the step's time.
LEAST_DEVIATION = 0.02
# Nothing is usual before this many steps, and nothing is known about prompts before this many with prompt tokens.
FIRST_STEPS = 10
FIRST_CHUNKS = 4
# Sweeps of coordinate descent when a coefficient has to be held at 0; it goes on from there in the next step.
SWEEPS = 10


class StepTimeModel:
    """Of one lane."""

    def __init__(self) -> None:
        self._num_steps = 0
        self._num_chunks = 0
        self._deviation = 0.0
        """Usual distance of a step from its prediction, in seconds, where the prediction is well known."""
        # seconds = coefficients . x, with x = (1, rows / ROWS_UNIT, tokens / TOKENS_UNIT).
        self._coefficients = (0.0, 0.0, 0.0)
        # The normal equations, A coefficients = b: A = sum(x xT) by its upper triangle, b = sum(x seconds).
        self._a = (STIFFNESS, 0.0, 0.0, STIFFNESS, 0.0, STIFFNESS)
        self._b = (0.0, 0.0, 0.0)

    def predict(self, num_decoding: int, num_prompt_tokens: int) -> float:
        """Seconds; 0 before anything was observed."""
        base, per_row, per_token = self._coefficients
        return base + per_row * (num_decoding / ROWS_UNIT) + per_token * (num_prompt_tokens / TOKENS_UNIT)

    def chunk_budget(self, target_s: float, num_decoding: int, most: int, least: int) -> int:
        """How many prompt tokens the next step may compute next to `num_decoding` rows, to last `target_s` at most.

        It leaves room for the usual deviation. In [least, most], however short the target is; `most` as long as too
        few prompts were seen. least <= most.
        """
        if self._num_chunks < FIRST_CHUNKS:
            return most
        room = target_s - self._deviation - self.predict(num_decoding, 0)
        per_token = self._coefficients[2] / TOKENS_UNIT
        if room >= per_token * most:
            return most
        if room <= per_token * least:
            return least
        return int(room / per_token)

    def observe(self, num_decoding: int, num_prompt_tokens: int, seconds: float) -> None:
        """One step that was measured. seconds: that it took; 0: it was not measured after all."""
        if not 0 < seconds < inf:
            return
        self._num_steps += 1
        self._num_chunks += num_prompt_tokens > 0
        x1 = num_decoding / ROWS_UNIT
        x2 = num_prompt_tokens / TOKENS_UNIT
        a00, a01, a02, a11, a12, a22 = self._a

        # How much less is known about this step than about an average one: 1, or more where x is new.
        l1, l2, l12, d1, d2 = _factors(self._a)
        z1 = x1 - l1
        z2 = x2 - l2 - l12 * z1
        doubt = sqrt(1 + 1 / a00 + z1 * z1 / d1 + z2 * z2 / d2)

        predicted = self.predict(num_decoding, num_prompt_tokens)
        error = seconds - predicted
        if self._num_steps > FIRST_STEPS:
            bound = OUTLIER * doubt * max(self._deviation, LEAST_DEVIATION * predicted)
            error = max(-bound, min(bound, error))
        self._deviation += (abs(error) / doubt - self._deviation) * max(1 - MEMORY, 1 / self._num_steps)

        seconds = predicted + error
        held = (1 - MEMORY) * STIFFNESS
        c0, c1, c2 = self._coefficients
        b0, b1, b2 = self._b
        self._a = (
            MEMORY * a00 + 1 + held,
            MEMORY * a01 + x1,
            MEMORY * a02 + x2,
            MEMORY * a11 + x1 * x1 + held,
            MEMORY * a12 + x1 * x2,
            MEMORY * a22 + x2 * x2 + held,
        )
        self._b = (
            MEMORY * b0 + seconds + held * c0,
            MEMORY * b1 + x1 * seconds + held * c1,
            MEMORY * b2 + x2 * seconds + held * c2,
        )
        self._coefficients = self._solve()

    def _solve(self) -> tuple[float, float, float]:
        """The coefficients that fit best among those that are not negative."""
        l1, l2, l12, d1, d2 = _factors(self._a)
        a00, a01, a02, a11, a12, a22 = self._a
        b0, b1, b2 = self._b
        z1 = b1 - l1 * b0
        c2 = (b2 - l2 * b0 - l12 * z1) / d2
        c1 = z1 / d1 - l12 * c2
        c0 = b0 / a00 - l1 * c1 - l2 * c2
        if c0 >= 0 and c1 >= 0 and c2 >= 0:
            return c0, c1, c2
        c0, c1, c2 = self._coefficients
        for _ in range(SWEEPS):
            c0 = max(0.0, (b0 - a01 * c1 - a02 * c2) / a00)
            c1 = max(0.0, (b1 - a01 * c0 - a12 * c2) / a11)
            c2 = max(0.0, (b2 - a02 * c0 - a12 * c1) / a22)
        return c0, c1, c2


def _factors(a: tuple[float, float, float, float, float, float]) -> tuple[float, float, float, float, float]:
    """A = L D LT: (l10, l20, l21, d1, d2), with d0 = a00.

    A is at least STIFFNESS times the identity, so no d is below that; rounding takes off less, with as many rows and
    tokens as a step can have.
    """
    a00, a01, a02, a11, a12, a22 = a
    l1 = a01 / a00
    l2 = a02 / a00
    d1 = a11 - l1 * a01
    l12 = (a12 - l1 * a02) / d1
    d2 = a22 - l2 * a02 - l12 * l12 * d1
    return l1, l2, l12, d1, d2
