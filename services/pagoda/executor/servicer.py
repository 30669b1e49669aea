"""`pagoda.v1.Executor`: one executor, for operators."""

from __future__ import annotations

from typing import Any

from pagoda.errors import UnavailableError, UnimplementedError
from pagoda.executor.description import Description
from pagoda.executor.profiler import Profiler
from pagoda.executor.step_thread import StepThread
from pagoda.v1 import executor_pb2, executor_pb2_grpc

# grpc-stubs lacks parts of the aio context.
_Context = Any


class ExecutorServicer(executor_pb2_grpc.ExecutorServicer):
    """Answers while the model loads, too; then `ready` gives it something to tell."""

    def __init__(self, thread: StepThread) -> None:
        self._thread = thread
        self._profiler = Profiler()
        self._description: Description | None = None

    def ready(self, description: Description) -> None:
        """The model is loaded."""
        self._description = description

    @property
    def is_ready(self) -> bool:
        return self._description is not None

    async def GetInfo(self, request: executor_pb2.GetInfoRequest, context: _Context) -> executor_pb2.GetInfoResponse:
        return self._loaded().info()

    async def StartProfile(
        self, request: executor_pb2.StartProfileRequest, context: _Context
    ) -> executor_pb2.StartProfileResponse:
        self._loaded()
        await self._thread.call(self._profiler.start)
        return executor_pb2.StartProfileResponse()

    async def StopProfile(
        self, request: executor_pb2.StopProfileRequest, context: _Context
    ) -> executor_pb2.StopProfileResponse:
        return executor_pb2.StopProfileResponse(path=str(await self._thread.call(self._profiler.stop)))

    async def LoadAdapter(
        self, request: executor_pb2.ExecutorLoadAdapterRequest, context: _Context
    ) -> executor_pb2.ExecutorLoadAdapterResponse:
        raise UnimplementedError("this executor does not serve LoRA adapters", reason="ADAPTERS_NOT_SUPPORTED")

    async def UnloadAdapter(
        self, request: executor_pb2.ExecutorUnloadAdapterRequest, context: _Context
    ) -> executor_pb2.ExecutorUnloadAdapterResponse:
        raise UnimplementedError("this executor does not serve LoRA adapters", reason="ADAPTERS_NOT_SUPPORTED")

    async def Sleep(self, request: executor_pb2.SleepRequest, context: _Context) -> executor_pb2.SleepResponse:
        raise UnimplementedError(
            "this executor cannot sleep; stop the process to free its memory", reason="SLEEP_NOT_SUPPORTED"
        )

    async def Wake(self, request: executor_pb2.WakeRequest, context: _Context) -> executor_pb2.WakeResponse:
        raise UnimplementedError("this executor cannot sleep, so it is awake", reason="SLEEP_NOT_SUPPORTED")

    def _loaded(self) -> Description:
        if self._description is None:
            raise UnavailableError("the model is being loaded; try again when the health check says SERVING")
        return self._description
