"""The thread that runs the model: the steps of a session, and what others ask for between two steps.

Everything that touches the runner happens here, one thing at a time, so the runner needs no lock, and the event loop of
the main thread stays free (torch gives up the GIL while it computes). Other threads wake this one through a pair of
sockets.

A GPU computes a step while the next plan is read and launched: a second thread waits for it, and only waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import zmq

from pagoda.executor.pending import Pending
from pagoda.rpc.curve import KeyPair, protect_client
from pagoda.v1 import step_pb2

T = TypeVar("T")
Socket = zmq.Socket[bytes]

# How long a peer may take to be connected, in milliseconds.
_CONNECT_TIMEOUT_MS = 5000
# How long messages already sent may wait for the peer when the socket is closed, in milliseconds.
_LINGER_MS = 500


class Steps(Protocol):
    """What runs steps: `pagoda.executor.runner.Runner`."""

    def launch(self, plan: step_pb2.StepPlan) -> Pending: ...

    def reset(self) -> None: ...


class Orders(Protocol):
    """What carries out the rest of a plan, before its step: `pagoda.executor.transfers.Transfers`."""

    @property
    def filenos(self) -> Sequence[int]:
        """One of them is readable when there is news."""
        ...

    def apply(self, plan: step_pb2.StepPlan) -> None:
        """When the plan comes; earlier steps may be running."""

    def push(self, plan: step_pb2.StepPlan) -> None:
        """When all earlier steps are computed: what they have computed can leave."""

    def add_news(self, message: step_pb2.ExecutorMessage) -> bool:
        """Adds what has happened since it was last asked. False: nothing."""
        ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class _Session:
    socket: Socket
    disconnected: Socket
    """Readable when the connection is gone: after a reconnect, messages might be missing."""
    steps: Steps
    orders: Orders | None
    last_step: int = 0
    launched: deque[tuple[step_pb2.StepPlan, Pending]] = field(default_factory=deque)
    """Steps that are being computed, the oldest first."""
    ended: Future[None] = field(default_factory=Future)


class StepThread:
    """One daemon thread with a queue of calls and at most one session. Its methods belong to one event loop."""

    def __init__(self, key: KeyPair | None = None) -> None:
        """key: of the cell, where it has one"""
        self._key = key
        self.orders: Orders | None = None
        """To be set before the first session; None: plans have none."""
        self._context: zmq.Context[Socket] = zmq.Context()
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake, self._woken = socket.socketpair()
        # Starts its thread when there is something to wait for: never on a CPU.
        self._waiter = ThreadPoolExecutor(1, thread_name_prefix="step results")
        self._session: _Session | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="steps", daemon=True)
        self._thread.start()

    async def call(self, function: Callable[[], T]) -> T:
        """Runs `function` in the thread, between two steps; returns or raises what it does."""
        return await asyncio.wrap_future(self._submit(function))

    async def attach(self, steps: Steps, session_id: str, endpoint: str) -> asyncio.Future[None]:
        """Connects to the scheduler's `endpoint` and runs its plans on `steps`, whose batch is empty.

        Returns a future that raises what ends the session: ConnectionError when messages were lost, anything else for a
        step that failed. Raises ConnectionError when the endpoint cannot be reached.
        """
        return asyncio.wrap_future(await self.call(lambda: self._attach(steps, session_id, endpoint)))

    async def detach(self) -> None:
        """Leaves the session, after the steps that are running."""
        await self.call(self._detach)

    async def stop(self, timeout_s: float) -> bool:
        """Leaves the session and ends the thread. False when it is still busy after `timeout_s` seconds."""
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._submit(self._stop)), timeout_s)
        except TimeoutError:
            return False
        self._thread.join()
        self._waiter.shutdown()
        self._wake.close()
        self._woken.close()
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
        self._wake.send(b"!")
        return future

    def _run(self) -> None:
        while not self._stopped:
            session = self._session
            poller = zmq.Poller()
            poller.register(self._woken.fileno(), zmq.POLLIN)
            if session is not None:
                poller.register(session.socket, zmq.POLLIN)
                poller.register(session.disconnected, zmq.POLLIN)
                for fileno in session.orders.filenos if session.orders else ():
                    poller.register(fileno, zmq.POLLIN)
            # The session changes in calls and by its end only.
            while session is self._session and not self._stopped:
                ready = [source for source, _ in poller.poll()]
                if self._woken.fileno() in ready:
                    self._woken.recv(1)
                    self._calls.get()()
                elif session is not None and session.socket in ready:
                    self._step(session)
                elif session is not None and session.disconnected in ready:
                    self._end(ConnectionError("the connection for steps was lost"))
                elif session is not None:
                    self._send(session, step_pb2.ExecutorMessage())

    def _step(self, session: _Session) -> None:
        try:
            plan = step_pb2.StepPlan.FromString(session.socket.recv())
            if plan.step != session.last_step + 1:
                raise ConnectionError(f"plan {plan.step} came after plan {session.last_step}")
            session.last_step = plan.step
            if session.orders:
                session.orders.apply(plan)
                if not session.launched:
                    session.orders.push(plan)
            pending = session.steps.launch(plan)
            session.launched.append((plan, pending))
        except Exception as error:
            self._end(error)
            return
        if pending.is_done:
            self._finish(session)
        else:
            waited = self._waiter.submit(pending.wait)
            waited.add_done_callback(lambda _: self._submit(lambda: self._finish(session)))

    def _finish(self, session: _Session) -> None:
        """The oldest step is computed."""
        if session is not self._session:
            return
        try:
            _, pending = session.launched.popleft()
            result = pending.finish()
            if session.orders and session.launched:
                next_plan, _ = session.launched[0]
                session.orders.push(next_plan)
        except Exception as error:
            self._end(error)
        else:
            self._send(session, step_pb2.ExecutorMessage(result=result))

    def _send(self, session: _Session, message: step_pb2.ExecutorMessage) -> None:
        """Together with the news; nothing where there is neither a result nor news."""
        has_news = session.orders is not None and session.orders.add_news(message)
        if has_news or message.HasField("result"):
            try:
                session.socket.send(message.SerializeToString())
            except zmq.Again:
                self._end(ConnectionError(f"the scheduler took no result for {_CONNECT_TIMEOUT_MS} ms"))

    def _attach(self, steps: Steps, session_id: str, endpoint: str) -> Future[None]:
        self._detach()
        socket = self._context.socket(zmq.DEALER)
        socket.routing_id = session_id.encode()
        # Messages go to connected peers only: the first one is taken when the peer is there.
        socket.immediate = 1
        socket.sndtimeo = _CONNECT_TIMEOUT_MS
        if self._key:
            protect_client(socket, self._key.public)
        disconnected = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            socket.connect(endpoint)
            socket.send(step_pb2.ExecutorMessage().SerializeToString())
        except zmq.ZMQError as error:
            _close(socket, disconnected, linger_ms=0)
            raise ConnectionError(f"cannot connect to {endpoint}: {error}") from None
        self._session = _Session(socket, disconnected, steps, self.orders)
        return self._session.ended

    def _detach(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            for _, pending in session.launched:
                with contextlib.suppress(Exception):  # nobody wants to know any more
                    pending.wait()
            _close(session.socket, session.disconnected, linger_ms=_LINGER_MS)
            session.steps.reset()
            if session.orders:
                session.orders.reset()

    def _end(self, error: Exception) -> None:
        session = self._session
        self._detach()
        if session is not None:
            with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
                session.ended.set_exception(error)

    def _stop(self) -> None:
        self._detach()
        self._stopped = True
        if self.orders:
            self.orders.close()


def _close(socket: Socket, monitor: Socket, linger_ms: int) -> None:
    """linger_ms: how long messages already sent may wait for the peer"""
    socket.disable_monitor()
    monitor.close(linger=0)
    socket.close(linger=linger_ms)
