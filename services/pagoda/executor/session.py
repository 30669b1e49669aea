"""The executor's place in a cell: registration, heartbeats, joining again when the scheduler was away, and leaving."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc

from pagoda.errors import Code, FailedPreconditionError, PagodaError, UnavailableError
from pagoda.executor.step_thread import Steps, StepThread
from pagoda.rpc.channel import open_channel
from pagoda.rpc.status import from_rpc_error
from pagoda.v1 import scheduler_pb2, scheduler_pb2_grpc

logger = logging.getLogger(__name__)

SetServing = Callable[[bool], Awaitable[None]]
Describe = Callable[[], scheduler_pb2.ExecutorRegistration]

# grpc-stubs lacks the type of a bidirectional aio call.
_Call = Any

# Between attempts to register, in seconds; doubled from the first to the last.
_FIRST_RETRY_S, _LAST_RETRY_S = 0.1, 2.0
# A scheduler that takes the connection and then says nothing is given up after this long.
_ANSWER_TIMEOUT_S = 10.0
# Answers to a registration that another attempt would not change.
_REFUSALS = {Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED}


async def stay_registered(
    scheduler: str,
    describe: Describe,
    steps: Steps,
    thread: StepThread,
    set_serving: SetServing,
    leaving: asyncio.Event,
) -> None:
    """Registers at the scheduler and runs its plans, session after session.

    scheduler: its gRPC address
    describe: asked before each session, and before each heartbeat for its transfers
    set_serving: told when a session is open and when it is over
    leaving: when set, the scheduler is asked to let this executor go, once none of its requests needs it any more;
        then, and where there is no session, this returns

    Raises PagodaError with the scheduler's reason when it refuses the registration, and what a failed step raised.
    """
    retry_s, reported = _FIRST_RETRY_S, False
    while not leaving.is_set():
        opened = False

        async def on_open(session_id: str) -> None:
            nonlocal opened
            opened = True
            logger.info("registered at the scheduler %s as session %s", scheduler, session_id)
            await set_serving(True)

        try:
            await _run_session(scheduler, describe, steps, thread, on_open, leaving)
        except UnavailableError as error:
            if leaving.is_set():
                logger.info("left the scheduler %s: %s", scheduler, error.message)
            elif opened:
                retry_s, reported = _FIRST_RETRY_S, False
            # Once per outage, not once per attempt.
            if not (reported or leaving.is_set()):
                logger.warning("no session at the scheduler %s: %s; trying again", scheduler, error.message)
                reported = True
        finally:
            await set_serving(False)
        await thread.detach()
        await _pause(retry_s, leaving)
        retry_s = min(2 * retry_s, _LAST_RETRY_S)


async def _run_session(
    scheduler: str,
    describe: Describe,
    steps: Steps,
    thread: StepThread,
    on_open: Callable[[str], Awaitable[None]],
    leaving: asyncio.Event,
) -> NoReturn:
    """One session; UnavailableError tells how it was lost."""
    interval: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    async with open_channel(scheduler) as channel:
        stub = scheduler_pb2_grpc.SchedulerStub(channel)  # type: ignore[no-untyped-call]
        call: _Call = stub.RegisterExecutor(_requests(describe, interval, leaving))
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                session = (await _read(call)).session
                ended = await thread.attach(steps, session.session_id, session.endpoint)
            interval.set_result(session.heartbeat_interval.ToMilliseconds() / 1000)
            await on_open(session.session_id)
            await _first_failure(ended, asyncio.ensure_future(_read_to_end(call)))
        except TimeoutError:
            raise UnavailableError(f"no answer in {_ANSWER_TIMEOUT_S:.0f} s") from None
        except ConnectionError as error:
            raise UnavailableError(str(error)) from None
        finally:
            call.cancel()
            interval.cancel()
    raise AssertionError("a session ends by an error only")


async def _requests(
    describe: Describe, interval: asyncio.Future[float], leaving: asyncio.Event
) -> AsyncIterator[scheduler_pb2.RegisterExecutorRequest]:
    """The registration, then heartbeats once their interval, in seconds, is known, and when it is time the wish to
    leave."""
    yield scheduler_pb2.RegisterExecutorRequest(registration=describe())
    interval_s = await interval
    while not leaving.is_set():
        await _pause(interval_s, leaving)
        yield _heartbeat(describe())
    yield scheduler_pb2.RegisterExecutorRequest(leave=scheduler_pb2.Leave())
    while True:
        await asyncio.sleep(interval_s)
        yield _heartbeat(describe())


def _heartbeat(description: scheduler_pb2.ExecutorRegistration) -> scheduler_pb2.RegisterExecutorRequest:
    has_transfers = description.HasField("transfers")
    heartbeat = scheduler_pb2.Heartbeat(transfers=description.transfers if has_transfers else None)
    return scheduler_pb2.RegisterExecutorRequest(heartbeat=heartbeat)


async def _pause(seconds: float, leaving: asyncio.Event) -> None:
    """Until it is time to leave, and no longer than that."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await leaving.wait()


async def _read(call: _Call) -> Any:
    try:
        response = await call.read()
    except grpc.aio.AioRpcError as error:
        raise _translate(error) from None
    if response is grpc.aio.EOF:  # type: ignore[attr-defined]
        raise UnavailableError("the scheduler closed the session")
    return response


async def _read_to_end(call: _Call) -> NoReturn:
    while True:
        await _read(call)


async def _first_failure(*futures: asyncio.Future[Any]) -> None:
    """Raises what the first future raises that fails; the others are cancelled."""
    try:
        done, _ = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        done.pop().result()
    finally:
        for future in futures:
            future.cancel()


def _translate(error: grpc.aio.AioRpcError) -> PagodaError:
    problem = from_rpc_error(error)
    if problem.code in _REFUSALS:
        return FailedPreconditionError(
            f"the scheduler refused the registration: {problem.message}", reason=problem.reason
        )
    return UnavailableError(problem.message)
