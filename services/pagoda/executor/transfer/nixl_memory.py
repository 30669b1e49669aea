"""A KV cache that other processes read through NIXL and its UCX backend, which finds the fastest way: RDMA between
hosts, on one host a copy by the kernel (process_vm_readv).

The receiver reads into memory that only its agent for this one sender writes to, and copies from there: a read that was
begun cannot be taken back, and may still arrive when the sender, which was stopped, goes on. It ends with the agent.

https://github.com/ai-dynamo/nixl/blob/main/docs/nixl.md
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda.executor.transfer.block_memory import BlockMemory, Blocks, Int64, piece_blocks
from pagoda.rpc.hosts import LOOPBACK
from pagoda.v1 import transfer_pb2 as pb

# What is read arrives after so many seconds, or not at all.
_READ_TIMEOUT_S = 5.0

# Defaults for what NIXL and UCX take from the environment.
_ENVIRONMENT = {
    # Reads that the sender's process must answer, as over TCP, are refused: UCX ends that process when the reader dies.
    "UCX_PROTO_EMULATION_ENABLE": "n",
    # A peer that is lost is told of by exceptions.
    "UCX_LOG_LEVEL": "error",
    "NIXL_LOG_LEVEL": "WARN",
}

# Linux's ioctl for the IPv4 address of a network interface, and where in its answer that is.
_SIOCGIFADDR = 0x8915
_ADDRESS = slice(20, 24)

Descriptors = NDArray[np.uint64]
"""[pieces of memory, 3]: address, bytes, device."""


class Handle(Protocol):
    """A read that was begun."""

    def release(self) -> None: ...


class Agent(Protocol):
    """What is used of nixl._api.nixl_agent. For one thread at a time; every method may raise what NIXL likes."""

    def register_memory(self, reg_list: Tensor) -> Any: ...
    def deregister_memory(self, dereg_list: Any) -> None: ...
    def get_agent_metadata(self) -> bytes: ...
    def add_remote_agent(self, metadata: bytes) -> str: ...
    def remove_remote_agent(self, agent: str) -> None: ...
    def get_xfer_descs(self, descs: Descriptors, mem_type: str) -> Any: ...
    def initialize_xfer(self, operation: str, local_descs: Any, remote_descs: Any, remote_agent: str) -> Handle: ...
    def transfer(self, handle: Handle) -> str: ...
    def check_xfer_state(self, handle: Handle) -> str: ...
    def get_new_notifs(self) -> dict[str, list[bytes]]: ...


class Nixl:
    """Makes the agents of this process."""

    def __init__(self, listen: str) -> None:
        """listen: tcp://address:port; agents connect over this address's interface, unless UCX_NET_DEVICES names others

        Raises ValueError when the package is missing, and for an address that no interface of this host has.
        """
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            import nixl._api  # noqa: F401
        except ImportError as error:
            raise ValueError(f"NIXL cannot be used ({error}): pip install 'pagoda[nixl]'") from None
        self._options = {} if "UCX_NET_DEVICES" in os.environ else {"ucx_devices": interface(listen)}

    def agent(self) -> Agent:
        """A new one, without a thread of its own, which would keep a processor busy. Raises OSError."""
        from nixl._api import nixl_agent, nixl_agent_config

        with _os_errors("no agent can be made"):
            agent = nixl_agent(
                f"pagoda-{secrets.token_hex(8)}", nixl_agent_config(enable_prog_thread=False, backends=[])
            )
            agent.create_backend("UCX", self._options)
        return cast(Agent, agent)


class NixlMemory:
    """The sender's end. For one thread at a time."""

    def __init__(self, agent: Agent, cache: Tensor) -> None:
        """cache: contiguous. Raises OSError when it cannot be registered."""
        self._agent = agent
        self._cache = cache
        with _os_errors("the cache cannot be registered"):
            self._registered = agent.register_memory(cache)
            self._metadata = agent.get_agent_metadata()

    def address(self) -> pb.NixlMemory:
        """For readers."""
        return pb.NixlMemory(
            metadata=self._metadata,
            address=self._cache.data_ptr(),
            is_gpu=self._cache.is_cuda,
            device=_device(self._cache),
        )

    def advance(self) -> None:
        """Answers those who want to connect; to be called often while something is to be read."""
        with contextlib.suppress(Exception):  # of one of them, which hears of it by itself
            self._agent.get_new_notifs()

    def close(self) -> None:
        """Nobody can read it any more."""
        with contextlib.suppress(Exception):
            self._agent.deregister_memory(self._registered)
        del self._agent


@dataclass(frozen=True, slots=True)
class _Read:
    handle: Handle
    slot: int
    num_blocks: int
    deadline: float


