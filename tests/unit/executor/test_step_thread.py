"""Steps that are launched ahead: a plan is launched while the one before is computed, and results keep their order."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from pagoda.executor.step_thread import StepThread
from pagoda.rpc.arrays import pack_u32, pack_u64, unpack_u64
from pagoda.v1 import step_pb2


class Slow:
    """A step that is computed when the test says so."""

    is_done = False

    def __init__(self, step: int) -> None:
        self.step = step
        self.computed = threading.Event()
        self.error: Exception | None = None

    def wait(self) -> None:
        assert self.computed.wait(10)
        if self.error:
            raise self.error

    def finish(self) -> step_pb2.StepResult:
        self.wait()
        return step_pb2.StepResult(step=self.step)


class SlowSteps:
    """Launches steps, and hands them to the test."""

    def __init__(self) -> None:
        self.launched: queue.SimpleQueue[Slow] = queue.SimpleQueue()
        self.resets = 0

    def launch(self, plan: step_pb2.StepPlan) -> Slow:
        step = Slow(plan.step)
        self.launched.put(step)
        return step

    def reset(self) -> None:
        self.resets += 1

    async def next_launched(self) -> Slow:
        return await asyncio.to_thread(self.launched.get, True, 10)


class Session:
    """A scheduler's side of one session, and the thread on the other side."""

    def __init__(self, thread: StepThread, steps: SlowSteps, router: zmq.asyncio.Socket, endpoint: str) -> None:
        self.thread = thread
        self.steps = steps
        self._router = router
        self._endpoint = endpoint

    async def attach(self, session_id: str) -> asyncio.Future[None]:
        ended = await self.thread.attach(self.steps, session_id, self._endpoint)
        assert (await self.receive()) == step_pb2.ExecutorMessage()
        return ended

    async def send(self, session_id: str, step: int) -> None:
        await self._router.send_multipart([session_id.encode(), step_pb2.StepPlan(step=step).SerializeToString()])

    def hang_up(self) -> None:
        self._router.close(linger=0)

    async def receive(self) -> step_pb2.ExecutorMessage:
        _, data = await asyncio.wait_for(self._router.recv_multipart(), 10)
        return step_pb2.ExecutorMessage.FromString(data)


@asynccontextmanager
async def session(folder: Path) -> AsyncIterator[Session]:
    context = zmq.asyncio.Context()
    router = context.socket(zmq.ROUTER)
    endpoint = f"ipc://{folder}/steps.zmq"
    router.bind(endpoint)
    thread = StepThread()
    try:
        yield Session(thread, SlowSteps(), router, endpoint)
    finally:
        assert await thread.stop(timeout_s=5)
        router.close(linger=0)
        context.term()


async def test_a_plan_is_launched_before_the_last_step_is_finished(tmp_path: Path) -> None:
    async with session(tmp_path) as it:
        await it.attach("a")
        await it.send("a", 1)
        first = await it.steps.next_launched()
        await it.send("a", 2)
        second = await it.steps.next_launched()  # nobody has finished the first one
        # The second one cannot overtake it.
        second.computed.set()
        assert await it.thread.call(lambda: "between") == "between"
        first.computed.set()
        assert [(await it.receive()).result.step for _ in range(2)] == [1, 2]


async def test_leaving_waits_for_what_is_computed(tmp_path: Path) -> None:
    async with session(tmp_path) as it:
        await it.attach("a")
        await it.send("a", 1)
        slow = await it.steps.next_launched()
        detached = asyncio.create_task(it.thread.detach())
        await asyncio.sleep(0)  # it has asked
        slow.computed.set()
        await detached
        # What the old session launched is nothing to the new one.
        await it.attach("b")
        assert it.steps.resets == 1
        await it.send("b", 1)
        (await it.steps.next_launched()).computed.set()
        assert (await it.receive()).result.step == 1


async def test_a_step_that_fails_late_ends_the_session(tmp_path: Path) -> None:
    async with session(tmp_path) as it:
        ended = await it.attach("a")
        for number in (1, 2):
            await it.send("a", number)
        first, second = await it.steps.next_launched(), await it.steps.next_launched()
        first.error = RuntimeError("an illegal memory access")
        first.computed.set()
        second.computed.set()
        with pytest.raises(RuntimeError, match="illegal memory access"):
            await asyncio.wait_for(ended, 10)


class Letters:
    """Orders whose news the test makes up, and which note what was asked of them."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self.applied: list[int] = []
        self.pushed: list[int] = []
        self.error: Exception | None = None
        """Of pushes."""
        self.resets = 0
        self._arrived: queue.SimpleQueue[int] = queue.SimpleQueue()

    @property
    def filenos(self) -> list[int]:
        return [self._read]

    def arrive(self, number: int) -> None:
        self._arrived.put(number)
        os.write(self._write, b"!")

    def apply(self, plan: step_pb2.StepPlan) -> None:
        self.applied.append(plan.step)

    def push(self, plan: step_pb2.StepPlan) -> None:
        if self.error:
            raise self.error
        self.pushed.append(plan.step)

    def add_news(self, message: step_pb2.ExecutorMessage) -> bool:
        if self._arrived.empty():
            return False
        os.read(self._read, 1)
        message.arrived_grants, message.arrived_counts = pack_u64([self._arrived.get()]), pack_u32([1])
        return True

    def reset(self) -> None:
        self.resets += 1

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


async def test_news_does_not_wait_for_a_step_that_nobody_asks_for(tmp_path: Path) -> None:
    async with session(tmp_path) as it:
        orders = it.thread.orders = Letters()
        await it.attach("a")
        orders.arrive(7)
        news = await it.receive()
        assert unpack_u64(news.arrived_grants).tolist() == [7]
        assert not news.HasField("result")


async def test_pushes_wait_for_the_steps_before_their_plan(tmp_path: Path) -> None:
    async with session(tmp_path) as it:
        orders = it.thread.orders = Letters()
        await it.attach("a")
        slow = []
        for number in (1, 2, 3):
            await it.send("a", number)
            slow.append(await it.steps.next_launched())
        # Grants need not wait.
        assert (orders.applied, orders.pushed) == ([1, 2, 3], [1])
        for number in (1, 2, 3):
            slow[number - 1].computed.set()
            assert (await it.receive()).result.step == number
            assert orders.pushed == [1, 2, 3][: number + 1]
        # Nothing is being computed: the next one's have waited long enough.
        await it.send("a", 4)
        slow.append(await it.steps.next_launched())
        assert orders.pushed == [1, 2, 3, 4]
        slow[3].computed.set()


async def test_a_late_push_that_cannot_be_ends_the_session(tmp_path: Path) -> None:
    async with session(tmp_path) as it:
        orders = it.thread.orders = Letters()
        ended = await it.attach("a")
        slow = []
        for number in (1, 2):
            await it.send("a", number)
            slow.append(await it.steps.next_launched())
        orders.error = ValueError("no such block")
        for each in slow:
            each.computed.set()
        with pytest.raises(ValueError, match="no such block"):
            await asyncio.wait_for(ended, 10)


async def test_orders_end_with_the_session(tmp_path: Path) -> None:
    async with session(tmp_path) as it:
        orders = it.thread.orders = Letters()
        await it.attach("a")
        await it.thread.detach()
        assert (orders.resets, it.steps.resets) == (1, 1)


async def test_a_broken_connection_ends_the_session(tmp_path: Path) -> None:
    async with session(tmp_path) as it:
        ended = await it.attach("a")
        it.hang_up()
        with pytest.raises(ConnectionError, match="the connection for steps was lost"):
            await asyncio.wait_for(ended, 10)
