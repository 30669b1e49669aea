"""Shared memory: what one end writes the other reads, and nothing else is taken for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from pagoda.executor.transfer.mailbox import Mailbox, open_mailbox
from pagoda.v1 import transfer_pb2 as pb


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with closing(Mailbox(3, 100)) as made:
        yield made


def test_both_ends_see_the_same_memory(mailbox: Mailbox) -> None:
    slots = open_mailbox(mailbox.address(), 3, 100)
    assert slots.shape == mailbox.memory.shape == (3, 100)
    slots[1] = 7
    slots[2, 99] = 9
    assert mailbox.memory.sum(axis=1).tolist() == [0, 700, 9]


def test_other_files_are_not_opened(mailbox: Mailbox) -> None:
    address = mailbox.address()
    with pytest.raises(OSError, match="not the peer's mailbox"):
        open_mailbox(address, 4, 100)
    with pytest.raises(OSError, match="not the peer's mailbox"):
        open_mailbox(pb.Mailbox(pid=address.pid, fd=address.fd, nonce=bytes(16)), 3, 100)
    with pytest.raises(OSError, match="No such file"):
        open_mailbox(pb.Mailbox(pid=address.pid, fd=1 << 20, nonce=address.nonce), 3, 100)


def test_a_peer_cannot_take_the_memory_away(mailbox: Mailbox) -> None:
    address = mailbox.address()
    fd = os.open(f"/proc/{address.pid}/fd/{address.fd}", os.O_RDWR)
    try:
        for size in (0, 1 << 20):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
    finally:
        os.close(fd)


def test_nothing_is_left_open() -> None:
    before = os.listdir("/proc/self/fd")
    mailbox = Mailbox(3, 100)
    slots = open_mailbox(mailbox.address(), 3, 100)
    mailbox.close()
    del slots, mailbox
    assert os.listdir("/proc/self/fd") == before
