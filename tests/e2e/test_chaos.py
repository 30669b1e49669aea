"""Streams go on, token by token as if nothing had happened, while processes die, hang and leave, and links break.

PAGODA_CHAOS_EVENTS=200 (`make chaos`) makes a long run of it, PAGODA_CHAOS_SEED another one.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
import time
from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import Any

import grpc
import pytest
from processes import poll
from split_cell import HEARTBEAT_TIMEOUT_S, SplitCell, can_sever, sever

from pagoda.rpc.channel import open_channel
from pagoda.rpc.status import from_rpc_error
from pagoda.v1 import common_pb2, inference_pb2, inference_pb2_grpc, scheduler_pb2

NUM_EVENTS = int(os.environ.get("PAGODA_CHAOS_EVENTS", "10"))
SEED = int(os.environ.get("PAGODA_CHAOS_SEED", "1"))
NUM_STREAMS = 32
NUM_REQUESTS = 48
# Tokens; the bundled model has 4,096.
LONGEST_PROMPT, LONGEST_ANSWER = 500, 150
FIRST_ORDINARY_TOKEN, VOCAB = 100, 1000
# A killed executor is back in about three seconds: most events come while another one has its effect.
LONGEST_PAUSE_S = 1.5
STREAM_TIMEOUT_S = 90.0
RETRY_S = 0.2

EVENTS = ("kill executor", "stop executor", "leave", "kill scheduler", "end scheduler", "stop scheduler", "sever")
WEIGHTS = (40, 20, 20, 5, 5, 5, 10)


def make_requests() -> list[inference_pb2.GenerateRequest]:
    rng = random.Random(SEED)
    requests = []
    for number in range(NUM_REQUESTS):
        ids = [rng.randrange(FIRST_ORDINARY_TOKEN, VOCAB) for _ in range(rng.randint(3, LONGEST_PROMPT))]
        requests.append(
            inference_pb2.GenerateRequest(
                token_ids=inference_pb2.TokenIds(ids=ids),
                sampling=common_pb2.SamplingParams(
                    max_tokens=rng.randint(20, LONGEST_ANSWER),
                    temperature=rng.choice([0.0, 0.9]),
                    seed=number,
                    ignore_eos=True,
                ),
            )
        )
    return requests


class Load:
    """Streams, each of which asks one request after the other."""

    def __init__(self, stub: Any, requests: list[inference_pb2.GenerateRequest]) -> None:
        self._stub = stub
        self._requests = requests
        self.num_answers = 0
        self.num_refused = 0
        self.num_tokens = 0
        self.longest_gap_s = 0.0

    async def ask(self, number: int) -> list[int]:
        """The tokens of a request, which must end well."""
        token_ids: list[int] = []
        last = time.monotonic()
        ends = 0
        async for answer in self._stub.Generate(self._requests[number], timeout=STREAM_TIMEOUT_S):
            token_ids += answer.token_ids
            self.num_tokens += len(answer.token_ids)
            now = time.monotonic()
            self.longest_gap_s = max(self.longest_gap_s, now - last)
            last = now
            ends += answer.finish_reason == common_pb2.FINISH_REASON_LENGTH
        assert ends == 1
        return token_ids

    async def keep_asking(self, expected: list[list[int]], stop: asyncio.Event, rng: random.Random) -> None:
        """Until `stop`, every answer must be the expected one."""
        while not stop.is_set():
            number = rng.randrange(len(self._requests))
            try:
                token_ids = await self.ask(number)
            except grpc.aio.AioRpcError as error:
                # Not accepted, because nobody could run it: that is for the client to try again.
                if from_rpc_error(error).reason != "NOT_READY":
                    raise
                self.num_refused += 1
                await asyncio.sleep(RETRY_S)
                continue
            assert token_ids == expected[number], f"request {number} has other tokens than undisturbed"
            self.num_answers += 1


class Recoveries:
    """How long requests that had lost their executor, or their blocks, waited for their next token."""

    def __init__(self) -> None:
        self._lives: list[scheduler_pb2.SchedulerState] = []

    def note(self, state: scheduler_pb2.SchedulerState | None) -> None:
        """The last state of a scheduler's life; None: nobody knows it."""
        if state is not None:
            self._lives.append(state)

    def describe(self, lost: str) -> str:
        lives = [state.recovery_times[lost] for state in self._lives]
        counts = [sum(bucket) for bucket in zip(*(each.counts for each in lives), strict=True)]
        if not any(counts):
            return "none"
        longest_s = max(each.longest_s for each in lives)
        bounds_s = [*lives[0].bounds_s, longest_s]

        def percentile(percent: int) -> float:
            """An upper bound."""
            bucket = bisect_left(list(accumulate(counts)), percent / 100 * sum(counts))
            return min(bounds_s[bucket], longest_s)

        return f"{sum(counts)}, p50 <= {percentile(50):.3g} s, p99 <= {percentile(99):.3g} s, longest {longest_s:.3f} s"


