"""A stand-in for the scheduler: real gRPC and ZeroMQ, and tokens that a test chooses.

A request's completion is `reply(request)`; it comes one token per step. With `paused`, nothing comes until
`step()` is called.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import zmq
import zmq.asyncio

from pagoda.errors import PagodaError
from pagoda.rpc.arrays import pack_u32, pack_u64, unpack_u32, unpack_u64
from pagoda.rpc.server import ServiceServer
from pagoda.rpc.status import to_message
from pagoda.v1 import common_pb2, scheduler_pb2, scheduler_pb2_grpc, step_pb2
from pagoda.v1.common_pb2 import FinishReason
from pagoda.v1.step_pb2 import AdmittedRequest, FinishedRequest, NewRequest, TokenBatch

Reply = Callable[[NewRequest], list[int]]

MODEL = common_pb2.ModelInfo(fingerprint="0123456789abcdef", model_type="llama", max_model_len=256, vocab_size=400)


class ScriptedScheduler(scheduler_pb2_grpc.SchedulerServicer):
    """
    requests: every NewRequest, in order of arrival
    messages: every TokenizerMessage but the first, empty one
    aborted: keys, in order of arrival
    errors: keys that end with an error instead of tokens are decided by `refuse`
    """

    def __init__(self, reply: Reply, eos_token_id: int) -> None:
        self.reply = reply
        self.refuse: Callable[[NewRequest], PagodaError | None] = lambda request: None
        self.eos_token_id = eos_token_id
        self.ready = True
        self.model = MODEL
        self.paused = False
        self.state = scheduler_pb2.SchedulerState()
        self.registrations: list[str] = []
        self.requests: list[NewRequest] = []
        self.messages: list[step_pb2.TokenizerMessage] = []
        self.aborted: list[int] = []
        self.changed = asyncio.Condition()
        self._running: dict[int, tuple[bytes, NewRequest, list[int]]] = {}
        self._statuses: list[asyncio.Queue[None]] = []

    async def start(self, address: str = "127.0.0.1:0") -> None:
        self._server = ServiceServer(address, ["pagoda.v1.Scheduler"])
        scheduler_pb2_grpc.add_SchedulerServicer_to_server(self, self._server.grpc)  # type: ignore[no-untyped-call]
        await self._server.start()
        self.address = self._server.address
        self._bind()
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._run())]

    def _bind(self) -> None:
        self._socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._endpoint = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"

    async def drop_connections(self) -> None:
        """Loses the ZeroMQ connections, and what was sent or running; the gRPC streams stay."""
        receive = self._tasks.pop(0)
        receive.cancel()
        await asyncio.gather(receive, return_exceptions=True)
        self._running.clear()
        self._socket.close()
        self._bind()
        self._tasks.insert(0, asyncio.create_task(self._receive()))

    async def stop(self) -> None:
        """As if killed: requests are forgotten, nothing is said."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.close()
        self._running.clear()
        self._statuses.clear()
        await self._server.stop(0)

    async def set_ready(self, ready: bool) -> None:
        self.ready = ready
        for queue in self._statuses:
            queue.put_nowait(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until something that arrived makes the condition true."""
        async with self.changed, asyncio.timeout(5):
            await self.changed.wait_for(condition)

    def step(self, num_tokens: int = 1) -> None:
        """The next tokens of every running request, in one message per tokenizer."""
        batches: dict[bytes, TokenBatch] = {}
        for key, (identity, request, rest) in list(self._running.items()):
            batch = batches.setdefault(identity, TokenBatch())
            if error := self.refuse(request):
                finished = FinishedRequest(key=key, reason=FinishReason.FINISH_REASON_ERROR, error=to_message(error))
                batch.finished.append(finished)
                del self._running[key]
                continue
            tokens = rest[:num_tokens]
            del rest[:num_tokens]
            batch.keys += pack_u64([key])
            batch.num_tokens += pack_u32([len(tokens)])
            batch.token_ids += pack_u32(tokens)
            if not rest:
                batch.finished.append(self._finished(key, tokens))
                del self._running[key]
        for identity, batch in batches.items():
            self._socket.send_multipart([identity, batch.SerializeToString()])

    def _finished(self, key: int, tokens: list[int]) -> FinishedRequest:
        finished = FinishedRequest(key=key, reason=FinishReason.FINISH_REASON_LENGTH)
        if tokens and tokens[-1] == self.eos_token_id:
            finished.reason = FinishReason.FINISH_REASON_STOP
            finished.stop_token_id = self.eos_token_id
        return finished

    # The scheduler's side of the sockets.

    async def _receive(self) -> None:
        while True:
            identity, data = await self._socket.recv_multipart()
            message = step_pb2.TokenizerMessage.FromString(data)
            async with self.changed:
                if message.requests or message.aborts:
                    self.messages.append(message)
                for request in message.requests:
                    self._admit(identity, request)
                for key in unpack_u64(message.aborts).tolist():
                    self.aborted.append(key)
                    self._running.pop(key, None)
                self.changed.notify_all()

    def _admit(self, identity: bytes, request: NewRequest) -> None:
        self.requests.append(request)
        assert request.key not in self._running, "a key of an unfinished request is used again"
        num_emitted = len(request.token_ids) // 4 - request.num_prompt_tokens
        whole = self.reply(request)[: request.sampling.max_tokens]
        self._running[request.key] = (identity, request, whole[num_emitted:])
        admitted = AdmittedRequest(key=request.key, num_cached_tokens=min(3, request.num_prompt_tokens))
        self._socket.send_multipart([identity, TokenBatch(admitted=[admitted]).SerializeToString()])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(0.001)
            if not self.paused:
                self.step()

    async def RegisterTokenizer(
        self, requests: AsyncIterator[scheduler_pb2.RegisterTokenizerRequest], context: Any
    ) -> AsyncIterator[scheduler_pb2.RegisterTokenizerResponse]:
        first = await anext(requests)
        async with self.changed:
            self.registrations.append(first.registration.name)
            self.changed.notify_all()
        session = scheduler_pb2.Session(session_id=f"tokenizer-{len(self.registrations)}", endpoint=self._endpoint)
        session.heartbeat_interval.FromMilliseconds(50)
        yield scheduler_pb2.RegisterTokenizerResponse(session=session)
        changes: asyncio.Queue[None] = asyncio.Queue()
        self._statuses.append(changes)
        while True:
            status = scheduler_pb2.CellStatus(ready=self.ready, model=self.model)
            yield scheduler_pb2.RegisterTokenizerResponse(status=status)
            await changes.get()

    async def GetState(self, request: scheduler_pb2.GetStateRequest, context: Any) -> scheduler_pb2.GetStateResponse:
        return scheduler_pb2.GetStateResponse(state=self.state)


def prompt_of(request: NewRequest) -> list[int]:
    """The prompt's token ids."""
    ids: list[int] = unpack_u32(request.token_ids).tolist()
    return ids[: request.num_prompt_tokens]
