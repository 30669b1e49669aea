"""The scheduler process: wiring, signals, health."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import uvloop
import zmq

from pagoda.logs import configure_logging
from pagoda.rpc.server import ServiceServer
from pagoda.scheduler.config import SchedulerOptions
from pagoda.scheduler.engine import Engine
from pagoda.scheduler.servicer import SchedulerServicer
from pagoda.signals import stop_event
from pagoda.tracing import tracing
from pagoda.v1 import scheduler_pb2_grpc

if TYPE_CHECKING:  # an optional package
    from opentelemetry.trace import Tracer

logger = logging.getLogger(__name__)

# Container objects made and not freed until the youngest are looked at.
_GC_THRESHOLD = 50_000

# Calls have been answered by then; this is for what hangs.
_STOP_GRACE_S = 1.0


def main(options: SchedulerOptions) -> int:
    """Runs until SIGINT or SIGTERM; returns the exit status."""
    configure_logging("scheduler", options.log_level)
    try:
        with tracing("scheduler", options.otlp_traces_endpoint) as tracer:
            return uvloop.run(_serve(options, tracer))
    except (OSError, ValueError) as error:
        logger.error("%s", error)
        return 1


async def _serve(options: SchedulerOptions, tracer: Tracer | None) -> int:
    async with running_scheduler(options, tracer) as (engine, _):
        ends: set[asyncio.Future[Any]] = {asyncio.create_task(stop_event().wait()), engine.failed}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        return 1 if engine.failed.done() else 0


@asynccontextmanager
async def running_scheduler(
    options: SchedulerOptions, tracer: Tracer | None = None
) -> AsyncIterator[tuple[Engine, ServiceServer]]:
    """The service, serving inside the block. Raises OSError when an address cannot be bound."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        engine = Engine(options, context, tracer)
        server = ServiceServer(options.listen, ["pagoda.v1.Scheduler"])
        servicer = SchedulerServicer(engine, options)
        scheduler_pb2_grpc.add_SchedulerServicer_to_server(servicer, server.grpc)  # type: ignore[no-untyped-call]
        engine.start()
        try:
            await server.start()
            logger.info("executors connect to %s", engine.executor_router.endpoint)
            logger.info("tokenizers connect to %s", engine.tokenizer_router.endpoint)
            if engine.kv_publisher:
                logger.info("KV events are published on %s", engine.kv_publisher.endpoint)
            await server.set_serving(True)
            _spare_garbage_collection()
            yield engine, server
        finally:
            await server.set_serving(False)
            engine.close()
            await server.stop(_STOP_GRACE_S)
    finally:
        context.destroy()


def _spare_garbage_collection() -> None:
    """Makes collections rare: one that looks at every request takes as long as several steps, and nothing on the hot
    path makes cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, 20, 20)
