"""Shared memory: what its maker writes others read, nobody else writes, and nothing else is taken for it."""

from __future__ import annotations

import gc
import mmap
import os

import pytest

from pagoda.executor.transfer.shared_memory import SharedMemory, open_shared
from pagoda.v1 import transfer_pb2 as pb

NUM_BYTES = 10_000


def test_a_reader_sees_what_is_written() -> None:
    shared = SharedMemory(NUM_BYTES)
    seen = open_shared(shared.address(), NUM_BYTES)
    assert seen.shape == (NUM_BYTES,)
    assert not seen.any()
    shared.memory[10:13] = b"abc"
    assert seen[9:14].tolist() == [0, *b"abc", 0]


def test_other_files_are_not_opened() -> None:
    shared = SharedMemory(NUM_BYTES)
    address = shared.address()
    for num_bytes in (NUM_BYTES - 1, NUM_BYTES + 1):
        with pytest.raises(OSError, match="not the peer's memory"):
            open_shared(address, num_bytes)
    with pytest.raises(OSError, match="not the peer's memory"):
        open_shared(pb.SharedMemory(pid=address.pid, fd=address.fd, nonce=bytes(16)), NUM_BYTES)
    with pytest.raises(OSError, match="No such file"):
        open_shared(pb.SharedMemory(pid=address.pid, fd=1 << 20, nonce=address.nonce), NUM_BYTES)


def test_memory_that_its_owner_could_take_away_is_not_opened() -> None:
    """A reader would die of it."""
    nonce = bytes(range(16))
    fd = os.memfd_create("not sealed")
    try:
        os.write(fd, bytes(NUM_BYTES) + nonce)
        with pytest.raises(OSError, match="not the peer's memory"):
            open_shared(pb.SharedMemory(pid=os.getpid(), fd=fd, nonce=nonce), NUM_BYTES)
    finally:
        os.close(fd)


def test_a_reader_can_change_nothing() -> None:
    shared = SharedMemory(NUM_BYTES)
    address = shared.address()
    with pytest.raises(ValueError, match="read-only"):
        open_shared(address, NUM_BYTES)[0] = 1
    fd = os.open(f"/proc/{address.pid}/fd/{address.fd}", os.O_RDWR)
    try:
        for size in (0, 1 << 20):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"1", 0)
        with pytest.raises(PermissionError):
            mmap.mmap(fd, NUM_BYTES)
    finally:
        os.close(fd)
    # Its owner still can.
    shared.memory[0] = 7
    assert shared.memory[0] == 7


def test_nothing_is_left_open() -> None:
    gc.collect()
    before = os.listdir("/proc/self/fd")
    shared = SharedMemory(NUM_BYTES)
    seen = open_shared(shared.address(), NUM_BYTES)
    assert len(os.listdir("/proc/self/fd")) > len(before)
    del shared, seen
    gc.collect()
    assert os.listdir("/proc/self/fd") == before
