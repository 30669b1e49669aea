"""Prefill and decode executors: the same answers as from one executor, whatever moves between them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import openai
import pytest
from processes import poll
from stack_fixtures import Server, short_folder

from pagoda.rpc.channel import open_blocking_channel
from pagoda.v1 import common_pb2, scheduler_pb2, scheduler_pb2_grpc

WORDS = "river lamp stone cloud apple seven north glass piano ember".split()
# From one block to most of the context.
PROMPTS = [" ".join(WORDS[(i * j) % 10] for j in range(1, 4 + 90 * i)) for i in range(1, 9)]
NUM_TOKENS = 40
# With nothing cached, every prompt of these is computed by the prefill executors.
SPLIT = ("--max-local-prefill-tokens", "1")
POOLS = {
    "1 + 1, shared memory": ("--prefill-executors", "1", "--decode-executors", "1"),
    "2 + 2, TCP": ("--prefill-executors", "2", "--decode-executors", "2", "--transfer", "tcp"),
    "1 + 1, NIXL": pytest.param(
        ("--prefill-executors", "1", "--decode-executors", "1", "--transfer", "nixl"),
        marks=pytest.mark.skipif(find_spec("nixl") is None, reason="NIXL is not installed"),
    ),
    "1 + 1, small chunks": (
        *("--prefill-executors", "1", "--decode-executors", "1"),
        *("--max-num-seqs", "16", "--max-num-batched-tokens", "16"),
    ),
    "1 mixed + 1 decode": ("--executors", "1", "--decode-executors", "1"),
}


@contextmanager
def running(*flags: str) -> Iterator[Server]:
    folder = short_folder()
    server = Server(folder, *SPLIT, *flags)
    try:
        yield server.wait_until_ready()
        server.assert_idle()
    finally:
        server.process.close()
        shutil.rmtree(folder, ignore_errors=True)


async def answers(server: Server, temperature: float, *, at_once: bool = True) -> list[str]:
    """To all prompts, asked at the same time, or one after the other: others, of which nothing is cached."""
    async with openai.AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0) as client:

        async def ask(prompt: str) -> str:
            answer = await client.completions.create(
                model=server.model,
                prompt=prompt if at_once else f"Then {prompt}",
                max_tokens=NUM_TOKENS,
                temperature=temperature,
                seed=7,
                extra_body={"ignore_eos": True},
            )
            return answer.choices[0].text

        if at_once:
            return await asyncio.gather(*map(ask, PROMPTS))
        return [await ask(prompt) for prompt in PROMPTS]


def all_answers(server: Server) -> list[list[str]]:
    at_once = [asyncio.run(answers(server, temperature)) for temperature in (0.0, 0.9)]
    return [*at_once, asyncio.run(answers(server, 0.9, at_once=False))]


@pytest.fixture(scope="module")
def undisturbed() -> list[list[str]]:
    """The answers of one executor, greedy and drawn, at once and one after the other."""
    with running() as server:
        return all_answers(server)


@pytest.mark.parametrize("flags", POOLS.values(), ids=POOLS)
def test_the_answers_are_those_of_one_executor(undisturbed: list[list[str]], flags: tuple[str, ...]) -> None:
    with running(*flags) as server:
        assert all_answers(server) == undisturbed
        state = server.state()
        assert state.recoveries == state.moves_failed == 0
        if "--prefill-executors" in flags:
            # Asked at once, some find that the others have too much to do; one after the other, they do not.
            assert state.remote_prefills > len(PROMPTS)
            assert state.moves_done == state.remote_prefills


def set_role(server: Server, executor: str, role: common_pb2.ExecutorRole) -> None:
    with open_blocking_channel(server.services()["scheduler"]["address"]) as channel:
        stub = scheduler_pb2_grpc.SchedulerStub(channel)
        stub.SetRole(scheduler_pb2.SetRoleRequest(executor=executor, role=role), timeout=10)


def test_roles_change_and_executors_leave_under_streams(undisturbed: list[list[str]]) -> None:
    with running("--executors", "2") as server:

        async def disturb() -> list[str]:
            asking = asyncio.create_task(answers(server, 0.9))
            for role in (
                common_pb2.EXECUTOR_ROLE_PREFILL,
                common_pb2.EXECUTOR_ROLE_DECODE,
                common_pb2.EXECUTOR_ROLE_MIXED,
            ):
                await asyncio.to_thread(set_role, server, "executor-0", role)
                await asyncio.sleep(0)
            before = server.services()["executor-1"]
            # It hands its requests over, and the supervisor brings it back.
            os.kill(before["pid"], signal.SIGTERM)
            return await asking

        before = server.services()["executor-1"]["restarts"]
        assert asyncio.run(disturb()) == undisturbed[1]
        assert server.state().recoveries == 0
        poll(lambda: server.services()["executor-1"]["restarts"] > before, 20, "the executor that left is back")
        poll(lambda: len(server.state().lanes) == 2, 20, "it has joined again")
