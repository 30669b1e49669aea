"""Reading through NIXL: with agents whose reads arrive when a test says so, and with real ones, where they are there.

That blocks get where they belong by it, from processes that are stopped and killed, too, the other tests here tell.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transfer_ends import BLOCK_BYTES, LAYOUT, NIXL, NUM_BLOCKS, empty_cache, full_cache, poll

from pagoda.executor.transfer import nixl_memory
from pagoda.executor.transfer.block_memory import Blocks, block_memory
from pagoda.executor.transfer.intake import BadMessageError, Intake
from pagoda.executor.transfer.leases import Leases
from pagoda.executor.transfer.nixl_memory import Nixl, NixlMemory, NixlSource, interface
from pagoda.executor.transfer.reports import Reason
from pagoda.executor.transfers import make_transfers
from pagoda.v1 import transfer_pb2 as pb

NUM_SLOTS = 3


class FakeRead:
    def __init__(self, ours: Any, theirs: Any) -> None:
        self.ours, self.theirs = ours, theirs
        self.state = "PROC"
        self.is_released = False

    def arrive(self) -> None:
        for (target, num_bytes, _), (source, length, _) in zip(self.ours.tolist(), self.theirs.tolist(), strict=True):
            assert num_bytes == length
            ctypes.memmove(target, source, num_bytes)
        self.state = "DONE"

    def release(self) -> None:
        self.is_released = True


class FakeAgent:
    """In the place of a real one."""

    def __init__(self) -> None:
        self.reads: list[FakeRead] = []
        self.broken: set[str] = set()
        """Methods that raise."""

    def __getattribute__(self, name: str) -> Any:
        if name in object.__getattribute__(self, "__dict__").get("broken", ()):
            raise RuntimeError(f"{name} is broken")
        return object.__getattribute__(self, name)

    def register_memory(self, reg_list: torch.Tensor) -> str:
        assert reg_list.is_contiguous()
        return "registered"

    def deregister_memory(self, dereg_list: str) -> None:
        assert dereg_list == "registered"

    def get_agent_metadata(self) -> bytes:
        return b"metadata"

    def add_remote_agent(self, metadata: bytes) -> str:
        assert metadata == b"metadata"
        return "peer"

    def remove_remote_agent(self, agent: str) -> None:
        assert agent == "peer"

    def get_xfer_descs(self, descs: Any, mem_type: str) -> Any:
        assert mem_type == "DRAM"
        return descs

    def initialize_xfer(self, operation: str, local_descs: Any, remote_descs: Any, remote_agent: str) -> FakeRead:
        assert (operation, remote_agent) == ("READ", "peer")
        self.reads.append(FakeRead(local_descs, remote_descs))
        return self.reads[-1]

    def transfer(self, handle: FakeRead) -> str:
        return handle.state

    def check_xfer_state(self, handle: FakeRead) -> str:
        return handle.state

    def get_new_notifs(self) -> dict[str, list[bytes]]:
        return {}


@pytest.fixture
def agent() -> FakeAgent:
    return FakeAgent()


@pytest.fixture
def sent() -> torch.Tensor:
    return full_cache()


@pytest.fixture
def source(agent: FakeAgent, sent: torch.Tensor) -> NixlSource:
    """Reads pieces of up to four blocks of `sent`."""
    address = NixlMemory(FakeAgent(), sent).address()
    blocks = block_memory(empty_cache(), 2)
    return NixlSource(agent, address, blocks, num_blocks=NUM_BLOCKS, num_slots=NUM_SLOTS, piece_bytes=4 * BLOCK_BYTES)


def content(blocks: Blocks | None) -> torch.Tensor:
    assert blocks is not None
    return blocks.source[:, blocks.ids]


def expected(cache: torch.Tensor, block_ids: list[int]) -> torch.Tensor:
    parts = cache.view(6, NUM_BLOCKS, -1).view(torch.uint8)
    return parts[:, block_ids]


@pytest.mark.parametrize("block_ids", [[5], [5, 6, 7], [7, 6, 5], [0, 1, NUM_BLOCKS - 2, NUM_BLOCKS - 1], [3, 3, 4]])
def test_what_is_read(source: NixlSource, agent: FakeAgent, sent: torch.Tensor, block_ids: list[int]) -> None:
    source.begin(np.array(block_ids))
    assert source.take() is None
    agent.reads[0].arrive()
    assert torch.equal(content(source.take()), expected(sent, block_ids))
    assert source.take() is None
    assert agent.reads[0].is_released


def test_blocks_that_follow_each_other_are_read_at_once(source: NixlSource, agent: FakeAgent) -> None:
    source.begin(np.array([8, 9, 10, 4]))
    part_bytes = BLOCK_BYTES // 6
    assert agent.reads[0].theirs[:, 1].tolist() == [3 * part_bytes, part_bytes] * 6


def test_reads_are_taken_in_their_order(source: NixlSource, agent: FakeAgent, sent: torch.Tensor) -> None:
    for first in (0, 10, 20):
        source.begin(np.array([first, first + 2]))
    agent.reads[1].arrive()
    assert source.take() is None
    agent.reads[0].arrive()
    assert torch.equal(content(source.take()), expected(sent, [0, 2]))
    assert torch.equal(content(source.take()), expected(sent, [10, 12]))
    assert source.take() is None
    # Their memory is used again, but not that of the third.
    for first in (30, 40):
        source.begin(np.array([first]))
    for each in agent.reads[2:]:
        each.arrive()
    for block_ids in ([20, 22], [30], [40]):
        assert torch.equal(content(source.take()), expected(sent, block_ids))


def test_no_more_is_read_than_there_is_room_for(source: NixlSource) -> None:
    with pytest.raises(OSError, match="agreed"):
        source.begin(np.arange(5))
    for first in range(NUM_SLOTS):
        source.begin(np.array([first]))
    with pytest.raises(OSError, match="agreed"):
        source.begin(np.array([9]))


def break_state(agent: FakeAgent) -> None:
    agent.reads[0].state = "ERR"


def break_check(agent: FakeAgent) -> None:
    agent.broken.add("check_xfer_state")


@pytest.mark.parametrize("happen", [break_state, break_check])
def test_a_read_that_fails(source: NixlSource, agent: FakeAgent, happen: Callable[[FakeAgent], None]) -> None:
    source.begin(np.array([1]))
    happen(agent)
    with pytest.raises(OSError, match="NIXL cannot read"):
        source.take()
    source.close()


def test_a_read_that_never_ends(source: NixlSource, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nixl_memory, "_READ_TIMEOUT_S", 0.0)
    source.begin(np.array([1]))
    with pytest.raises(OSError, match="nothing came in 0 s"):
        source.take()


@pytest.mark.parametrize("broken", [set(), {"remove_remote_agent", "deregister_memory"}], ids=str)
def test_at_the_end_there_is_no_agent_that_could_write(source: NixlSource, broken: set[str]) -> None:
    own = NixlSource(
        FakeAgent(), source._address, source._blocks, num_blocks=NUM_BLOCKS, num_slots=2, piece_bytes=BLOCK_BYTES
    )
    other = own._agent
    assert isinstance(other, FakeAgent)
    own.begin(np.array([1]))
    read, gone = other.reads[0], weakref.ref(other)
    other.broken = broken
    del other
    assert gone() is not None
    own.close()
    assert read.is_released
    gc.disable()  # not even for a while
    try:
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("broken", ["register_memory", "add_remote_agent"])
def test_a_sender_that_cannot_be_reached(source: NixlSource, broken: str) -> None:
    """It is told, and may try another way."""
    blocks, agent = source._blocks, FakeAgent()
    agent.broken.add(broken)
    nixl: Any = SimpleNamespace(agent=lambda: agent)
    leases = Leases(blocks, 9, lambda: None)

    def intake(nixl: Nixl | None) -> Intake:
        return Intake(leases, LAYOUT, blocks, window_bytes=1 << 20, max_links=9, idle_timeout_s=9, nixl=nixl)

    hello = pb.TransferHello(
        session=leases.session, layout=LAYOUT, block_bytes=BLOCK_BYTES, piece_bytes=BLOCK_BYTES, nixl=source._address
    )
    hello.layout.num_blocks = NUM_BLOCKS
    for each, message in ((nixl, f"{broken} is broken"), (None, "not used here")):
        with pytest.raises(BadMessageError, match=message) as caught:
            intake(each).hello(b"name", hello)
        assert caught.value.reason is Reason.UNREACHABLE


def test_a_cache_that_cannot_be_registered(sent: torch.Tensor) -> None:
    agent = FakeAgent()
    agent.broken.add("register_memory")
    with pytest.raises(OSError, match="the cache cannot be registered"):
        NixlMemory(agent, sent)


def test_the_interface_of_an_address() -> None:
    assert interface("tcp://127.0.0.1:*") == interface("tcp://localhost:4711") == "lo"
    with pytest.raises(ValueError, match=r"198\.51\.100\.1"):  # kept for documents, RFC 5737
        interface("tcp://198.51.100.1:*")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, sent: torch.Tensor) -> None:
    monkeypatch.setitem(sys.modules, "nixl", None)
    monkeypatch.setitem(sys.modules, "nixl._api", None)
    runner: Any = SimpleNamespace(cache=sent, layout=SimpleNamespace(), shared_memory=None)
    monkeypatch.setattr("pagoda.executor.transfers.describe_layout", lambda _: LAYOUT)
    with pytest.raises(ValueError, match=r"--transfer nixl.*pip install 'pagoda\[nixl\]'"):
        make_transfers(runner, "tcp://127.0.0.1:*", only="nixl", encrypted=False)


def real_source(address: pb.NixlMemory) -> NixlSource:
    assert NIXL
    return NixlSource(
        NIXL.agent(),
        address,
        block_memory(empty_cache(), 2),
        num_blocks=NUM_BLOCKS,
        num_slots=2,
        piece_bytes=8 * BLOCK_BYTES,
    )


@pytest.mark.skipif(NIXL is None, reason="NIXL is not installed")
class TestRealAgents:
    def test_one_reads_from_the_other(self, sent: torch.Tensor) -> None:
        assert NIXL
        memory = NixlMemory(NIXL.agent(), sent)
        source = real_source(memory.address())
        for block_ids in ([1, 2, 3, 9, 8], [40, 47, 0]):
            source.begin(np.array(block_ids))
            while (blocks := source.take()) is None:
                memory.advance()
            assert torch.equal(content(blocks), expected(sent, block_ids))
        memory.close()
        source.close()

    def test_metadata_that_is_none(self) -> None:
        assert NIXL
        with pytest.raises(OSError, match="NIXL cannot reach it"):
            real_source(pb.NixlMemory(metadata=b"nothing", address=4096))

    def test_a_sender_that_does_not_answer(self, sent: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
        """As one that is stopped: its agent is there, but does nothing."""
        assert NIXL
        monkeypatch.setattr(nixl_memory, "_READ_TIMEOUT_S", 0.2)
        memory = NixlMemory(NIXL.agent(), sent)
        source = real_source(memory.address())
        source.begin(np.array([1]))
        with pytest.raises(OSError, match="nothing came in"):
            poll(lambda: source.take() is not None, "it was read")
        source.close()
        memory.close()

    def test_what_the_sender_would_have_to_answer_is_refused(
        self, sent: torch.Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """UCX would end its process when the one that reads is killed."""
        assert NIXL
        monkeypatch.setenv("UCX_TLS", "tcp,self")
        memory = NixlMemory(NIXL.agent(), sent)
        source = real_source(memory.address())

        def read() -> bool:
            memory.advance()
            return source.take() is not None

        with pytest.raises(OSError, match=r"NIXL cannot read.*Disconnect"):  # noqa: PT012
            source.begin(np.array([1]))
            poll(read, "it was read")
        source.close()
        memory.close()
