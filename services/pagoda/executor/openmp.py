"""How OpenMP's threads wait for each other. To be called before torch is imported, which loads OpenMP."""

from __future__ import annotations

import os


def configure_waiting() -> None:
    """Threads spin for a moment, then sleep; what the user's environment says wins.

    By default they spin on. As soon as any other process wants one of the cores, they then burn the time that the last
    of them needs: steps of 300 ms instead of 4. Asleep at once, they must be woken for each of the hundred parallel
    regions of a step, some 30 us each. Ten times as long a moment made a small model slower beside the processes that
    serve it. Only libgomp knows the second.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
