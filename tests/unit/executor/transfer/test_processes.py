"""Ends in processes of their own, which are stopped and killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transfer_ends import (
    EMPTY,
    NUM_BLOCKS,
    TRANSPORTS,
    MakeReceiver,
    MakeSender,
    block,
    empty_cache,
    full_cache,
    is_empty,
    mapped_sources,
    poll,
    through,
    wait_for_arrivals,
    wait_for_failures,
)

from pagoda.executor.transfer.reports import Reason

pytestmark = [pytest.mark.timeout(60), pytest.mark.parametrize("transport", TRANSPORTS)]


class Child:
    """transfer_child.py in one of its roles."""

    def __init__(self, role: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("transfer_child.py")), role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, **order: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def signal(self, number: signal.Signals) -> None:
        """Returns when it has had its effect."""
        self.process.send_signal(number)
        if number is signal.SIGKILL:
            self.process.wait()
        if number is signal.SIGSTOP:
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)


@contextmanager
def child(role: str) -> Iterator[Child]:
    started = Child(role)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


def left_behind(pid: int) -> list[str]:
    """Sockets of a process that is gone; shared memory has no name."""
    sockets = Path("/proc/net/unix").read_text().splitlines()
    return [line for line in sockets if f"pagoda-kv-{pid}-" in line] + [
        name for name in os.listdir("/dev/shm") if "pagoda" in name
    ]


def test_a_sender_that_wakes_too_late_writes_nothing(
    transport: str, make_receiver: MakeReceiver, make_sender: MakeSender
) -> None:
    target = empty_cache()
    receiver, other = make_receiver(target), make_sender(full_cache(1 << 20))
    endpoints = through(transport, receiver)
    with child("sender") as sleeper:
        receiver.grant(1, list(range(20)), 60)
        sleeper.tell(endpoints=endpoints, transfer_id=1, first=0, blocks=list(range(10)))
        assert sleeper.hear() == "pushed"
        wait_for_arrivals(receiver, {1: 10})
        sleeper.signal(signal.SIGSTOP)
        sleeper.tell(endpoints=endpoints, transfer_id=1, first=10, blocks=list(range(10, 20)))
        receiver.revoke(1)
        # The blocks belong to somebody else now.
        receiver.grant(2, list(range(20)), 60)
        other.push(endpoints, 2, 0, range(20))
        wait_for_arrivals(receiver, {2: 20})
        sleeper.signal(signal.SIGCONT)
        assert {sleeper.hear(), sleeper.hear()} == {"pushed", "failed 1 refused"}
    assert receiver.counters().late_blocks > 0
    assert torch.equal(target.view(torch.int16)[:, :, :20], full_cache(1 << 20).view(torch.int16)[:, :, :20])


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_sender_that_ends_at_any_moment(
    transport: str, number: signal.Signals, make_receiver: MakeReceiver, make_sender: MakeSender
) -> None:
    """What has arrived is right, the rest is untouched, and neither changes once the lease is revoked."""
    target, source = empty_cache(), full_cache()
    receiver = make_receiver(target)
    endpoints = through(transport, receiver)
    rng = random.Random(5)
    with child("sender") as pushing:
        pushing.tell(endpoints=endpoints, transfer_id=0, first=0, blocks=[0])  # it connects
        assert {pushing.hear(), pushing.hear()} == {"pushed", "failed 0 refused"}
        receiver.grant(1, list(range(NUM_BLOCKS)), 60)
        for first in range(NUM_BLOCKS):
            pushing.tell(endpoints=endpoints, transfer_id=1, first=first, blocks=[first])
        time.sleep(rng.random() * 0.005)
        pushing.signal(number)
        receiver.revoke(1)
        after = target.clone()
        if number is signal.SIGSTOP:
            pushing.signal(signal.SIGCONT)
            for _ in range(NUM_BLOCKS):
                assert pushing.hear()
        else:
            assert left_behind(pushing.process.pid) == []
            poll(lambda: mapped_sources() == 0, "its memory is not mapped any more")
        assert torch.equal(target.view(torch.int16), after.view(torch.int16))
        for each in range(NUM_BLOCKS):
            assert is_empty(target, each) or torch.equal(block(target, each), block(source, each))
        # Another one is served as before, and of this one nothing is kept.
        receiver.grant(2, [0], 60)
        block(target, 0)[:] = EMPTY
        make_sender().push(endpoints, 2, 0, [7])
        wait_for_arrivals(receiver, {2: 1})
        assert torch.equal(block(target, 0), block(source, 7))
        if number is signal.SIGKILL:
            poll(lambda: len(receiver._intake.links) == 1, "its link has ended, and ours has not")


def test_a_receiver_that_is_killed(transport: str, make_sender: MakeSender) -> None:
    sender = make_sender()
    with child("receiver") as receiving:
        (endpoint,) = [each for each in json.loads(receiving.hear()) if each.startswith(transport)]
        sender.push([endpoint], 1, 0, range(10))
        poll(lambda: all(each.outbox.is_idle for each in sender._connections.values()), "it has all arrived")
        receiving.signal(signal.SIGSTOP)
        sender.push([endpoint], 1, 10, range(10, 20))
        receiving.signal(signal.SIGKILL)
        # At once, not only after timeout_s.
        wait_for_failures(sender, [(1, Reason.UNREACHABLE)])
        assert left_behind(receiving.process.pid) == []
    sender.push([endpoint], 2, 0, [0])
    wait_for_failures(sender, [(2, Reason.UNREACHABLE)])
