"""A scheduler service, and peers that speak to it through real gRPC and ZeroMQ as the real ones do."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import zmq
import zmq.asyncio
from google.protobuf.message import Message

from pagoda.rpc.arrays import pack_u32, pack_u64, unpack_u32, unpack_u64
from pagoda.rpc.channel import open_channel
from pagoda.scheduler import codec
from pagoda.scheduler.config import SchedulerOptions
from pagoda.scheduler.core.plan import BlockCopies, Grant, Push, RowStart, StepPlan
from pagoda.scheduler.core.request import Sampling
from pagoda.scheduler.core.simulated import Parcel, SimulatedExecutor
from pagoda.scheduler.engine import Engine
from pagoda.scheduler.server import running_scheduler
from pagoda.v1 import common_pb2, scheduler_pb2, scheduler_pb2_grpc, step_pb2


def decode_plan(data: bytes) -> StepPlan:
    message = step_pb2.StepPlan.FromString(data)
    started = [
        RowStart(
            row=start.row,
            token_ids=unpack_u32(start.token_ids).tolist(),
            num_computed_tokens=start.num_computed_tokens,
            block_ids=unpack_u32(start.block_ids).tolist(),
            sampling=Sampling(seed=start.sampling.seed),
        )
        for start in message.started_rows
    ]
    copies = {
        name: BlockCopies(unpack_u32(each.sources).tolist(), unpack_u32(each.targets).tolist())
        for name in ("offloads", "copies", "loads")
        for each in [getattr(message, name)]
    }
    return StepPlan(
        step=message.step,
        withdrawn=unpack_u64(message.withdrawn_grants).tolist(),
        grants=[Grant(grant.number, unpack_u32(grant.block_ids).tolist()) for grant in message.grants],
        pushes=[
            Push(push.number, "".join(push.endpoints), push.first_position, unpack_u32(push.block_ids).tolist())
            for push in message.pushes
        ],
        ended_rows=unpack_u32(message.ended_rows).tolist(),
        started_rows=started,
        block_rows=unpack_u32(message.block_rows).tolist(),
        block_positions=unpack_u32(message.block_positions).tolist(),
        block_ids=unpack_u32(message.block_ids).tolist(),
        chunk_rows=unpack_u32(message.chunk_rows).tolist(),
        chunk_num_tokens=unpack_u32(message.chunk_num_tokens).tolist(),
        **copies,
    )


def registration(name: str = "fake", **changes: Any) -> scheduler_pb2.ExecutorRegistration:
    message = scheduler_pb2.ExecutorRegistration(
        name=name,
        role=common_pb2.EXECUTOR_ROLE_MIXED,
        model=common_pb2.ModelInfo(
            fingerprint="f", model_type="llama", max_model_len=64, vocab_size=1000, eos_token_ids=[2], dtype="bfloat16"
        ),
        kv_layout=common_pb2.KvLayout(block_size=4, num_blocks=64),
        max_num_seqs=4,
        max_num_batched_tokens=32,
        transfer_endpoints=[name],
    )
    for field, value in changes.items():
        owner = message.model if field in common_pb2.ModelInfo.DESCRIPTOR.fields_by_name else message
        if isinstance(value, Message):
            getattr(owner, field).CopyFrom(value)
        else:
            setattr(owner, field, value)
    return message


class Peer:
    """The gRPC stream and the DEALER socket of a session."""

    def __init__(self, call: Any, session: scheduler_pb2.Session, heartbeat: Any) -> None:
        self.call = call
        self.session = session
        self.socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.ROUTING_ID, session.session_id.encode())
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(session.endpoint)
        self._heartbeat = heartbeat
        self.heartbeats = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.session.heartbeat_interval.ToMilliseconds() / 1000)
            await self.call.write(self._heartbeat)

    async def stop(self) -> None:
        """Gone without a word, as when the process is killed."""
        self.heartbeats.cancel()
        self.call.cancel()
        self.socket.close()


class FakeExecutor(Peer):
    """A simulated executor behind the wire, whose transfer endpoint is its name."""

    def __init__(
        self, call: Any, session: scheduler_pb2.Session, message: Any, pause_at: int, peers: dict[str, FakeExecutor]
    ) -> None:
        """peers: all executors, by their endpoints"""
        super().__init__(call, session, scheduler_pb2.RegisterExecutorRequest(heartbeat=scheduler_pb2.Heartbeat()))
        self._name = message.name
        self._peers = peers
        self.simulated = SimulatedExecutor(codec.decode_lane(message))
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.pause_at = pause_at
        """The plan, counted from 1, at which it pauses by itself."""
        self.plans: list[StepPlan] = []
        self.working = asyncio.create_task(self._work())

    async def _work(self) -> None:
        await self.socket.send(step_pb2.ExecutorMessage().SerializeToString())
        while True:
            self.plans.append(decode_plan(await self.socket.recv()))
            result = self.simulated.run(self.plans[-1])
            if len(self.plans) == self.pause_at:
                self.may_answer.clear()
            await self.may_answer.wait()
            answer = step_pb2.StepResult(
                step=result.step, rows=pack_u32(result.rows), token_ids=pack_u32(result.token_ids), forward_ns=1000
            )
            message = step_pb2.ExecutorMessage(result=answer)
            for parcel in self.simulated.outbox:
                if parcel.push.target in self._peers:
                    await self._peers[parcel.push.target].receive(parcel)
                else:
                    message.failed_pushes.add(number=parcel.push.number, reason="unreachable")
            self.simulated.outbox.clear()
            await self.socket.send(message.SerializeToString())

    async def receive(self, parcel: Parcel) -> None:
        if news := self.simulated.receive(parcel):
            number, count = news
            message = step_pb2.ExecutorMessage(arrived_grants=pack_u64([number]), arrived_counts=pack_u32([count]))
            await self.socket.send(message.SerializeToString())

    async def stop(self) -> None:
        if self._peers.get(self._name) is self:
            del self._peers[self._name]
        self.working.cancel()
        await super().stop()


class FakeTokenizer(Peer):
    """Sends requests by key and collects what comes back."""

    def __init__(self, call: Any, session: scheduler_pb2.Session) -> None:
        super().__init__(call, session, scheduler_pb2.RegisterTokenizerRequest(heartbeat=scheduler_pb2.Heartbeat()))
        self.tokens: defaultdict[int, list[int]] = defaultdict(list)
        self.finished: dict[int, step_pb2.FinishedRequest] = {}
        self.statuses: list[scheduler_pb2.CellStatus] = []
        self._news = asyncio.Event()
        self.tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._read_statuses())]

    async def send(self, *requests: step_pb2.NewRequest, aborts: Sequence[int] = ()) -> None:
        message = step_pb2.TokenizerMessage(requests=requests, aborts=pack_u64(aborts))
        await self.socket.send(message.SerializeToString())

    async def until(self, condition: Callable[[], Any]) -> None:
        """Waits for a message after which `condition` holds."""
        async with asyncio.timeout(10):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def _receive(self) -> None:
        while True:
            batch = step_pb2.TokenBatch.FromString(await self.socket.recv())
            token_ids = iter(unpack_u32(batch.token_ids).tolist())
            for key, count in zip(unpack_u64(batch.keys).tolist(), unpack_u32(batch.num_tokens).tolist(), strict=True):
                assert key not in self.finished
                self.tokens[key] += [next(token_ids) for _ in range(count)]
            for finished in batch.finished:
                assert finished.key not in self.finished, "a second end"
                self.finished[finished.key] = finished
            self._news.set()

    async def _read_statuses(self) -> None:
        while (response := await self.call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            self.statuses.append(response.status)
            self._news.set()

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await super().stop()


def new_request(key: int, token_ids: Sequence[int], num_prompt_tokens: int | None = None, **sampling: Any) -> Any:
    return step_pb2.NewRequest(
        key=key,
        request_id=f"request-{key}",
        token_ids=pack_u32(token_ids),
        num_prompt_tokens=len(token_ids) if num_prompt_tokens is None else num_prompt_tokens,
        sampling=common_pb2.SamplingParams(**({"seed": 0} | sampling)),
    )


class Service:
    """A running scheduler, and a client."""

    def __init__(
        self, engine: Engine, channel: grpc.aio.Channel, shut_down: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        self.shut_down = shut_down
        self.engine = engine
        self.stub = scheduler_pb2_grpc.SchedulerStub(channel)  # type: ignore[no-untyped-call]
        self.executors: dict[str, FakeExecutor] = {}
        """By their names: the latest of each, while it runs."""
        self._peers: list[Peer] = []

    async def register(self, message: Any) -> tuple[Any, scheduler_pb2.Session]:
        call = self.stub.RegisterExecutor()
        await call.write(scheduler_pb2.RegisterExecutorRequest(registration=message))
        return call, (await call.read()).session

    async def executor(self, name: str = "fake", *, pause_at: int = 0, **changes: Any) -> FakeExecutor:
        """pause_at: the plan, counted from 1, at which it pauses by itself"""
        message = registration(name, **changes)
        executor = self.executors[name] = FakeExecutor(*await self.register(message), message, pause_at, self.executors)
        self._peers.append(executor)
        await self.until(lambda: executor.session.session_id in self.engine.core.lanes)
        return executor

    async def tokenizer(self) -> FakeTokenizer:
        call = self.stub.RegisterTokenizer()
        hello = scheduler_pb2.TokenizerRegistration(name="fake")
        await call.write(scheduler_pb2.RegisterTokenizerRequest(registration=hello))
        tokenizer = FakeTokenizer(call, (await call.read()).session)
        self._peers.append(tokenizer)
        await tokenizer.send()
        return tokenizer

    async def state(self) -> scheduler_pb2.SchedulerState:
        """The state, after everything was found to be in order."""
        response: scheduler_pb2.GetStateResponse = await self.stub.GetState(
            scheduler_pb2.GetStateRequest(check_integrity=True)
        )
        assert response.violations == []
        return response.state

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        for peer in self._peers:
            await peer.stop()


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Starts a scheduler with the given options, and `tracer` if there is one."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> Service:
            return await stack.enter_async_context(_running(tmp_path, options))

        yield start


@asynccontextmanager
async def _running(tmp_path: Path, options: dict[str, Any]) -> AsyncIterator[Service]:
    listen = f"unix:{tmp_path}/scheduler.sock"
    async with open_channel(listen) as channel, AsyncExitStack() as scheduler:
        tracer = options.pop("tracer", None)
        running = running_scheduler(SchedulerOptions(listen=listen, **options), tracer)
        engine, _ = await scheduler.enter_async_context(running)
        service = Service(engine, channel, scheduler.aclose)
        try:
            yield service
        finally:
            await service.stop()


@pytest.fixture
async def service(start: Callable[..., Any]) -> Service:
    started: Service = await start()
    return started


@pytest.fixture
def request_of() -> Callable[..., Any]:
    return new_request


@pytest.fixture
def registration_of() -> Callable[..., Any]:
    return registration
