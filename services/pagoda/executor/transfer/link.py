"""One connection of a sender: tries a receiver's endpoints until one answers, and carries messages. For one thread.

Messages in, messages out; what they are about is the sender's business. A connection is never made again: ZeroMQ would
do so by itself, and the receiver's next life would get what was meant for the one before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import zmq
from google.protobuf.message import DecodeError

from pagoda.executor.transfer.block_memory import Bytes
from pagoda.executor.transfer.endpoints import Endpoint
from pagoda.executor.transfer.reports import Reason, from_problem
from pagoda.rpc.curve import protect_client
from pagoda.v1 import transfer_pb2 as pb

logger = logging.getLogger(__name__)

Socket = zmq.Socket[bytes]

# The network may be silent for so long before the peer is taken for gone, in milliseconds.
_HEARTBEAT_MS = 5000

# What the kernel may hold of what is sent within a host. By itself it takes megabytes, which have left the processor's
# caches when the receiver comes to them: that takes half as long again. Between hosts it finds out how much must be
# under way.
_LOCAL_BUFFER_BYTES = 256 << 10

# What a connection's end looks like, before it is made and after.
_ENDS = (
    zmq.Event.CLOSED
    | zmq.Event.DISCONNECTED
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
)


class BrokenError(Exception):
    """The link is over."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Opened:
    """What the receiver offers."""

    num_slots: int
    idle_timeout_s: float
    reads: bool
    """It reads the sender's memory: pieces go without content."""


class Link:
    """Begins to connect at once."""

    def __init__(
        self,
        context: zmq.Context[Socket],
        candidates: list[Endpoint],
        hellos: Mapping[str, pb.TransferHello],
        *,
        connect_timeout_s: float,
        now: float,
    ) -> None:
        """hellos: by the endpoint's scheme; without the session

        Raises BrokenError when no endpoint can be tried.
        """
        self.opened: Opened | None = None
        """None until a receiver has answered."""
        self._context = context
        self._candidates = candidates
        self._hellos = hellos
        self._connect_timeout_s = connect_timeout_s
        self._problem = BrokenError(Reason.UNREACHABLE, "the peer has no endpoint that can be reached from here")
        self._connect(now)

    @property
    def sockets(self) -> tuple[Socket, Socket]:
        """To wait for: messages, and the end of the connection."""
        return self._socket, self._monitor

    @property
    def connect_deadline(self) -> float | None:
        """Call `check` by then; None when connected."""
        return self._deadline if self.opened is None else None

    def check(self, now: float) -> None:
        """Goes on to the next endpoint if this one is dead, or does not answer. Raises BrokenError."""
        if self._has_input(self._monitor):
            self._fail(BrokenError(Reason.UNREACHABLE, "the connection is gone"), now)
        elif self.opened is None and now >= self._deadline:
            self._fail(BrokenError(Reason.UNREACHABLE, f"no answer in {self._connect_timeout_s:g} s"), now)

    def receive(self, now: float) -> Iterator[pb.TransferReceipts]:
        """Receipts that have come; `opened` may be there, too. Raises BrokenError."""
        socket = self._socket
        while socket is self._socket and self._has_input(socket):
            try:
                response = pb.TransferResponse.FromString(socket.recv(zmq.NOBLOCK))
            except DecodeError:
                raise BrokenError(Reason.REFUSED, "the peer sends what cannot be read") from None
            match response.WhichOneof("message"):
                case "welcome":
                    reads = self._hellos[self._endpoint.scheme].WhichOneof("source") is not None
                    self.opened = Opened(response.welcome.num_slots, response.welcome.idle_timeout_s, reads)
                    logger.info("KV blocks: connected to %s", self._endpoint.socket)
                case "refusal":
                    problem = BrokenError(from_problem(response.refusal.problem), response.refusal.message)
                    self._fail(problem, now)
                case "receipts":
                    yield response.receipts

    def send(self, push: pb.BlockPush, content: Bytes | None) -> None:
        """Sends a piece. `content` must stay as it is until the receipt. Raises BrokenError."""
        request = pb.TransferRequest(push=push).SerializeToString()
        try:
            if content is None:
                self._socket.send(request, zmq.NOBLOCK)
            else:
                self._socket.send(request, zmq.SNDMORE | zmq.NOBLOCK)
                self._socket.send(content.data, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            raise BrokenError(Reason.UNREACHABLE, "the connection is gone") from None

    def close(self) -> None:
        """Says goodbye, if there is somebody."""
        if self.opened is not None:
            self._say_bye()
        self._disconnect()

    def _connect(self, now: float) -> None:
        """To the next candidate."""
        if not self._candidates:
            raise self._problem
        self._endpoint = self._candidates.pop(0)
        self._deadline = now + self._connect_timeout_s
        socket = self._context.socket(zmq.DEALER)
        socket.reconnect_ivl = -1
        # Credits bound what is under way.
        socket.sndhwm = socket.rcvhwm = 0
        # Bye may leave after the socket is closed.
        socket.linger = 100
        socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        if self._endpoint.is_local:
            socket.sndbuf = _LOCAL_BUFFER_BYTES
        if self._endpoint.curve_key:
            # Whether we may connect, the session's word says.
            protect_client(socket, self._endpoint.curve_key)
        self._socket, self._monitor = socket, socket.get_monitor_socket(_ENDS)
        hello = pb.TransferHello(session=self._endpoint.session)
        hello.MergeFrom(self._hellos[self._endpoint.scheme])
        try:
            socket.connect(self._endpoint.socket)
            socket.send(pb.TransferRequest(hello=hello).SerializeToString(), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            self._fail(BrokenError(Reason.UNREACHABLE, str(error)), now)

    def _fail(self, problem: BrokenError, now: float) -> None:
        """Goes on to the next endpoint; raises `problem` when there is none, or when the link was open."""
        self._disconnect()
        self._problem = problem
        if self.opened is not None:
            raise problem
        logger.info("KV blocks: %s cannot be used: %s", self._endpoint.socket, problem)
        self._connect(now)

    def _say_bye(self) -> None:
        try:
            self._socket.send(pb.TransferRequest(bye=pb.TransferBye()).SerializeToString(), zmq.NOBLOCK)
        except zmq.ZMQError:
            return

    def _disconnect(self) -> None:
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._socket.close()

    @staticmethod
    def _has_input(socket: Socket) -> bool:
        return bool(cast(int, socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
