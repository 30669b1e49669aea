"""`pagoda.v1.Scheduler`: protobuf <-> domain, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration

from pagoda.errors import InvalidArgumentError, UnimplementedError
from pagoda.scheduler import codec
from pagoda.scheduler.config import SchedulerOptions
from pagoda.scheduler.core.spec import ExecutorRole
from pagoda.scheduler.engine import Engine
from pagoda.scheduler.sessions import ExecutorSession
from pagoda.scheduler.state import MAX_BLOCK_MAP_CELLS, describe
from pagoda.v1 import kv_events_pb2, scheduler_pb2_grpc
from pagoda.v1 import scheduler_pb2 as pb

_SHORTEST_WATCH_INTERVAL_S = 0.05

Registration = TypeVar("Registration", pb.RegisterExecutorRequest, pb.RegisterTokenizerRequest)


class SchedulerServicer(scheduler_pb2_grpc.SchedulerServicer):
    def __init__(self, engine: Engine, options: SchedulerOptions) -> None:
        self._engine = engine
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()

    async def Generate(
        self, request: pb.SchedulerGenerateRequest, context: Any
    ) -> AsyncIterator[pb.SchedulerGenerateResponse]:
        domain_request = codec.decode_generate(request, self._engine.new_local_key())
        async with self._engine.generate(domain_request) as handle:
            end = None
            while end is None:
                token_ids, end = await handle.next()
                response = pb.SchedulerGenerateResponse(token_ids=token_ids)
                if end and end.error:
                    raise end.error
                if end:
                    response.finish_reason = codec.encode_finish_reason(end.reason)
                    response.usage.CopyFrom(codec.encode_usage(domain_request))
                yield response

    async def RegisterExecutor(
        self, requests: AsyncIterator[pb.RegisterExecutorRequest], context: Any
    ) -> AsyncIterator[pb.RegisterExecutorResponse]:
        first = await self._first(requests)
        with self._engine.executor(first.registration) as session:
            endpoint = self._engine.executor_router.endpoint
            yield pb.RegisterExecutorResponse(session=self._session(session.id, endpoint))
            messages = self._heed(requests, session)
            with session.kept_alive_by(messages, self._options.heartbeat_timeout_s):
                async for _ in session.statuses():
                    pass

    async def RegisterTokenizer(
        self, requests: AsyncIterator[pb.RegisterTokenizerRequest], context: Any
    ) -> AsyncIterator[pb.RegisterTokenizerResponse]:
        first = await self._first(requests)
        with self._engine.tokenizer(first.registration.name) as session:
            endpoint = self._engine.tokenizer_router.endpoint
            yield pb.RegisterTokenizerResponse(session=self._session(session.id, endpoint))
            with session.kept_alive_by(requests, self._options.heartbeat_timeout_s):
                async for status in session.statuses():
                    yield pb.RegisterTokenizerResponse(status=status)

    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainResponse:
        await self._engine.drain()
        return pb.DrainResponse()

    async def SetRole(self, request: pb.SetRoleRequest, context: Any) -> pb.SetRoleResponse:
        role = codec.decode_role(request.role)
        if role is ExecutorRole.UNSPECIFIED:
            raise InvalidArgumentError("role must be MIXED, PREFILL or DECODE", param="role")
        self._engine.set_role(request.executor, role)
        return pb.SetRoleResponse()

    async def GetState(self, request: pb.GetStateRequest, context: Any) -> pb.GetStateResponse:
        state = self._state(request.block_map_cells)
        violations = self._engine.core.check_integrity() if request.check_integrity else []
        return pb.GetStateResponse(state=state, violations=violations)

    async def WatchState(self, request: pb.WatchStateRequest, context: Any) -> AsyncIterator[pb.WatchStateResponse]:
        interval_s = request.interval.ToMilliseconds() / 1000 if request.HasField("interval") else 1.0
        if interval_s < _SHORTEST_WATCH_INTERVAL_S:
            raise InvalidArgumentError(
                f"interval must be at least {_SHORTEST_WATCH_INTERVAL_S:g} s, got {interval_s:g} s", param="interval"
            )
        while True:
            yield pb.WatchStateResponse(state=self._state(request.block_map_cells))
            await asyncio.sleep(interval_s)

    async def ListKvBlocks(
        self, request: kv_events_pb2.ListKvBlocksRequest, context: Any
    ) -> AsyncIterator[kv_events_pb2.ListKvBlocksResponse]:
        for part in self._engine.list_kv_blocks():
            yield part

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Any) -> pb.LoadAdapterResponse:
        raise UnimplementedError("adapters are not supported yet")

    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: Any) -> pb.UnloadAdapterResponse:
        raise UnimplementedError("adapters are not supported yet")

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: Any) -> pb.ListAdaptersResponse:
        return pb.ListAdaptersResponse()

    async def _heed(
        self, requests: AsyncIterator[pb.RegisterExecutorRequest], session: ExecutorSession
    ) -> AsyncIterator[pb.RegisterExecutorRequest]:
        """The messages of an executor, which may count its transfers, and say that it wants to leave."""
        async for request in requests:
            if request.heartbeat.HasField("transfers"):
                self._engine.note_transfers(session, request.heartbeat.transfers)
            if request.HasField("leave"):
                self._engine.begin_leaving(session)
            yield request

    def _state(self, block_map_cells: int) -> pb.SchedulerState:
        if block_map_cells > MAX_BLOCK_MAP_CELLS:
            raise InvalidArgumentError(
                f"block_map_cells must be at most {MAX_BLOCK_MAP_CELLS}, got {block_map_cells}", param="block_map_cells"
            )
        now = self._loop.time()
        return describe(self._engine, now, now - self._started, block_map_cells)

    def _session(self, session_id: str, endpoint: str) -> pb.Session:
        interval = Duration()
        interval.FromMilliseconds(int(self._options.heartbeat_interval_s * 1000))
        return pb.Session(session_id=session_id, endpoint=endpoint, heartbeat_interval=interval)

    async def _first(self, messages: AsyncIterator[Registration]) -> Registration:
        message = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._options.heartbeat_timeout_s):
                message = await anext(messages, None)
        if message is None or not message.HasField("registration"):
            raise InvalidArgumentError("the first message of the stream must be a registration", param="registration")
        return message
