"""Percentiles of a great many durations in little memory."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

_LOWEST, _HIGHEST = 1e-8, 1e6
_GROWTH = 1.01
_LOG_GROWTH = float(np.log(_GROWTH))
_NUM_BUCKETS = int(np.log(_HIGHEST / _LOWEST) / _LOG_GROWTH) + 2
# Durations that are counted in one go.
_BATCH = 1 << 14


class Histogram:
    """Counts of seconds in buckets that grow by 1 %, so that a percentile is off by 0.5 % at most.

    What is below 10 ns counts as nothing, what is above 11 days as that.
    """

    def __init__(self) -> None:
        self._counts: NDArray[np.int64] = np.zeros(_NUM_BUCKETS, np.int64)
        self._sum = 0.0
        self._max = 0.0
        self._uncounted = array("d")

    def add(self, seconds: float) -> None:
        self._uncounted.append(seconds)
        if len(self._uncounted) >= _BATCH:
            self._count()

    def add_all(self, seconds: NDArray[np.float64]) -> None:
        """seconds: [any]"""
        self._uncounted.frombytes(seconds.tobytes())
        if len(self._uncounted) >= _BATCH:
            self._count()

    def __len__(self) -> int:
        return int(self.counts.sum())

    @property
    def counts(self) -> NDArray[np.int64]:
        self._count()
        return self._counts

    @property
    def sum(self) -> float:
        self._count()
        return self._sum

    @property
    def max(self) -> float:
        self._count()
        return self._max

    @property
    def mean(self) -> float:
        return self.sum / len(self)

    def percentile(self, percent: float) -> float:
        """The middle of the bucket that holds it; there must be something to count."""
        below = np.cumsum(self.counts)
        rank = percent / 100 * (below[-1] - 1)
        bucket = int(np.searchsorted(below, rank, side="right"))
        middle = _LOWEST * _GROWTH ** (bucket + 0.5)
        return 0.0 if bucket == 0 else min(middle, self.max)

    def cdf(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(seconds, share of all that is not above) of the buckets that are not empty."""
        (buckets,) = np.nonzero(self.counts)
        seconds = _LOWEST * np.power(_GROWTH, buckets + 1.0, dtype=np.float64)
        return seconds, np.cumsum(self.counts)[buckets] / len(self)

    def _count(self) -> None:
        if not self._uncounted:
            return
        seconds = np.array(self._uncounted)
        self._uncounted = array("d")
        logs = np.log(np.maximum(seconds, _LOWEST) / _LOWEST) / _LOG_GROWTH
        self._counts += np.bincount(np.minimum(logs.astype(np.int64), _NUM_BUCKETS - 1), minlength=_NUM_BUCKETS)
        self._sum += float(seconds.sum())
        self._max = max(self._max, float(seconds.max()))
