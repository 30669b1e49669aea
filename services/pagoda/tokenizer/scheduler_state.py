"""The scheduler's own account of itself, for /metrics."""

from __future__ import annotations

import grpc

from pagoda.rpc.channel import open_channel
from pagoda.v1.scheduler_pb2 import GetStateRequest, SchedulerState
from pagoda.v1.scheduler_pb2_grpc import SchedulerStub

# A scrape does not wait longer for a scheduler that is busy or away.
_TIMEOUT_S = 1.0


class StateReader:
    """Asks the scheduler at `address`; made and used on the event loop."""

    def __init__(self, address: str) -> None:
        self._channel = open_channel(address)
        self._scheduler = SchedulerStub(self._channel)  # type: ignore[no-untyped-call]

    async def read(self) -> SchedulerState | None:
        """The state now; None while the scheduler is away."""
        try:
            response = await self._scheduler.GetState(GetStateRequest(), timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return None
        state: SchedulerState = response.state
        return state

    async def close(self) -> None:
        await self._channel.close(None)
