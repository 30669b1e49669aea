"""Memory that a sender fills and a receiver empties, on one host.

The receiver makes a mailbox for one link and never uses it for another. A sender that was stopped in the middle of a
copy and goes on much later writes into its own mailbox, which nobody reads any more.

A mailbox is a memfd: it has no name in any file system, and is gone with the last process that has it open. Peers open
it through /proc, which the kernel allows to the same user in the same PID namespace: in another container, the numbers
are of another file or of none, which the nonce tells.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets

import numpy as np

from pagoda.executor.transfer.slots import Bytes
from pagoda.v1 import transfer_pb2 as pb

# Before the slots; a page, so that these begin on one.
_HEADER_BYTES = 4096
_NONCE_BYTES = 16


class Mailbox:
    """The receiver's end."""

    def __init__(self, num_slots: int, slot_bytes: int) -> None:
        """Raises OSError when there is no memory or file descriptor left."""
        self._fd = os.memfd_create("pagoda-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._fd, _HEADER_BYTES + num_slots * slot_bytes)
            # No peer can take memory away from under a copy.
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self._nonce = secrets.token_bytes(_NONCE_BYTES)
            os.pwrite(self._fd, self._nonce, 0)
            self.memory = _map(self._fd, num_slots, slot_bytes)
        except OSError:
            os.close(self._fd)
            raise

    def address(self) -> pb.Mailbox:
        """For the sender."""
        return pb.Mailbox(pid=os.getpid(), fd=self._fd, nonce=self._nonce)

    def close(self) -> None:
        """The memory is free when the sender has unmapped it, too."""
        os.close(self._fd)


def open_mailbox(address: pb.Mailbox, num_slots: int, slot_bytes: int) -> Bytes:
    """The slots of a receiver's mailbox, [num_slots, slot_bytes].

    Raises OSError when it cannot be opened from here.
    """
    path = f"/proc/{address.pid}/fd/{address.fd}"
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        size = os.fstat(fd).st_size
        if size != _HEADER_BYTES + num_slots * slot_bytes or os.pread(fd, _NONCE_BYTES, 0) != address.nonce:
            raise OSError(f"{path} is not the peer's mailbox")
        return _map(fd, num_slots, slot_bytes)
    finally:
        os.close(fd)


def _map(fd: int, num_slots: int, slot_bytes: int) -> Bytes:
    """Unmapped when the last array that refers to it is gone."""
    memory = mmap.mmap(fd, _HEADER_BYTES + num_slots * slot_bytes)
    return np.frombuffer(memory, np.uint8, offset=_HEADER_BYTES).reshape(num_slots, slot_bytes)
