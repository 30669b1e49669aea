"""The executor process: load, warm up, join the cell, run steps until told to leave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pagoda.errors import FailedPreconditionError
from pagoda.executor.affinity import stay_on
from pagoda.executor.config import ExecutorOptions
from pagoda.executor.description import Description
from pagoda.executor.openmp import configure_waiting
from pagoda.executor.read_ahead import read_ahead
from pagoda.executor.servicer import ExecutorServicer
from pagoda.executor.session import stay_registered
from pagoda.executor.step_thread import StepThread
from pagoda.imports import collector_paused
from pagoda.logs import configure_logging
from pagoda.rpc.curve import KeyPair, read_cell_key
from pagoda.rpc.server import ServiceServer
from pagoda.signals import stop_event
from pagoda.v1 import executor_pb2_grpc

if TYPE_CHECKING:  # torch is loaded later
    from pagoda.executor.runner import Runner
    from pagoda.executor.transfers import Transfers

logger = logging.getLogger(__name__)

# How long a step that is running at shutdown may still take, in seconds.
_STOP_TIMEOUT_S = 2.0

_TAKE_LESS = (
    "lower --gpu-memory-utilization, --kv-cache-memory-bytes, --num-gpu-blocks-override, --max-num-seqs or "
    "--max-num-batched-tokens"
)


def main(options: ExecutorOptions) -> int:
    """Runs an executor until SIGTERM or SIGINT. Returns the exit code: 0 after a signal, 1 after an error."""
    configure_logging(options.name or "executor", options.log_level)
    try:
        if options.cpus:
            stay_on(options.cpus)
        key = read_cell_key(options.cell_key_file) if options.cell_key_file else None
    except ValueError as error:
        logger.error("%s", error)
        return 1
    return asyncio.run(_serve(options, key))


async def _serve(options: ExecutorOptions, key: KeyPair | None) -> int:
    leaving = stop_event()
    stopped = asyncio.create_task(leaving.wait())
    thread = StepThread(key)
    servicer = ExecutorServicer(thread)
    server = ServiceServer(options.listen, ["pagoda.v1.Executor"])
    executor_pb2_grpc.add_ExecutorServicer_to_server(servicer, server.grpc)  # type: ignore[no-untyped-call]
    try:
        await server.start()
    except OSError as error:
        logger.error("%s", error)
        return 1
    work = asyncio.create_task(_work(options, thread, servicer, server, leaving))
    await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if servicer.is_ready and not work.done():
        logger.info("told to stop; requests have %g s to end or to move", options.drain_s)
        await asyncio.wait({work}, timeout=options.drain_s)
    code = 0
    if work.done():
        code = _report(work)
    else:
        logger.info("leaving")
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
    options: ExecutorOptions,
    thread: StepThread,
    servicer: ExecutorServicer,
    server: ServiceServer,
    leaving: asyncio.Event,
) -> None:
    """Runs until `leaving` is set and the scheduler agrees.

    Raises FailedPreconditionError for what its user can change, anything else for a defect.
    """
    try:
        runner, transfers = await thread.call(lambda: _load(options))
    except ValueError as error:
        raise FailedPreconditionError(str(error)) from None
    thread.orders = transfers
    description = Description(options, runner, transfers)
    servicer.ready(description)
    await stay_registered(options.scheduler, description.registration, runner, thread, server.set_serving, leaving)


def _load(options: ExecutorOptions) -> tuple[Runner, Transfers]:
    configure_waiting()
    if options.model is not None and options.load_format != "dummy":
        read_ahead(Path(options.model))
    # torch takes a second to import: the port is open by then, and whoever only asks for help does not wait.
    with collector_paused():
        from pagoda.executor.core_share import CoreShare
        from pagoda.executor.machine import usable_cores, within_memory
        from pagoda.executor.runner import load_runner
        from pagoda.executor.transfers import make_transfers

    with within_memory("the KV cache and what a step takes beside it", _TAKE_LESS):
        runner = load_runner(options)
        runner.warm_up()
    if options.threads is None:
        runner.cores = CoreShare(usable_cores())
    return runner, make_transfers(
        runner,
        None if options.transfer in ("shm", "cuda") else options.transfer_endpoint,
        only=options.transfer if options.transfer in ("cuda", "tcp", "nixl") else None,
        encrypted=options.cell_key_file is not None,
    )


def _report(work: asyncio.Task[None]) -> int:
    """Logs why the work ended, if it failed; the exit code."""
    error = work.exception()
    if error is None:
        return 0
    if isinstance(error, FailedPreconditionError):
        logger.error("%s", error.message)
    else:
        logger.error("the executor failed", exc_info=error)
    return 1
