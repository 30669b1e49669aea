"""Registration, heartbeats, steps and joining again, against a scheduler played by the test."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest

from pagoda.errors import FailedPreconditionError
from pagoda.executor.pending import Done
from pagoda.executor.session import stay_registered
from pagoda.executor.step_thread import StepThread
from pagoda.v1 import scheduler_pb2, step_pb2

REGISTRATION = scheduler_pb2.ExecutorRegistration(name="e0", max_num_seqs=4)


class EchoSteps:
    """Answers every plan with its chunk rows; a plan with row 255 fails."""

    def __init__(self) -> None:
        self.resets = 0
        self.executed: list[int] = []

    def launch(self, plan: step_pb2.StepPlan) -> Done:
        if plan.chunk_rows == b"\xff\0\0\0":
            raise RuntimeError("no such kernel")
        self.executed.append(plan.step)
        return Done(step_pb2.StepResult(step=plan.step, rows=plan.chunk_rows))

    def reset(self) -> None:
        self.resets += 1


class Member:
    """An executor's session side, with what it told the health service."""

    def __init__(self, address: str, registration: scheduler_pb2.ExecutorRegistration) -> None:
        self.steps = EchoSteps()
        self.thread = StepThread()
        self.serving: list[bool] = []
        self.leaving = asyncio.Event()
        self.task = asyncio.create_task(
            stay_registered(address, lambda: registration, self.steps, self.thread, self._set_serving, self.leaving)
        )

    async def _set_serving(self, serving: bool) -> None:
        self.serving.append(serving)


@asynccontextmanager
async def member(
    address: str, registration: scheduler_pb2.ExecutorRegistration = REGISTRATION
) -> AsyncIterator[Member]:
    each = Member(address, registration)
    try:
        yield each
    finally:
        each.task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await each.task
        assert await each.thread.stop(timeout_s=5)


async def test_registers_beats_and_steps(make_scheduler: Callable[..., Any]) -> None:
    async with make_scheduler().running() as scheduler, member(scheduler.address) as executor:
        session, message = await scheduler.receive()
        assert message == step_pb2.ExecutorMessage(), "the first message is empty"
        assert await scheduler.registrations.get() == REGISTRATION
        # Two plans in flight, as a scheduler keeps them.
        for step in (1, 2):
            await scheduler.send(session, step_pb2.StepPlan(step=step, chunk_rows=bytes([step, 0, 0, 0])))
        for step in (1, 2):
            sender, message = await scheduler.receive()
            assert sender == session
            assert message.result.step == step
            assert message.result.rows == bytes([step, 0, 0, 0])
        for _ in range(3):
            assert await asyncio.wait_for(scheduler.heartbeats.get(), 5) == session
        assert executor.serving == [True]
        assert executor.steps.resets == 0


async def test_heartbeats_count_transfers(make_scheduler: Callable[..., Any]) -> None:
    description = scheduler_pb2.ExecutorRegistration(name="e0")
    description.transfers.sent.blocks = 3
    async with make_scheduler().running() as scheduler, member(scheduler.address, description):
        assert (await scheduler.registrations.get()).transfers.sent.blocks == 3
        description.transfers.sent.blocks = 5
        async with asyncio.timeout(5):
            while scheduler.transfers.sent.blocks != 5:
                await scheduler.heartbeats.get()


async def test_joins_again_when_the_scheduler_restarts(
    make_scheduler: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = make_scheduler()
    async with member(first.address) as executor:
        await asyncio.sleep(0.5)  # nobody is there yet
        async with first.running():
            session, _ = await first.receive()
            await first.send(session, step_pb2.StepPlan(step=1))
            await first.receive()
        await asyncio.sleep(0.5)
        async with make_scheduler().running() as second:
            other, message = await second.receive()
            assert other != session
            assert message == step_pb2.ExecutorMessage()
            # Steps count from 1 in each session, on an empty batch.
            await second.send(other, step_pb2.StepPlan(step=1))
            assert (await second.receive())[1].result.step == 1
            assert executor.steps.resets == 1
            assert executor.serving[-1] is True
            assert False in executor.serving
            # Counted before the second scheduler leaves, which is an outage of its own.
            outages = [record for record in caplog.records if "trying again" in record.message]
            assert len(outages) == 2, "one line per outage"


@pytest.mark.parametrize("code", [grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT])
async def test_a_refusal_is_final(make_scheduler: Callable[..., Any], code: grpc.StatusCode) -> None:
    scheduler = make_scheduler()
    scheduler.refusal = (code, "another model is served here")
    async with scheduler.running(), member(scheduler.address) as executor:
        with pytest.raises(FailedPreconditionError, match="another model is served here"):
            await asyncio.wait_for(executor.task, 5)
        assert scheduler.attempts == 1
        assert True not in executor.serving


async def test_a_failed_step_ends_it(make_scheduler: Callable[..., Any]) -> None:
    async with make_scheduler().running() as scheduler, member(scheduler.address) as executor:
        session, _ = await scheduler.receive()
        await scheduler.send(session, step_pb2.StepPlan(step=1, chunk_rows=b"\xff\0\0\0"))
        with pytest.raises(RuntimeError, match="no such kernel"):
            await asyncio.wait_for(executor.task, 5)
        assert executor.serving[-1] is False


async def test_a_lost_plan_costs_the_session_only(make_scheduler: Callable[..., Any]) -> None:
    async with make_scheduler().running() as scheduler, member(scheduler.address) as executor:
        session, _ = await scheduler.receive()
        await scheduler.send(session, step_pb2.StepPlan(step=2))
        other, _ = await scheduler.receive()
        assert other != session
        await scheduler.send(other, step_pb2.StepPlan(step=1))
        assert (await scheduler.receive())[1].result.step == 1
        assert executor.steps.executed == [1]


async def test_calls_run_between_steps(make_scheduler: Callable[..., Any]) -> None:
    async with make_scheduler().running() as scheduler, member(scheduler.address) as executor:
        session, _ = await scheduler.receive()
        calls = [executor.thread.call(lambda i=i: i) for i in range(20)]
        await scheduler.send(session, step_pb2.StepPlan(step=1))
        assert await asyncio.gather(*calls) == list(range(20))
        assert (await scheduler.receive())[1].result.step == 1
        with pytest.raises(ZeroDivisionError):
            await executor.thread.call(lambda: 1 // 0)


async def test_it_leaves_when_the_scheduler_lets_it_go(make_scheduler: Callable[..., Any]) -> None:
    async with make_scheduler().running() as scheduler, member(scheduler.address) as executor:
        session_id, _ = await scheduler.receive()
        executor.leaving.set()
        assert await asyncio.wait_for(scheduler.leaves.get(), 10) == session_id
        # Requests may still need it.
        await scheduler.send(session_id, step_pb2.StepPlan(step=1))
        _, message = await scheduler.receive()
        assert message.result.step == 1
        scheduler.let_go.set()
        await asyncio.wait_for(executor.task, 10)
        assert executor.serving == [True, False]


async def test_without_a_scheduler_it_leaves_at_once(make_scheduler: Callable[..., Any]) -> None:
    async with member(make_scheduler().address) as executor:
        executor.leaving.set()
        await asyncio.wait_for(executor.task, 10)
