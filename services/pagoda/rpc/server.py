"""A gRPC server as every Pagoda service runs it: health, reflection, error mapping, ordered shutdown.

    server = ServiceServer("127.0.0.1:50051", ["pagoda.v1.Scheduler"])
    scheduler_pb2_grpc.add_SchedulerServicer_to_server(servicer, server.grpc)
    await server.start()
    await server.set_serving(True)
    await stop_event().wait()
    await server.stop(grace_s=5)

Health starts NOT_SERVING; the service says when it is ready. For the name "live" it answers SERVING from start to stop:
whether the process runs at all, whatever it waits for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from pagoda.rpc.channel import CHANNEL_OPTIONS, SERVER_KEEPALIVE_OPTIONS
from pagoda.rpc.interceptor import ErrorInterceptor

logger = logging.getLogger(__name__)

LIVE = "live"


class ServiceServer:
    """One grpc.aio server with health and reflection for `services` (full names)."""

    def __init__(self, listen: str, services: Sequence[str]) -> None:
        """listen: "host:port" (port 0 picks a free one) or "unix:/path"."""
        self.grpc = grpc.aio.server(
            interceptors=[ErrorInterceptor()],
            options=[*CHANNEL_OPTIONS, *SERVER_KEEPALIVE_OPTIONS, ("grpc.so_reuseport", 0)],
        )
        self._listen = listen
        self._services = list(services)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], self.grpc)
        self.address = listen

    async def start(self) -> None:
        """Opens the port; health answers NOT_SERVING. Raises OSError when the address cannot be bound."""
        await self.set_serving(False)
        await self._health.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
        try:
            port = self.grpc.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._listen}: {error}") from error
        if not self._listen.startswith("unix:"):
            self.address = f"{self._listen.rsplit(':', 1)[0]}:{port}"
        await self.grpc.start()
        logger.info("listening on %s", self.address)

    async def set_serving(self, serving: bool) -> None:
        """What the health service answers, for the server ("") and each of its services."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *self._services):
            await self._health.set(service, status)

    async def stop(self, grace_s: float) -> None:
        """Health turns NOT_SERVING, no call is accepted any more, running ones get `grace_s` seconds."""
        await self._health.enter_graceful_shutdown()
        await self.grpc.stop(grace_s)
