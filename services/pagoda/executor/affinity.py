"""The processors that a process stays on. To be set before torch is imported, which counts them."""

from __future__ import annotations

import os


def parse_cpus(text: str) -> set[int]:
    """Of a list such as "0-3,8". Raises ValueError for what is none."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or int(last or first) < int(first):
            raise ValueError(f"{text!r} is no list of processors such as 0-3,8")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def stay_on(cpus: str) -> None:
    """This thread, and those that it starts. Raises ValueError for processors that this process may not use."""
    try:
        os.sched_setaffinity(0, parse_cpus(cpus))
    except (AttributeError, OSError) as error:
        raise ValueError(f"--cpus {cpus} is not possible here: {error}") from error
