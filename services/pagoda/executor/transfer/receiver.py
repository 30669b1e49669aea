"""The receiving side: leases on the blocks of one cache, and a thread that copies into it what senders push.

It copies beside the steps that run: a leased block belongs to no running row.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar, cast

import zmq
from google.protobuf.message import DecodeError
from torch import Tensor

from pagoda.executor.transfer.allocator import keep_freed_memory
from pagoda.executor.transfer.block_memory import Int64, block_memory
from pagoda.executor.transfer.endpoints import Endpoint, check_listen, host_id
from pagoda.executor.transfer.intake import BadMessageError, Intake, as_bytes
from pagoda.executor.transfer.leases import Leases
from pagoda.executor.transfer.nixl_memory import Nixl
from pagoda.executor.transfer.reports import Counters, Reason, Signal, to_problem
from pagoda.rpc.curve import KeyPair
from pagoda.v1 import common_pb2
from pagoda.v1 import transfer_pb2 as pb

T = TypeVar("T")

logger = logging.getLogger(__name__)

# What is read before receipts are sent and the clock is looked at.
_MESSAGES_PER_TURN = 4

# How often links that are over are looked for, in seconds.
_SWEEP_INTERVAL_S = 1.0

# How long messages are waited for while blocks are being read that were not there at once, in milliseconds.
_READ_INTERVAL_MS = 1

# A message's frames beside the piece.
_HEADER_BYTES = 4096


class Receiver:
    """Usable from any thread."""

    def __init__(
        self,
        cache: Tensor,
        block_axis: int,
        layout: common_pb2.KvLayout,
        *,
        listen: str | None = "tcp://127.0.0.1:*",
        curve: KeyPair | None = None,
        window_bytes: int = 64 << 20,
        max_links: int = 64,
        max_leases: int = 4096,
        idle_timeout_s: float = 60.0,
        nixl: Nixl | None = None,
    ) -> None:
        """Listens from now on, and copies in a thread of its own.

        cache: contiguous; block i is what has the index i on `block_axis`
        layout: what senders must have, too, but for the number of blocks
        listen: for other hosts, if any; on loopback, or with `curve`, whose public key becomes part of the endpoint
        window_bytes: of blocks on their way from one sender
        max_links: senders at a time
        idle_timeout_s: after which a silent sender is taken for gone
        nixl: to read senders' memory through it; they connect to `listen`

        Raises ValueError for an address that would be open to others, and OSError for one that cannot be bound.
        """
        if listen is not None:
            check_listen(listen, encrypted=curve is not None)
        blocks = block_memory(cache, block_axis)
        keep_freed_memory(window_bytes)
        self._news, self._wake = Signal(), Signal()
        self._leases = Leases(blocks, max_leases, self._news.set)
        self._intake = Intake(
            self._leases,
            layout,
            blocks,
            window_bytes=window_bytes,
            max_links=max_links,
            idle_timeout_s=idle_timeout_s,
            nixl=nixl,
        )
        self._device = blocks.device
        self._nixl = nixl
        self._curve = curve
        # In Linux's abstract namespace: it has no file that could be left behind.
        self._name = f"pagoda-kv-{os.getpid()}-{secrets.token_hex(8)}"
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._bind(listen)
        bound = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._tcp = None if listen is None else bound.removeprefix("tcp://")
        # Links from whose sources more is being read.
        self._reading: set[bytes] = set()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="kv-receive", daemon=True)
        self._thread.start()

    @property
    def endpoints(self) -> list[str]:
        """For senders, the best first. Others need not know them, and after `reset` they are others."""
        session, key = self._leases.session, self._curve.public if self._curve else None
        here = f"{host_id()}/{self._name}"
        addresses = {
            "cuda": here if self._device.type == "cuda" else None,
            "shm": here,
            "nixl": self._tcp if self._nixl else None,
            "tcp": self._tcp,
        }
        return [str(Endpoint(scheme, address, session, key)) for scheme, address in addresses.items() if address]

    def fileno(self) -> int:
        """Readable when there are arrivals or failures to take."""
        return self._news.fileno()

    def grant(self, transfer_id: int, block_ids: Sequence[int] | Int64, deadline_s: float) -> None:
        """Pushes of `transfer_id` may write block_ids[i] for position i, each once, for `deadline_s` seconds from now.

        The lease ends by itself when all has arrived. Raises ValueError as `Leases.grant` does.
        """
        next_deadline = self._leases.next_deadline
        self._leases.grant(transfer_id, block_ids, deadline_s)
        if self._leases.next_deadline < next_deadline:
            self._wake.set()

    def revoke(self, transfer_id: int) -> None:
        """When it returns, nothing of the transfer will be written any more."""
        self._leases.revoke(transfer_id)

    def reset(self) -> None:
        """Revokes everything, ends all links and changes the endpoints: for a new session."""
        self._leases.reset()
        self._wake.set()

    def take_arrivals(self) -> list[tuple[int, int]]:
        """(transfer id, positions that have arrived so far) of transfers with news since the last call."""
        return self._take(self._leases.take_arrivals)

    def take_failures(self) -> list[tuple[int, Reason]]:
        """Transfers whose lease ended too early, TIMEOUT or CORRUPT; nothing of them is written any more."""
        return self._take(self._leases.take_failures)

    def counters(self) -> Counters:
        """What has arrived, and what was dropped."""
        return self._leases.counters()

    def close(self) -> None:
        """Ends the thread; nothing is written any more."""
        self._stopped = True
        self._wake.set()
        self._thread.join()
        self._socket.close(linger=0)
        self._context.term()
        self._wake.close()
        self._news.close()

    def _take(self, take: Callable[[], list[T]]) -> list[T]:
        self._news.clear()
        taken = take()
        if self._leases.has_news:
            self._news.set()
        return taken

    def _bind(self, listen: str | None) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, self._intake.max_piece_bytes + _HEADER_BYTES)
        if self._curve:
            self._curve.protect_server(socket)
        try:
            socket.bind(f"ipc://@{self._name}")
            if listen is not None:
                socket.bind(listen)
        except zmq.ZMQError as error:
            socket.close(linger=0)
            self._context.term()
            raise OSError(f"cannot bind {listen}: {error}") from error
        return socket

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        next_sweep = 0.0
        while not self._stopped:
            deadline = min(self._leases.next_deadline, next_sweep if self._intake.links else math.inf)
            wait_ms = None if deadline == math.inf else max(0, math.ceil((deadline - time.monotonic()) * 1000))
            if self._reading:
                wait_ms = _READ_INTERVAL_MS
            # ZeroMQ names what is not a socket of its own by its file descriptor.
            woken = self._wake.fileno() in dict(poller.poll(wait_ms))
            self._read()
            self._leases.expire()
            if woken or time.monotonic() >= next_sweep:
                self._wake.clear()
                self._sweep()
                next_sweep = time.monotonic() + _SWEEP_INTERVAL_S
        for name in list(self._intake.links):
            self._intake.drop(name)

    def _read(self) -> None:
        touched = self._reading
        for _ in range(_MESSAGES_PER_TURN):
            if not cast(int, self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                break
            name, data, *rest = self._socket.recv_multipart(copy=False)
            touched.add(name.bytes)
            content = rest[0].buffer if rest else None
            self._guard(name.bytes, partial(self._handle, data=data.bytes, content=content))
        self._reading = {each for each in touched if not self._guard(each, self._intake.advance)}
        for each in touched:
            link = self._intake.links.get(each)
            if link is not None and link.receipts.slots:
                self._send(each, pb.TransferResponse(receipts=link.receipts))
                link.receipts.Clear()

    def _handle(self, name: bytes, data: bytes, content: memoryview | None) -> None:
        """Raises DecodeError and BadMessageError."""
        request = pb.TransferRequest.FromString(data)
        match request.WhichOneof("message"):
            case "hello":
                self._send(name, pb.TransferResponse(welcome=self._intake.hello(name, request.hello)))
            case "push":
                self._intake.push(name, request.push, None if content is None else as_bytes(content))
            case "bye":
                self._intake.drop(name)
            case _:
                raise BadMessageError("a message that is not known")

    def _guard(self, name: bytes, do: Callable[[bytes], T]) -> T | None:
        """What `do` returns for a link, which ends if it raises."""
        try:
            return do(name)
        except DecodeError:
            self._refuse(name, BadMessageError("a message that cannot be read"))
        except BadMessageError as error:
            self._refuse(name, error)
        except Exception as error:  # one that nobody has thought of; the thread goes on for the other senders
            logger.exception("KV blocks: a message could not be handled")
            self._refuse(name, BadMessageError(f"the receiver failed: {type(error).__name__}"))
        return None

    def _sweep(self) -> None:
        for name in self._intake.over():
            self._end(name, Reason.REFUSED, "the session is over, or the link was silent")
        # ZeroMQ does not tell of senders that are gone, unless something is sent to them.
        for name in list(self._intake.links):
            self._send(name, pb.TransferResponse(receipts=pb.TransferReceipts()))

    def _refuse(self, name: bytes, error: BadMessageError) -> None:
        logger.warning("a sender of KV blocks is refused: %s", error.message)
        self._leases.count_failure(error.reason)
        self._end(name, error.reason, error.message)

    def _end(self, name: bytes, reason: Reason, message: str) -> None:
        self._intake.drop(name)
        self._send(name, pb.TransferResponse(refusal=pb.TransferRefusal(problem=to_problem(reason), message=message)))

    def _send(self, name: bytes, response: pb.TransferResponse) -> None:
        try:
            self._socket.send_multipart([name, response.SerializeToString()], zmq.NOBLOCK)
        except zmq.ZMQError:  # it is gone, or does not read
            self._intake.drop(name)
