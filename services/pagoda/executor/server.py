"""The executor process: load, warm up, join the cell, run steps until told to leave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING

from pagoda.errors import FailedPreconditionError
from pagoda.executor.config import ExecutorOptions
from pagoda.executor.description import Description
from pagoda.executor.openmp import configure_waiting
from pagoda.executor.servicer import ExecutorServicer
from pagoda.executor.session import stay_registered
from pagoda.executor.step_thread import StepThread
from pagoda.logs import configure_logging
from pagoda.rpc.server import ServiceServer
from pagoda.signals import stop_event
from pagoda.v1 import executor_pb2_grpc

if TYPE_CHECKING:  # torch is loaded later
    from pagoda.executor.runner import Runner

logger = logging.getLogger(__name__)

# How long a step that is running at shutdown may still take, in seconds.
_STOP_TIMEOUT_S = 2.0


def main(options: ExecutorOptions) -> int:
    """Runs an executor until SIGTERM or SIGINT. Returns the exit code: 0 after a signal, 1 after an error."""
    configure_logging(options.name or "executor", options.log_level)
    if options.role != "mixed":
        logger.error("role %s is not served yet; start the executor with --role mixed", options.role)
        return 1
    return asyncio.run(_serve(options))


async def _serve(options: ExecutorOptions) -> int:
    stopped = asyncio.create_task(stop_event().wait())
    thread = StepThread()
    servicer = ExecutorServicer(thread)
    server = ServiceServer(options.listen, ["pagoda.v1.Executor"])
    executor_pb2_grpc.add_ExecutorServicer_to_server(servicer, server.grpc)  # type: ignore[no-untyped-call]
    try:
        await server.start()
    except OSError as error:
        logger.error("%s", error)
        return 1
    work = asyncio.create_task(_work(options, thread, servicer, server))
    await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
    code = 0
    if work.done():
        code = _report(work)
    else:
        logger.info("told to stop; leaving")
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
    await server.stop(grace_s=0.5)
    if not await thread.stop(_STOP_TIMEOUT_S):
        # Loading or a long step: nothing of it is worth waiting for, and a thread in torch cannot be interrupted.
        logging.shutdown()
        os._exit(code)
    return code


async def _work(
    options: ExecutorOptions, thread: StepThread, servicer: ExecutorServicer, server: ServiceServer
) -> None:
    """Runs until cancelled. Raises FailedPreconditionError for what its user can change, anything else for a defect."""
    try:
        runner = await thread.call(lambda: _load(options))
    except ValueError as error:
        raise FailedPreconditionError(str(error)) from None
    description = Description(options, runner)
    servicer.ready(description)
    await stay_registered(options.scheduler, description.registration(), runner, thread, server.set_serving)


def _load(options: ExecutorOptions) -> Runner:
    configure_waiting()
    # torch takes a second to import: the port is open by then, and whoever only asks for help does not wait.
    from pagoda.executor.runner import load_runner

    runner = load_runner(options)
    runner.warm_up()
    return runner


def _report(work: asyncio.Task[None]) -> int:
    """Logs why the work ended; the exit code."""
    error = work.exception()
    if isinstance(error, FailedPreconditionError):
        logger.error("%s", error.message)
    else:
        logger.error("the executor failed", exc_info=error)
    return 1
