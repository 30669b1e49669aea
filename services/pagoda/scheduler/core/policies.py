"""The names and options of the policies in `queue`, checked without what runs them: whoever only checks does not wait
for numpy."""

from __future__ import annotations

import math

POLICIES = ("fcfs", "priority", "fair")


def check_policy(name: str, *, max_num_waiting: int, weights: str, tie_window_s: float) -> None:
    """Raises ValueError for a policy there is not, or for options that are not this policy's (see `make_policy`)."""
    if name not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {name!r}")
    if max_num_waiting < 1:
        raise ValueError(f"max_num_waiting must be at least 1, got {max_num_waiting}")
    if weights and name != "fair":
        raise ValueError(f"weights are for the policy fair, not for {name}")
    if not 0 <= tie_window_s < math.inf:
        raise ValueError(f"tie_window_s must be 0 or more seconds, got {tie_window_s}")
    if tie_window_s and name == "fair":
        raise ValueError("tie_window_s is for the policies fcfs and priority, not for fair")
    parse_weights(weights)


def parse_weights(text: str) -> dict[str, float]:
    """Client ids and their weights, from "alice=2,bob=0.5". Raises ValueError."""
    weights: dict[str, float] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        client_id, equals, value = item.rpartition("=")
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        if not equals or not 0 < weight < math.inf:
            raise ValueError(f"weights must be CLIENT=NUMBER, separated by commas, with numbers above 0; got {item!r}")
        if client_id in weights:
            raise ValueError(f"weights name client {client_id!r} twice")
        weights[client_id] = weight
    return weights
