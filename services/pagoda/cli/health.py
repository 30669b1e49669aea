"""Whether a service is ready for work, as its own health endpoint says."""

from __future__ import annotations

import asyncio
import http.client
from urllib.parse import urlsplit

_TIMEOUT_S = 2.0
_POLL_S = 0.03


async def until_ready(address: str) -> None:
    """Returns when the service at `address` says that it is ready: an http:// URL, or a gRPC address."""
    if address.startswith("http://"):
        while not await asyncio.to_thread(_http_healthy, address):  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(_POLL_S)
        return
    await _until_listening(address.removeprefix("unix:"))
    await _until_serving(address)


def _http_healthy(url: str) -> bool:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


async def _until_listening(path: str) -> None:
    """A gRPC channel that fails to connect waits longer each time; a plain connection does not."""
    while True:
        try:
            _, writer = await asyncio.open_unix_connection(path)
        except OSError:
            await asyncio.sleep(_POLL_S)
        else:
            writer.close()
            return


async def _until_serving(address: str) -> None:
    # Imported while the services are starting, not before they are started.
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from pagoda.rpc.channel import open_channel

    async with open_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        while True:
            try:
                answer = await check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
            except grpc.RpcError:
                pass
            else:
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            await asyncio.sleep(_POLL_S)
