"""When requests are sent: at given times, and at most so many at once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from time import perf_counter

import numpy as np
from numpy.random import default_rng

from pagoda.bench.dataset import Prompt
from pagoda.bench.serving.answer import Answer
from pagoda.bench.serving.client import CompletionClient


def arrivals(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """Seconds after the start at which `count` requests come, ascending.

    rate: per second; the last one comes at count / rate exactly, so that runs with other seeds can be compared
    burstiness: shape of the gamma distribution of the gaps: 1 is a Poisson process, less comes in bursts, inf has equal
        gaps
    """
    if math.isinf(rate):
        return [0.0] * count
    gaps = np.ones(count) if math.isinf(burstiness) else default_rng(seed).gamma(burstiness, 1.0, count)
    times = np.cumsum(gaps)
    seconds: list[float] = (times * (count / rate / times[-1])).tolist()
    return seconds


async def run_load(
    client: CompletionClient,
    prompts: Sequence[Prompt],
    arrivals_s: Sequence[float],
    max_concurrency: int | None = None,
    on_end: Callable[[], object] = lambda: None,
) -> list[Answer]:
    """The answers, in the order of the prompts. on_end: is called once per answer"""
    loop = asyncio.get_running_loop()
    turn = asyncio.Semaphore(max_concurrency) if max_concurrency else nullcontext()
    began = loop.time()

    async def ask(prompt: Prompt) -> Answer:
        arrived_at = perf_counter()
        async with turn:
            answer = await client.send(prompt, queued_s=perf_counter() - arrived_at)
        on_end()
        return answer

    async with asyncio.TaskGroup() as tasks:
        asked = []
        for prompt, arrival_s in zip(prompts, arrivals_s, strict=True):
            if (wait_s := began + arrival_s - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            asked.append(tasks.create_task(ask(prompt)))
    return [task.result() for task in asked]
