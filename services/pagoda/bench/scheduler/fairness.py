"""How evenly clients were served while they were waiting for service.

Service is counted as the fair policy counts it: prompt tokens that were computed, plus two for each generated token,
divided by the client's weight. Clients that ask for less than their share get less and are not wronged; so clients
are compared over the times in which all of those compared have requests that wait for their first row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pagoda.bench.scheduler.recorder import Recorder


@dataclass(frozen=True, slots=True)
class Fairness:
    shares: dict[str, float]
    """Of all service, by client, without regard to weights."""
    backlogged_shares: dict[str, float]
    """Of the service while all clients were backlogged; empty for no such time."""
    max_difference: float | None
    """Largest difference of two clients' service over any time in which both were backlogged; None: no such time."""
    jain_index: float | None
    """Of the service while all clients were backlogged: 1 = equal, 1 / clients = one has all."""
    backlogged_s: float
    """How long all clients were backlogged."""


def fairness(recorder: Recorder, weights: Mapping[str, float]) -> Fairness:
    """weights: by client id; 1 for those not named"""
    by_weight = np.array([weights.get(client, 1.0) for client in recorder.clients])
    timeline = recorder.timeline
    served = np.array(timeline.service) / by_weight
    backlogged: NDArray[np.bool_] = np.array(timeline.backlog) > 0
    gained, num_intervals = np.zeros(len(by_weight)), 0
    for first, last in _stretches(np.all(backlogged, axis=1)):
        gained += served[last] - served[first]
        num_intervals += last - first
    interval_s = timeline.times_s[1] - timeline.times_s[0] if len(timeline.times_s) > 1 else 0.0
    differences = [
        spread
        for one, other in combinations(range(len(by_weight)), 2)
        for spread in _spreads(served, backlogged, one, other)
    ]
    return Fairness(
        shares=_shares(recorder.clients, recorder.service),
        backlogged_shares=_shares(recorder.clients, gained * by_weight),
        max_difference=max(differences, default=None),
        jain_index=jain_index(gained) if gained.any() else None,
        backlogged_s=num_intervals * interval_s,
    )


def _shares(clients: Sequence[str], service: NDArray[np.float64]) -> dict[str, float]:
    total = service.sum()
    return {name: float(each / total) for name, each in zip(clients, service, strict=True)} if total else {}


def jain_index(values: Sequence[float] | NDArray[np.float64]) -> float:
    """(sum x)^2 / (n sum x^2), Jain et al. 1984."""
    array = np.asarray(values, np.float64)
    return float(array.sum() ** 2 / (len(array) * (array**2).sum()))


def _spreads(served: NDArray[np.float64], backlogged: NDArray[np.bool_], one: int, other: int) -> Iterator[float]:
    """Per stretch in which both are backlogged, how far the difference of their service moved within it."""
    difference = served[:, one] - served[:, other]
    for first, last in _stretches(backlogged[:, one] & backlogged[:, other]):
        yield float(np.ptp(difference[first : last + 1]))


def _stretches(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(first, last) of each run of at least two samples that are set."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return [(int(first), int(end) - 1) for first, end in zip(edges[::2], edges[1::2], strict=True) if end - first > 1]
