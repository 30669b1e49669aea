"""A KV cache that other processes of this host read: a file in memory, which nobody but its maker writes.

The file is a memfd: it has no name in any file system, and is gone with the last process that has it mapped. Peers open
it through /proc, which the kernel allows to the same user in the same PID namespace: in another container, the numbers
are of another file or of none, which the nonce tells.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import weakref

import numpy as np
from numpy.typing import NDArray

from pagoda.executor.huge_pages import advise
from pagoda.v1 import transfer_pb2 as pb

_NONCE_BYTES = 16
# Python has no name for it before 3.14: only mappings that are there already can be written to.
_F_SEAL_FUTURE_WRITE = 0x0010
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE


class SharedMemory:
    """The writer's end. Zeroed; pages that are never used cost nothing."""

    def __init__(self, num_bytes: int) -> None:
        """Raises OSError when there is no memory or file descriptor left."""
        self._fd = os.memfd_create("pagoda-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self._fd)
        os.ftruncate(self._fd, num_bytes + _NONCE_BYTES)
        self._nonce = secrets.token_bytes(_NONCE_BYTES)
        os.pwrite(self._fd, self._nonce, num_bytes)
        self.memory = mmap.mmap(self._fd, num_bytes)
        # No peer can change it, or take it away from under a copy.
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _SEALS)
        advise(self.memory)

    def address(self) -> pb.SharedMemory:
        """For readers."""
        return pb.SharedMemory(pid=os.getpid(), fd=self._fd, nonce=self._nonce)


def open_shared(address: pb.SharedMemory, num_bytes: int) -> NDArray[np.uint8]:
    """The memory of another process, [num_bytes], to be read; unmapped when the last array that refers to it is gone.

    Raises OSError when it cannot be opened from here.
    """
    path = f"/proc/{address.pid}/fd/{address.fd}"
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        size, nonce = os.fstat(fd).st_size, os.pread(fd, _NONCE_BYTES, num_bytes)
        if size != num_bytes + _NONCE_BYTES or nonce != address.nonce or fcntl.fcntl(fd, fcntl.F_GET_SEALS) != _SEALS:
            raise OSError(f"{path} is not the peer's memory")
        return np.frombuffer(mmap.mmap(fd, num_bytes, prot=mmap.PROT_READ), np.uint8)
    finally:
        os.close(fd)
