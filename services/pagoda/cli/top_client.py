"""Asks a scheduler for its state, and finds it again when it was away.

It asks each time instead of watching: so one that hangs is noticed, and block maps keep the size of the screen.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc

from pagoda.errors import UnavailableError
from pagoda.rpc.channel import open_channel
from pagoda.v1.scheduler_pb2 import GetStateRequest, SchedulerState
from pagoda.v1.scheduler_pb2_grpc import SchedulerStub

# A scheduler answers between two steps; one that is silent for so long is as good as away.
_TIMEOUT_S = 3.0


class StateClient:
    """Made and used on the event loop."""

    def __init__(self, find: Callable[[], str]) -> None:
        """find: the scheduler's address; asked again after every failure, since the next one may be elsewhere"""
        self._find = find
        self._channel: grpc.aio.Channel | None = None
        self._address = ""

    async def ask(self, block_map_cells: int) -> SchedulerState:
        """The state now. Raises PagodaError, which says why there is none."""
        if self._channel is None:
            self._address = self._find()
            self._channel = open_channel(self._address)
        scheduler = SchedulerStub(self._channel)  # type: ignore[no-untyped-call]
        try:
            answer = await scheduler.GetState(GetStateRequest(block_map_cells=block_map_cells), timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            # A new channel tries at once, where this one would wait longer after each failure.
            await self.close()
            raise UnavailableError(f"{self._address}: {_explain(error)}") from error
        state: SchedulerState = answer.state
        return state

    async def close(self) -> None:
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close(None)


def _explain(error: grpc.aio.AioRpcError) -> str:
    match error.code():
        case grpc.StatusCode.UNAVAILABLE:
            return "no scheduler listens there (`pagoda serve` starts one)"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"no answer within {_TIMEOUT_S:g} s"
        case grpc.StatusCode.UNIMPLEMENTED:
            return "what listens there is not a scheduler"
        case code:
            return f"{code.name}: {error.details()}"
