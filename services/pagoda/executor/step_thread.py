"""The thread that runs the model: the steps of a session, and what others ask for between two steps.

Everything that touches the runner happens here, one thing at a time, so the runner needs no lock, and the event loop of
the main thread stays free (torch gives up the GIL while it computes). ZeroMQ sockets belong to one thread: the main
thread wakes this one through an in-process pair.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import zmq

from pagoda.v1 import step_pb2

T = TypeVar("T")
Socket = zmq.Socket[bytes]

# How long a peer may take to be connected, in milliseconds.
_CONNECT_TIMEOUT_MS = 5000
# How long messages already sent may wait for the peer when the socket is closed, in milliseconds.
_LINGER_MS = 500


class Steps(Protocol):
    """What runs steps: `pagoda.executor.runner.Runner`."""

    def execute(self, plan: step_pb2.StepPlan) -> step_pb2.StepResult: ...

    def reset(self) -> None: ...


@dataclass
class _Session:
    socket: Socket
    steps: Steps
    last_step: int = 0
    ended: Future[None] = field(default_factory=Future)


class StepThread:
    """One daemon thread with a queue of calls and at most one session. Its methods belong to one event loop."""

    def __init__(self) -> None:
        self._context: zmq.Context[Socket] = zmq.Context()
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake = self._context.socket(zmq.PAIR)
        self._wake.bind("inproc://wake")
        self._session: _Session | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="steps", daemon=True)
        self._thread.start()

    async def call(self, function: Callable[[], T]) -> T:
        """Runs `function` in the thread, between two steps; returns or raises what it does."""
        return await asyncio.wrap_future(self._submit(function))

    async def attach(self, steps: Steps, session_id: str, endpoint: str) -> asyncio.Future[None]:
        """Connects to the scheduler's `endpoint` and runs its plans on `steps`, whose batch is emptied first.

        Returns a future that raises what ends the session: ConnectionError when messages were lost, anything else for a
        step that failed. Raises ConnectionError when the endpoint cannot be reached.
        """
        return asyncio.wrap_future(await self.call(lambda: self._attach(steps, session_id, endpoint)))

    async def detach(self) -> None:
        """Leaves the session, after the step that is running."""
        await self.call(self._detach)

    async def stop(self, timeout_s: float) -> bool:
        """Leaves the session and ends the thread. False when it is still busy after `timeout_s` seconds."""
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._submit(self._stop)), timeout_s)
        except TimeoutError:
            return False
        self._thread.join()
        self._wake.close(linger=0)
        self._context.term()
        return True

    def _submit(self, function: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._calls.put(run)
        self._wake.send(b"")
        return future

    def _run(self) -> None:
        wake = self._context.socket(zmq.PAIR)
        wake.connect("inproc://wake")
        while not self._stopped:
            session = self._session
            poller = zmq.Poller()
            poller.register(wake, zmq.POLLIN)
            if session is not None:
                poller.register(session.socket, zmq.POLLIN)
            # The session changes in calls and by its end only.
            while session is self._session and not self._stopped:
                if any(socket is wake for socket, _ in poller.poll()):
                    wake.recv()
                    self._calls.get()()
                elif session is not None:
                    self._step(session)
        wake.close(linger=0)

    def _step(self, session: _Session) -> None:
        try:
            plan = step_pb2.StepPlan.FromString(session.socket.recv())
            if plan.step != session.last_step + 1:
                raise ConnectionError(f"plan {plan.step} came after plan {session.last_step}")
            session.last_step = plan.step
            result = session.steps.execute(plan)
            session.socket.send(step_pb2.ExecutorMessage(result=result).SerializeToString())
        except zmq.Again:
            self._end(ConnectionError(f"the scheduler took no result for {_CONNECT_TIMEOUT_MS} ms"))
        except Exception as error:
            self._end(error)

    def _attach(self, steps: Steps, session_id: str, endpoint: str) -> Future[None]:
        self._detach()
        steps.reset()
        socket = self._context.socket(zmq.DEALER)
        socket.routing_id = session_id.encode()
        socket.linger = _LINGER_MS
        # Messages go to connected peers only: the first one is taken when the peer is there.
        socket.immediate = 1
        socket.sndtimeo = _CONNECT_TIMEOUT_MS
        try:
            socket.connect(endpoint)
            socket.send(step_pb2.ExecutorMessage().SerializeToString())
        except zmq.ZMQError as error:
            socket.close(linger=0)
            raise ConnectionError(f"cannot connect to {endpoint}: {error}") from None
        self._session = _Session(socket, steps)
        return self._session.ended

    def _detach(self) -> None:
        if self._session is not None:
            self._session.socket.close()
            self._session = None

    def _end(self, error: Exception) -> None:
        session = self._session
        self._detach()
        if session is not None:
            with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
                session.ended.set_exception(error)

    def _stop(self) -> None:
        self._detach()
        self._stopped = True
