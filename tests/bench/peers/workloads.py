"""The loads, and what is measured of one run of each.

    W1     1 stream, 128 tokens in, 128 out, 3 requests in turn
    W2     8 streams, 128/128, 16 requests
    W3     32 streams, 256/128, 32 requests
    W4     8 streams, 32 requests of 1,024 shared and 64 own tokens, 64 out; nothing is cached at the start
    W4n    the sizes of W4, nothing shared
    W5     8 streams of 128/192; when each has had 32 tokens, a prompt of 4,096 tokens comes: `longest_gap_ms` is the
           longest that one of the streams waits until that prompt's first token
    W6     64 streams, 32/256: with a small model, what serving costs
    W8     8 streams of 128/1,024; when each has had 160 tokens, two prompts of 4,096 tokens come, one after the other:
           the 99th percentile of the gaps between a stream's tokens while they are computed, and of the same gaps of
           streams that were alone, just before and just after: a machine's speed moves
    W7     1 stream, 1,024/2: the time to the first token is the prompt's

Prompts are token ids, others in every run; decoding is greedy and never ends early.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from models import TEXT_TOKENS

from pagoda.bench.dataset import Prompt
from pagoda.bench.serving.answer import Answer
from pagoda.bench.serving.client import CompletionClient
from pagoda.bench.serving.connections import Connections
from pagoda.bench.serving.load import run_load
from pagoda.bench.serving.report import Run, make_report

TIMEOUT_S = 600.0
PARAMETERS = {"temperature": 0, "ignore_eos": True}

Figures = dict[str, Any]


@dataclass(frozen=True)
class Load:
    """Closed loop: as soon as a request ends, its stream sends the next."""

    num_streams: int
    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int
    num_shared_tokens: int = 0
    """In front of each prompt, beside its own."""
    intruder: int = 0
    """Tokens of a prompt that comes when every stream has had `intrudes_after` tokens; 0: none comes."""
    num_intruders: int = 1
    """So many of them, one after the other."""
    intrudes_after: int = 32

    def prompts(self, rng: Random) -> list[Prompt]:
        shared = _token_ids(rng, self.num_shared_tokens)
        return [
            Prompt(shared + _token_ids(rng, self.num_prompt_tokens), self.num_output_tokens)
            for _ in range(self.num_requests)
        ]


LOADS = {
    "W1": Load(1, 3, 128, 128),
    "W2": Load(8, 16, 128, 128),
    "W3": Load(32, 32, 256, 128),
    "W4": Load(8, 32, 64, 64, num_shared_tokens=1024),
    "W4n": Load(8, 32, 1088, 64),
    "W5": Load(8, 8, 128, 192, intruder=4096),
    "W6": Load(64, 64, 32, 256),
    "W7": Load(1, 4, 1024, 2),
    "W8": Load(8, 8, 128, 1024, intruder=4096, num_intruders=2, intrudes_after=160),
}
_INTRUDER_OUTPUT = 8


class WatchedAnswer(Answer):
    """Tells of every part that comes."""

    def __init__(self, on_part: Callable[[], None]) -> None:
        super().__init__(time.perf_counter())
        self._on_part = on_part

    def receive(self, status: int, data: bytes, now: float) -> None:
        super().receive(status, data, now)
        self._on_part()


async def run(url: str, model: str, load: Load, seed: str) -> Figures:
    """One run against the server at `url`."""
    connections = Connections(url)
    client = CompletionClient(connections, "/v1/completions", model, parameters=PARAMETERS, timeout_s=TIMEOUT_S)
    rng = Random(seed)
    prompts = load.prompts(rng)
    began, cpu_began = time.perf_counter(), time.process_time()
    if load.intruder:
        intruders = [_token_ids(rng, load.intruder) for _ in range(load.num_intruders)]
        before = await run_load(client, prompts, [0.0] * len(prompts), load.num_streams)
        prompts = load.prompts(rng)  # of the others, the KV cache knows
        began, cpu_began = time.perf_counter(), time.process_time()
        answers, late = await _run_with_intruders(client, prompts, intruders, load.intrudes_after)
    else:
        answers = await run_load(client, prompts, [0.0] * len(prompts), load.num_streams)
    found = Run(answers, time.perf_counter() - began, time.process_time() - cpu_began)
    more: Figures = {}
    if load.intruder:
        after = await run_load(client, load.prompts(rng), [0.0] * len(prompts), load.num_streams)
        more = _compare_gaps(answers, late, [before, after])
    connections.close()
    for answer, prompt in zip(answers, prompts, strict=True):
        if answer.is_ok and answer.num_output_tokens != prompt.num_output_tokens:
            answer.fail(f"{answer.num_output_tokens} tokens instead of {prompt.num_output_tokens}")
    return make_report(found, [50, 99], {}) | more


async def warm_up(url: str, model: str) -> str:
    """Four short requests at once; what went wrong, or ""."""
    connections = Connections(url)
    client = CompletionClient(connections, "/v1/completions", model, parameters=PARAMETERS, timeout_s=TIMEOUT_S)
    rng = Random("warm up")
    answers = await run_load(client, [Prompt(_token_ids(rng, 200), 8) for _ in range(4)], [0.0] * 4)
    connections.close()
    return next((answer.error for answer in answers if not answer.is_ok), "")


async def _run_with_intruders(
    client: CompletionClient, prompts: Sequence[Prompt], intruders: Sequence[list[int]], intrudes_after: int
) -> tuple[list[Answer], list[Answer]]:
    """The answers to the prompts, and those to the intruders."""
    is_time = asyncio.Event()

    def look() -> None:
        if all(len(answer.event_times) >= intrudes_after or answer.error for answer in answers):
            is_time.set()

    answers: list[Answer] = [WatchedAnswer(look) for _ in prompts]
    async with asyncio.TaskGroup() as tasks:
        for prompt, answer in zip(prompts, answers, strict=True):
            tasks.create_task(client.send(prompt, answer))
        async with asyncio.timeout(TIMEOUT_S):
            await is_time.wait()
        late = [await client.send(Prompt(intruder, _INTRUDER_OUTPUT)) for intruder in intruders]
    return answers, late


def _compare_gaps(answers: Sequence[Answer], late: Sequence[Answer], alone: Sequence[Sequence[Answer]]) -> Figures:
    """What the intruders did to the gaps between tokens.

    late: answers to the intruders
    alone: runs of as many prompts of this kind, while nobody intruded
    """
    if errors := [each.error for each in late if not each.is_ok]:
        return {"intruder_error": errors[0]}
    # A gap grows with what its sequence has in the KV cache, so it is compared with the one at the same place.
    places = [gaps_between(answer, late[0].started_at, late[-1].first_at) for answer in answers]
    disturbed, calm = _gaps_s(answers, places), [gap for each in alone for gap in _gaps_s(each, places)]
    return {
        "intruder_ttft_ms": statistics.median(each.ttft_s for each in late) * 1e3,
        "longest_gap_ms": max(disturbed, default=0.0) * 1e3,
        "p99_gap_ms": _percentile(disturbed, 99) * 1e3,
        "p99_alone_gap_ms": _percentile(calm, 99) * 1e3,
    }


def gaps_between(answer: Answer, begin: float, end: float) -> range:
    """Which of the gaps between two events lie in [begin, end], if only in part."""
    times = answer.event_times
    return range(max(bisect_right(times, begin) - 1, 0), min(bisect_left(times, end), len(times) - 1))


def _gaps_s(answers: Sequence[Answer], places: Sequence[range]) -> list[float]:
    return [
        answer.event_times[i + 1] - answer.event_times[i]
        for answer, place in zip(answers, places, strict=True)
        for i in place
        if i + 1 < len(answer.event_times)
    ]


def _percentile(values: Sequence[float], percent: int) -> float:
    """The smallest of the values that `percent` of them do not exceed; 0 of none."""
    return sorted(values)[-(-len(values) * percent // 100) - 1] if values else 0.0


def _token_ids(rng: Random, count: int) -> list[int]:
    return [rng.choice(TEXT_TOKENS) for _ in range(count)]