class Chaos:
    """What befalls a cell."""

    def __init__(self, cell: SplitCell, rng: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self.recoveries = Recoveries()
        self._cell = cell
        self._rng = rng
        self._weights = [
            0 if event == "sever" and not can_sever() else weight for event, weight in zip(EVENTS, WEIGHTS, strict=True)
        ]

    async def run(self, num_events: int) -> None:
        for _ in range(num_events):
            await asyncio.sleep(self._rng.uniform(0, LONGEST_PAUSE_S))
            (event,) = self._rng.choices(EVENTS, self._weights)
            self.counts[event] += 1
            await self._happen(event)

    async def _happen(self, event: str) -> None:
        cell, rng = self._cell, self._rng
        executor = rng.choice(sorted(cell.roles))
        match event:
            case "kill executor":
                cell.signal(executor, signal.SIGKILL)
            case "leave":
                cell.signal(executor, signal.SIGTERM)
            case "stop executor":
                await self._stop(executor, rng.choice([0.2, HEARTBEAT_TIMEOUT_S + 1]))
            case "kill scheduler" | "end scheduler":
                self.recoveries.note(await asyncio.to_thread(cell.state))
                cell.signal("scheduler", signal.SIGKILL if event == "kill scheduler" else signal.SIGTERM)
            case "stop scheduler":
                await self._stop("scheduler", rng.choice([0.2, HEARTBEAT_TIMEOUT_S + 1]))
            case "sever":
                await asyncio.to_thread(sever, [cell.ports[rng.choice(["scheduler", "executors", "tokenizers"])]])

    async def _stop(self, name: str, seconds: float) -> None:
        self._cell.signal(name, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self._cell.signal(name, signal.SIGCONT)


@pytest.mark.timeout(120 + 5 * NUM_EVENTS)
async def test_streams_go_on_whatever_happens(capsys: pytest.CaptureFixture[str]) -> None:
    with SplitCell(Path(tempfile.mkdtemp(prefix="pagoda-chaos-")), num_prefill=1, num_decode=2) as cell:
        await asyncio.to_thread(cell.wait_until_ready)
        async with open_channel(cell.tokenizer) as channel:
            load = Load(inference_pb2_grpc.InferenceStub(channel), make_requests())  # type: ignore[no-untyped-call]
            expected = await asyncio.gather(*map(load.ask, range(NUM_REQUESTS)))
            calm_gap_s, load.longest_gap_s = load.longest_gap_s, 0.0

            stop, rng = asyncio.Event(), random.Random(SEED)
            streams = [
                asyncio.create_task(load.keep_asking(expected, stop, random.Random(f"{SEED}-{i}")))
                for i in range(NUM_STREAMS)
            ]
            chaos = Chaos(cell, rng)
            events = asyncio.create_task(chaos.run(NUM_EVENTS))
            done, _ = await asyncio.wait({events, *streams}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            stop.set()
            await asyncio.gather(*streams)

        def idle() -> bool:
            state = cell.state()
            return (
                state is not None
                and {lane.name for lane in state.lanes} == cell.roles.keys()
                and not state.num_waiting
                and not any(lane.num_running or lane.num_referenced_blocks or lane.num_arriving for lane in state.lanes)
            )

        await asyncio.to_thread(poll, idle, 60, f"nothing is left running, and no block is lost; {cell.state()}")
        chaos.recoveries.note(cell.state())
        with capsys.disabled():
            print(
                f"\n{load.num_answers} answers, {load.num_tokens} tokens, {load.num_refused} refused; "
                f"{dict(chaos.counts)}, {cell.num_restarts} restarts; "
                f"longest gap {load.longest_gap_s:.2f} s, undisturbed {calm_gap_s:.2f} s\n"
                "recoveries, from the loss to the next token:\n"
                f"  executor lost, another one there: {chaos.recoveries.describe('executor')}\n"
                f"  no other one there, or lost, too: {chaos.recoveries.describe('executors')}\n"
                f"  blocks lost between two of them:  {chaos.recoveries.describe('blocks')}"
            )