class NixlSource:
    """The receiver's end, a `Source`."""

    def __init__(
        self,
        agent: Agent,
        address: pb.NixlMemory,
        blocks: BlockMemory,
        *,
        num_blocks: int,
        num_slots: int,
        piece_bytes: int,
    ) -> None:
        """agent: for this sender alone
        blocks: of the receiver's cache; the sender has `num_blocks` of the same kind
        num_slots: reads that may be under way, of `piece_bytes` each

        Raises OSError when the sender is not to be reached.
        """
        self._agent = agent
        self._address = address
        self._blocks = blocks
        self._num_blocks = num_blocks
        # Untouched pages cost nothing.
        self._staging = torch.empty(num_slots, piece_bytes, dtype=torch.uint8)
        # The one that came back last is used first: it is still in the processor's cache.
        self._free = list(range(num_slots - 1, -1, -1))
        self._taken: int | None = None
        self._reads: deque[_Read] = deque()
        with _os_errors("NIXL cannot reach it"):
            self._registered = agent.register_memory(self._staging)
            self._peer = agent.add_remote_agent(address.metadata)

    def begin(self, block_ids: Int64) -> None:
        if not self._free or len(block_ids) * self._blocks.block_bytes > self._staging.shape[1]:
            raise OSError("more is to be read than was agreed upon")
        slot = self._free.pop()
        with _os_errors("NIXL cannot read"):
            ours, theirs = self._descriptors(block_ids, self._staging[slot].data_ptr())
            agent = self._agent
            handle = agent.initialize_xfer(
                "READ",
                agent.get_xfer_descs(ours, _memory_type(self._staging.is_cuda)),
                agent.get_xfer_descs(theirs, _memory_type(self._address.is_gpu)),
                self._peer,
            )
            self._reads.append(_Read(handle, slot, len(block_ids), time.monotonic() + _READ_TIMEOUT_S))
            _check(agent.transfer(handle))

    def take(self) -> Blocks | None:
        if self._taken is not None:
            self._free.append(self._taken)
            self._taken = None
        if not self._reads:
            return None
        read = self._reads[0]
        with _os_errors("NIXL cannot read"):
            if not _check(self._agent.check_xfer_state(read.handle)):
                if time.monotonic() < read.deadline:
                    return None
                raise TimeoutError(f"nothing came in {_READ_TIMEOUT_S:g} s")
            self._reads.popleft()
            self._taken = read.slot
            read.handle.release()
        piece = self._staging[read.slot, : read.num_blocks * self._blocks.block_bytes]
        return piece_blocks(piece, self._blocks.num_parts, read.num_blocks)

    def close(self) -> None:
        for read in self._reads:
            with contextlib.suppress(Exception):
                read.handle.release()
        self._reads.clear()
        with contextlib.suppress(Exception):
            self._agent.remove_remote_agent(self._peer)
        with contextlib.suppress(Exception):
            self._agent.deregister_memory(self._registered)
        # Only without the agent does nobody write there; then the memory may go, too.
        del self._agent
        del self._staging

    def _descriptors(self, block_ids: Int64, staging: int) -> tuple[Descriptors, Descriptors]:
        """Our memory and theirs. Blocks that follow each other are one piece of memory per part."""
        blocks = self._blocks
        firsts = np.flatnonzero(np.diff(block_ids, prepend=-2) != 1)
        sizes = np.diff(firsts, append=len(block_ids)) * blocks.part_bytes
        parts = np.arange(blocks.num_parts)[:, None]
        our_blocks = parts * len(block_ids) + firsts
        their_blocks = parts * self._num_blocks + block_ids[firsts]

        def descriptors(base: int, which: Int64, device: int) -> Descriptors:
            table = np.empty((which.size, 3), np.uint64)
            table[:, 0] = (base + which * blocks.part_bytes).reshape(-1)
            table[:, 1] = np.broadcast_to(sizes, which.shape).reshape(-1)
            table[:, 2] = device
            return table

        ours = descriptors(staging, our_blocks, _device(self._staging))
        return ours, descriptors(self._address.address, their_blocks, self._address.device)


def interface(listen: str) -> str:
    """The network interface that has this address, tcp://host:port.

    Raises ValueError when there is none.
    """
    host = urlsplit(listen.removesuffix(":*")).hostname or ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            wanted = socket.inet_aton("127.0.0.1" if host in LOOPBACK else socket.gethostbyname(host))
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):  # one without an address
                    answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                    if answer[_ADDRESS] == wanted:
                        return name
        except OSError:
            pass
    raise ValueError(f"no network interface of this host has the address {host}; UCX_NET_DEVICES can name some")


def _check(state: str) -> bool:
    """Whether a read is done. Raises ConnectionError when it never will be."""
    if state not in ("DONE", "PROC"):
        raise ConnectionError(f"the read ended with {state}")
    return state == "DONE"


def _device(tensor: Tensor) -> int:
    return max(0, tensor.get_device())


def _memory_type(is_gpu: bool) -> str:
    return "VRAM" if is_gpu else "DRAM"


@contextlib.contextmanager
def _os_errors(what: str) -> Iterator[None]:
    """NIXL's exceptions have no common class but Exception."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{what}: {type(error).__name__}: {error}") from error
