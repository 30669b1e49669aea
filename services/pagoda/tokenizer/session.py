"""One registration at a scheduler: the gRPC stream that keeps it, and the ZeroMQ socket for the hot path.

Knows the transport, and nothing of requests: those are `cell`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

import grpc
import zmq
import zmq.asyncio
from google.protobuf.message import DecodeError
from zmq.utils.monitor import recv_monitor_message

from pagoda.errors import UnavailableError
from pagoda.rpc.channel import open_channel
from pagoda.rpc.curve import KeyPair, protect_client
from pagoda.v1.scheduler_pb2 import (
    CellStatus,
    Heartbeat,
    RegisterTokenizerRequest,
    Session,
    TokenizerRegistration,
)
from pagoda.v1.scheduler_pb2_grpc import SchedulerStub
from pagoda.v1.step_pb2 import TokenBatch, TokenizerMessage

logger = logging.getLogger(__name__)

SendMessage = Callable[[TokenizerMessage], None]

# grpc-stubs lacks the type of a bidirectional aio call.
_Call = Any

# A scheduler that takes the connection and then says nothing is given up after this long.
_ANSWER_TIMEOUT_S = 10.0


class SessionPeer(Protocol):
    """Who uses a session; called on the event loop."""

    def on_open(self, send: SendMessage) -> None:
        """The session is open. `send` never blocks and works until `run_session` ends."""

    def on_status(self, status: CellStatus) -> None: ...

    def on_tokens(self, batch: TokenBatch) -> None: ...


async def run_session(address: str, name: str, peer: SessionPeer, key: KeyPair | None = None) -> NoReturn:
    """Registers at the scheduler and serves `peer` until the session is lost; UnavailableError tells why.

    address: the scheduler's gRPC address
    name: what the scheduler calls this tokenizer in its logs
    key: of the cell, where it has one
    """
    async with open_channel(address) as channel:
        scheduler = SchedulerStub(channel)  # type: ignore[no-untyped-call]
        call: _Call = scheduler.RegisterTokenizer()
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                session = await _register(call, name)
            logger.info("registered at the scheduler %s as session %s", address, session.session_id)
            with _dealer(session, key) as socket:
                peer.on_open(_open_sender(socket))
                await _run_until_one_fails(
                    _send_heartbeats(call, session.heartbeat_interval.ToMilliseconds() / 1000),
                    _receive_status(call, peer),
                    _receive_tokens(socket, peer),
                    _watch_connection(socket),
                )
        except TimeoutError:
            raise UnavailableError(f"the scheduler {address} did not answer in {_ANSWER_TIMEOUT_S:.0f} s") from None
        except grpc.aio.AioRpcError as error:
            raise UnavailableError(f"no session at the scheduler {address}: {error.details()}") from None
        except (asyncio.InvalidStateError, DecodeError, ValueError, zmq.ZMQError) as error:
            raise UnavailableError(f"lost the session at the scheduler {address}: {error}") from error
        finally:
            call.cancel()
    raise AssertionError("a session ends only by an error")


async def _register(call: _Call, name: str) -> Session:
    await call.write(RegisterTokenizerRequest(registration=TokenizerRegistration(name=name)))
    session: Session = (await _read(call)).session
    return session


async def _read(call: _Call) -> Any:
    response = await call.read()
    if response is grpc.aio.EOF:  # type: ignore[attr-defined]
        raise UnavailableError("the scheduler closed the session")
    return response


@contextmanager
def _dealer(session: Session, key: KeyPair | None) -> Iterator[zmq.asyncio.Socket]:
    socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
    try:
        socket.setsockopt(zmq.ROUTING_ID, session.session_id.encode())
        socket.setsockopt(zmq.LINGER, 0)
        # No limit of its own on either queue: messages are bounded by the requests in flight, and a limit here
        # would make the scheduler's socket drop tokens.
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        if key:
            protect_client(socket, key.public)
        socket.connect(session.endpoint)
        yield socket
    finally:
        socket.close()


def _open_sender(socket: zmq.asyncio.Socket) -> SendMessage:
    def send(message: TokenizerMessage) -> None:
        socket.send(message.SerializeToString())

    # The first message of a session is empty: it tells the scheduler that the socket is connected.
    send(TokenizerMessage())
    return send


async def _send_heartbeats(call: _Call, interval_s: float) -> None:
    while True:
        await asyncio.sleep(interval_s)
        await call.write(RegisterTokenizerRequest(heartbeat=Heartbeat()))


async def _receive_status(call: _Call, peer: SessionPeer) -> None:
    while True:
        peer.on_status((await _read(call)).status)


async def _receive_tokens(socket: zmq.asyncio.Socket, peer: SessionPeer) -> None:
    while True:
        peer.on_tokens(TokenBatch.FromString(await socket.recv()))


async def _watch_connection(socket: zmq.asyncio.Socket) -> None:
    """Ends the session with its ZeroMQ connection: after a reconnect, messages might be missing."""
    monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    await recv_monitor_message(monitor)
    raise UnavailableError("the connection for tokens was lost")


async def _run_until_one_fails(*jobs: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
