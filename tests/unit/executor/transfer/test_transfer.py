"""Both ends in one process, through shared memory and through TCP."""

from __future__ import annotations

import os
import random
import socket
import threading
import zlib
from contextlib import ExitStack, closing

import numpy as np
import pytest
import torch
import zmq
from transfer_ends import (
    BLOCK_BYTES,
    EMPTY,
    LAYOUT,
    NIXL,
    NUM_BLOCKS,
    SHAPE,
    TRANSPORTS,
    MakeReceiver,
    MakeSender,
    RawSender,
    block,
    empty_cache,
    full_cache,
    is_empty,
    mapped_sources,
    poll,
    shared_sender,
    through,
    wait_for_arrivals,
    wait_for_failures,
)

from pagoda.executor.transfer import intake, sender
from pagoda.executor.transfer.endpoints import host_id
from pagoda.executor.transfer.receiver import Receiver
from pagoda.executor.transfer.reports import Reason
from pagoda.executor.transfer.sender import Sender
from pagoda.executor.transfer.shared_memory import SharedMemory
from pagoda.rpc.arrays import pack_u32
from pagoda.rpc.curve import new_key_pair
from pagoda.v1 import common_pb2
from pagoda.v1 import transfer_pb2 as pb

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks each, so that transfers of this size have many."""
    monkeypatch.setattr(intake, "MAX_PIECE_BYTES", 2 * BLOCK_BYTES)
    monkeypatch.setattr(sender, "MAX_PIECE_BYTES", 2 * BLOCK_BYTES)


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.usefixtures("small_pieces")
def test_blocks_arrive_where_they_belong(
    transport: str, checksum: bool, make_receiver: MakeReceiver, make_sender: MakeSender
) -> None:
    target, source = empty_cache(), full_cache(num_blocks=60)
    receiver, sender = make_receiver(target), make_sender(source, checksum=checksum)
    targets, sources = [7, 3, 44, 0, 21], [59, 0, 13, 14, 2]
    receiver.grant(9, targets, 10)
    sender.push(through(transport, receiver), 9, 0, sources[:3])
    sender.push(through(transport, receiver), 9, 3, sources[3:])
    wait_for_arrivals(receiver, {9: 5})
    for here, there in zip(targets, sources, strict=True):
        assert torch.equal(block(target, here), block(source, there))
    assert all(is_empty(target, each) for each in range(NUM_BLOCKS) if each not in targets)
    assert (sender.take_failures(), receiver.take_failures()) == ([], [])
    for counters in (sender.counters(), receiver.counters()):
        assert (counters.blocks, counters.bytes) == (5, 5 * BLOCK_BYTES)
        assert counters.seconds > 0
        assert not counters.failures


def test_the_best_endpoint_is_used(make_receiver: MakeReceiver, make_sender: MakeSender) -> None:
    receiver, source = make_receiver(), full_cache()
    sender = make_sender(source)
    receiver.grant(1, [0], 10)
    sender.push(receiver.endpoints, 1, 0, [0])
    wait_for_arrivals(receiver, {1: 1})
    assert mapped_sources() == 1


def test_tcp_is_used_where_shared_memory_cannot_be(make_receiver: MakeReceiver, make_sender: MakeSender) -> None:
    receiver, sender = make_receiver(), make_sender()
    (shared,), (tcp,) = through("shm", receiver), through("tcp", receiver)
    for transfer_id, unusable in enumerate(
        [shared.replace(host_id(), "another-host"), shared.replace("pagoda-kv-", "nobody-"), "later://what/ever"]
    ):
        receiver.grant(transfer_id, [transfer_id], 10)
        sender.push([unusable, tcp], transfer_id, 0, [0])
        wait_for_arrivals(receiver, {transfer_id: 1})
    assert mapped_sources() == 0


def test_tcp_is_used_where_the_memory_cannot_be_opened(
    make_receiver: MakeReceiver, make_sender: MakeSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in another container: the number is of another process.
    monkeypatch.setattr("pagoda.executor.transfer.shared_memory.os.getpid", lambda: 1 << 30)
    receiver, sender = make_receiver(), make_sender()
    receiver.grant(1, [0], 10)
    sender.push(receiver.endpoints, 1, 0, [0])
    wait_for_arrivals(receiver, {1: 1})
    assert mapped_sources() == 0


def test_blocks_of_a_cache_that_is_not_shared(make_receiver: MakeReceiver, ends: ExitStack) -> None:
    target = empty_cache()
    receiver, sender = make_receiver(target), ends.enter_context(closing(Sender(full_cache(), 2, LAYOUT)))
    receiver.grant(1, [0, 4], 10)
    sender.push(through("shm", receiver), 1, 0, [9, 7])
    wait_for_arrivals(receiver, {1: 2})
    assert torch.equal(block(target, 4), block(full_cache(), 7))
    assert mapped_sources() == 0


def test_what_has_no_lease_is_refused(transport: str, make_receiver: MakeReceiver, make_sender: MakeSender) -> None:
    target = empty_cache()
    receiver, sender = make_receiver(target), make_sender()
    receiver.grant(1, [0], 10)
    receiver.grant(2, [1, 2], 10)
    receiver.revoke(2)
    for transfer_id in (2, 3):
        sender.push(through(transport, receiver), transfer_id, 0, [4, 5])
    wait_for_failures(sender, [(2, Reason.REFUSED), (3, Reason.REFUSED)])
    sender.push(through(transport, receiver), 1, 0, [4])
    wait_for_arrivals(receiver, {1: 1})
    assert [each for each in range(NUM_BLOCKS) if not is_empty(target, each)] == [0]
    assert receiver.counters().late_blocks == 4
    assert sender.counters().failures == {Reason.REFUSED: 2}
    # What else is pushed of a failed transfer goes nowhere.
    sender.push(through(transport, receiver), 3, 0, [4])
    assert sender.counters().blocks == 5


def test_leases_end_at_their_deadline(transport: str, make_receiver: MakeReceiver, make_sender: MakeSender) -> None:
    receiver, sender = make_receiver(), make_sender()
    receiver.grant(1, [0], 100)
    receiver.grant(2, [1], 0.05)  # the thread waits for the later one
    wait_for_failures(receiver, [(2, Reason.TIMEOUT)])
    sender.push(through(transport, receiver), 2, 0, [4])
    wait_for_failures(sender, [(2, Reason.REFUSED)])


def test_after_a_reset_earlier_endpoints_are_dead(
    transport: str, make_receiver: MakeReceiver, make_sender: MakeSender
) -> None:
    target = empty_cache()
    receiver, sender = make_receiver(target), make_sender()
    old = through(transport, receiver)
    receiver.grant(1, [0, 1], 10)
    sender.push(old, 1, 0, [4])
    wait_for_arrivals(receiver, {1: 1})
    receiver.reset()
    receiver.grant(1, [2, 3], 10)
    sender.push(old, 1, 1, [5])
    # Over the link that was open, or over a new one: whichever the thread comes to first.
    wait_for_failures(sender, [(1, Reason.REFUSED)])
    assert is_empty(target, 3)
    sender.reset()
    new = through(transport, receiver)
    assert new != old
    sender.push(new, 1, 0, [6, 7])
    wait_for_arrivals(receiver, {1: 2})
    assert torch.equal(block(target, 3), block(full_cache(), 7))


@pytest.mark.parametrize(
    ("change", "cache"),
    [
        ({"dtype": "float16"}, full_cache()),
        ({"block_size": 8}, full_cache()),
        ({"num_layers": 4}, torch.zeros(4, *SHAPE[1:], dtype=torch.bfloat16)),
    ],
)
def test_other_blocks_are_refused(
    transport: str,
    change: dict[str, object],
    cache: torch.Tensor,
    make_receiver: MakeReceiver,
    make_sender: MakeSender,
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver = make_receiver()
    layout = common_pb2.KvLayout()
    layout.CopyFrom(LAYOUT)
    layout.MergeFrom(common_pb2.KvLayout(**change))  # type: ignore[arg-type]
    receiver.grant(1, [0], 10)
    sender = make_sender(cache, layout=layout)
    sender.push(through(transport, receiver), 1, 0, [0])
    wait_for_failures(sender, [(1, Reason.LAYOUT)])
    name, value = next(iter(change.items()))
    assert f"{name} {value}, not {getattr(LAYOUT, name)}" in caplog.text
    assert receiver.counters().failures[Reason.LAYOUT] == 1


def test_nobody_is_there(make_receiver: MakeReceiver, make_sender: MakeSender) -> None:
    receiver, sender = make_receiver(), make_sender()
    endpoints = receiver.endpoints
    receiver.close = lambda: None  # type: ignore[method-assign]
    Receiver.close(receiver)
    sender.push(endpoints, 1, 0, [0])
    sender.push([], 2, 0, [0])
    sender.push(["shm://another-host/name?session=1"], 3, 0, [0])
    wait_for_failures(sender, [(1, Reason.UNREACHABLE), (2, Reason.UNREACHABLE), (3, Reason.UNREACHABLE)])


def test_one_that_does_not_answer_is_given_up(make_sender: MakeSender) -> None:
    sender = make_sender(connect_timeout_s=0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sender.push([f"tcp://127.0.0.1:{silent.getsockname()[1]}?session=1"], 1, 0, [0])
        wait_for_failures(sender, [(1, Reason.UNREACHABLE)])


@pytest.mark.parametrize("limits", [(4, 64), (64, 4)])
@pytest.mark.usefixtures("small_pieces")
def test_memory_is_bounded(
    transport: str, limits: tuple[int, int], make_receiver: MakeReceiver, make_sender: MakeSender
) -> None:
    window, staging = limits
    receiver = make_receiver(window_bytes=window * BLOCK_BYTES)
    sender = make_sender(staging_bytes=staging * BLOCK_BYTES)
    receiver.grant(1, [0], 10)
    receiver.grant(2, list(range(1, 41)), 10)
    sender.push(through(transport, receiver), 1, 0, [0])
    wait_for_arrivals(receiver, {1: 1})
    most = 4 if transport == "tcp" else window
    with receiver._leases._lock:
        sender.push(through(transport, receiver), 2, 0, range(40))
        poll(lambda: sender.counters().blocks >= min(1 + most, 41), "all that may be under way is")
        assert sender.counters().blocks == min(1 + most, 41)
    wait_for_arrivals(receiver, {2: 40})
    assert sender.take_failures() == []


@pytest.mark.usefixtures("small_pieces")
def test_a_receiver_that_hangs_is_given_up(
    transport: str, make_receiver: MakeReceiver, make_sender: MakeSender
) -> None:
    receiver, sender = make_receiver(), make_sender(timeout_s=0.2)
    receiver.grant(1, [0, 1, 2], 10)
    sender.push(through(transport, receiver), 1, 0, [0])
    wait_for_arrivals(receiver, {1: 1})
    with receiver._leases._lock:
        sender.push(through(transport, receiver), 1, 1, [1, 2])
        wait_for_failures(sender, [(1, Reason.TIMEOUT)])


def test_an_error_in_a_thread_ends_the_link_and_not_the_thread(
    transport: str, make_receiver: MakeReceiver, make_sender: MakeSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver, sender = make_receiver(), make_sender()

    def fail(*_: object) -> None:
        raise RuntimeError("nobody has thought of this")

    for transfer_id, (end, name, reason) in enumerate(
        [(sender, "_send", Reason.UNREACHABLE), (receiver._leases, "write", Reason.REFUSED)]
    ):
        receiver.grant(transfer_id, [transfer_id], 10)
        with monkeypatch.context() as broken:
            broken.setattr(end, name, fail)
            sender.push(through(transport, receiver), transfer_id, 0, [0])
            wait_for_failures(sender, [(transfer_id, reason)])
    receiver.grant(5, [5], 10)
    sender.push(through(transport, receiver), 5, 0, [0])
    wait_for_arrivals(receiver, {5: 1})


def test_two_receivers_and_no_third(make_receiver: MakeReceiver, make_sender: MakeSender) -> None:
    first, second, third = (make_receiver() for _ in range(3))
    sender = make_sender(max_peers=2)
    for receiver in (first, second, third, first):
        receiver.grant(1, [0], 10)
        sender.push(receiver.endpoints, 1, 0, [0])
        wait_for_arrivals(receiver, {1: 1})
        # One that is idle makes room.
        poll(lambda: all(each.outbox.is_idle for each in sender._connections.values()), "all receipts are there")
    with first._leases._lock, second._leases._lock:
        for transfer_id, receiver in ((2, first), (3, second), (4, third)):
            sender.push(receiver.endpoints, transfer_id, 0, [0])
        wait_for_failures(sender, [(4, Reason.FULL)])


def test_senders_are_bounded(transport: str, make_receiver: MakeReceiver, make_sender: MakeSender) -> None:
    receiver = make_receiver(max_links=1)
    first, second = make_sender(), make_sender()
    receiver.grant(1, [0], 10)
    receiver.grant(2, [1], 10)
    first.push(through(transport, receiver), 1, 0, [0])
    wait_for_arrivals(receiver, {1: 1})
    second.push(through(transport, receiver), 2, 0, [0])
    wait_for_failures(second, [(2, Reason.FULL)])


def test_idle_links_are_closed(transport: str, make_receiver: MakeReceiver, make_sender: MakeSender) -> None:
    receiver, sender = make_receiver(), make_sender(idle_timeout_s=0.1)
    for transfer_id in range(3):
        receiver.grant(transfer_id, [0], 10)
        sender.push(through(transport, receiver), transfer_id, 0, [0])
        wait_for_arrivals(receiver, {transfer_id: 1})
        poll(lambda: not receiver._intake.links, "the sender has said goodbye")
    assert sender.take_failures() == []


def test_the_receiver_says_how_long_a_link_may_be_idle(
    transport: str, make_receiver: MakeReceiver, make_sender: MakeSender
) -> None:
    receiver, sender = make_receiver(idle_timeout_s=0.3), make_sender()
    receiver.grant(1, [0], 10)
    sender.push(through(transport, receiver), 1, 0, [0])
    wait_for_arrivals(receiver, {1: 1})
    poll(lambda: not sender._connections, "the sender has closed it")
    assert (sender.take_failures(), receiver.counters().failures) == ([], {})


@pytest.mark.usefixtures("small_pieces")
def test_encrypted(transport: str, make_receiver: MakeReceiver, make_sender: MakeSender) -> None:
    target = empty_cache()
    receiver, sender = make_receiver(target, curve=new_key_pair()), make_sender(connect_timeout_s=0.5)
    receiver.grant(1, list(range(10)), 10)
    receiver.grant(2, [20], 10)
    (endpoint,) = through(transport, receiver)
    sender.push([endpoint], 1, 0, range(10, 20))
    wait_for_arrivals(receiver, {1: 10})
    assert torch.equal(block(target, 3), block(full_cache(), 13))
    other, _ = zmq.curve_keypair()
    key = endpoint.partition("&key=")[2]
    for wrong in (endpoint.replace(f"&key={key}", ""), endpoint.replace(key, zmq.utils.z85.decode(other).hex())):
        sender.push([wrong], 2, 0, [0])
        wait_for_failures(sender, [(2, Reason.UNREACHABLE)])
        sender.reset()
    assert is_empty(target, 20)


def test_only_loopback_without_keys(make_receiver: MakeReceiver) -> None:
    with pytest.raises(ValueError, match="without encryption"):
        make_receiver(listen="tcp://10.0.0.1:*")


def test_an_address_in_use(make_receiver: MakeReceiver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match="cannot bind"):
            make_receiver(listen=listen)


def test_wrong_blocks(make_receiver: MakeReceiver, make_sender: MakeSender) -> None:
    sender = make_sender()
    for wrong in ([NUM_BLOCKS], [-1], [0, NUM_BLOCKS]):
        with pytest.raises(ValueError, match=rf"\[0, {NUM_BLOCKS}\)"):
            sender.push(make_receiver().endpoints, 1, 0, wrong)
    with pytest.raises(ValueError, match="not an endpoint"):
        sender.push(["tcp://127.0.0.1:1"], 1, 0, [0])


def test_corrupt_pieces(transport: str, make_receiver: MakeReceiver, ends: ExitStack) -> None:
    target = empty_cache()
    receiver = make_receiver(target)
    memory = SharedMemory(NUM_BLOCKS * BLOCK_BYTES)
    address = memory.address() if transport == "shm" else None
    raw = ends.enter_context(closing(RawSender(*through(transport, receiver), shared_memory=address)))
    raw.greet()
    receiver.grant(1, [0, 1], 10)
    content = bytes(range(256)) * (BLOCK_BYTES // 256)
    push = pb.BlockPush(transfer_id=1, num_blocks=1, slot=3, crc32=zlib.crc32(content))

    def send(content: bytes) -> pb.TransferReceipts:
        if address is None:
            return raw.push(push, content).receipts
        push.block_ids = pack_u32([5])
        blocks = torch.frombuffer(memory.memory, dtype=torch.uint8).view(6, NUM_BLOCKS, -1)
        blocks[:, 5] = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(6, -1)
        return raw.push(push).receipts

    assert send(content) == pb.TransferReceipts(slots=[3])
    push.first_position = 1
    receipts = send(b"\1" + content[1:])
    assert [(each.transfer_id, each.problem) for each in receipts.failures] == [(1, pb.TRANSFER_PROBLEM_CORRUPT)]
    wait_for_failures(receiver, [(1, Reason.CORRUPT)])
    assert is_empty(target, 1)


def test_messages_that_break_the_rules(transport: str, make_receiver: MakeReceiver, ends: ExitStack) -> None:
    target = empty_cache()
    receiver = make_receiver(target)
    memory = SharedMemory(NUM_BLOCKS * BLOCK_BYTES)
    address = memory.address() if transport == "shm" else None
    raw = ends.enter_context(closing(RawSender(*through(transport, receiver), shared_memory=address)))
    receiver.grant(1, list(range(10)), 10)
    good = pb.BlockPush(transfer_id=1, num_blocks=1, block_ids=pack_u32([NUM_BLOCKS - 1]) if address else b"")
    content = [] if address else [bytes(BLOCK_BYTES)]

    def is_refused(*frames: bytes, because: str) -> None:
        response = raw.send(*frames)
        assert response.WhichOneof("message") == "refusal"
        assert because in response.refusal.message

    is_refused(pb.TransferRequest(push=good).SerializeToString(), *content, because="the link is over")
    is_refused(b"\xff\xff\xff", because="cannot be read")
    is_refused(b"", because="not known")
    for change in ({"piece_bytes": 0}, {"piece_bytes": BLOCK_BYTES + 1}, {"piece_bytes": BLOCK_BYTES << 20}):
        hello = pb.TransferHello()
        hello.CopyFrom(raw.hello)
        hello.MergeFrom(pb.TransferHello(**change))
        hello.piece_bytes = change["piece_bytes"]
        is_refused(pb.TransferRequest(hello=hello).SerializeToString(), because="no whole blocks")
    hello.CopyFrom(raw.hello)
    hello.session = "guessed"
    is_refused(pb.TransferRequest(hello=hello).SerializeToString(), because="session of this endpoint is over")
    bad = [
        (pb.BlockPush(transfer_id=1, num_blocks=5), []),
        (pb.BlockPush(transfer_id=1, num_blocks=0), content),
        (pb.BlockPush(transfer_id=1, num_blocks=1 << 31), content),
        (pb.BlockPush(transfer_id=1, num_blocks=1, block_ids=pack_u32([NUM_BLOCKS])), []),
        (pb.BlockPush(transfer_id=1, num_blocks=1, block_ids=b"123"), []),
        (pb.BlockPush(transfer_id=1, num_blocks=1), [bytes(BLOCK_BYTES + 1)]),
    ]
    for push, frames in bad:
        assert raw.greet().WhichOneof("message") == "welcome"
        is_refused(pb.TransferRequest(push=push).SerializeToString(), *frames, because="")
    assert raw.greet().welcome.num_slots > 1
    assert all(is_empty(target, each) for each in range(NUM_BLOCKS))
    assert raw.push(good, *content).receipts.slots == [0]


def test_nothing_is_left_behind(transport: str, make_receiver: MakeReceiver, make_sender: MakeSender) -> None:
    sender = shared_sender(full_cache())
    sender.close()
    files, threads = set(os.listdir("/proc/self/fd")), threading.active_count()
    memory = sender._shared_memory
    with (
        closing(Receiver(empty_cache(), 2, LAYOUT, nixl=NIXL)) as receiver,
        closing(Sender(full_cache(), 2, LAYOUT, shared_memory=memory, nixl=NIXL)) as sender,
    ):
        receiver.grant(1, [0], 10)
        sender.push(through(transport, receiver), 1, 0, [0])
        wait_for_arrivals(receiver, {1: 1})
        assert len(os.listdir("/proc/self/fd")) > len(files)
        sender.push(through(transport, receiver), 2, 0, [0])  # under way when they close
    assert set(os.listdir("/proc/self/fd")) == files
    assert threading.active_count() <= threads + 1  # pyzmq keeps one for all


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.usefixtures("small_pieces")
def test_random_traffic(transport: str, seed: int, make_receiver: MakeReceiver, make_sender: MakeSender) -> None:
    """Grants, pushes, duplicates, revokes, wrong ids and foreign positions of interleaved transfers from two senders.

    A block holds what was pushed for it, or is untouched where that has not arrived; from the moment its transfer is
    revoked it does not change.
    """
    rng = random.Random(seed)
    target = empty_cache()
    sources = [full_cache(), full_cache(1 << 20)]
    receiver = make_receiver(target, window_bytes=6 * BLOCK_BYTES)
    senders = [make_sender(each) for each in sources]
    for each in senders:  # connected, so that something arrives while it goes on
        each.push(through(transport, receiver), 2000, 0, [0])
        wait_for_failures(each, [(2000, Reason.REFUSED)])
    free, leases = list(range(NUM_BLOCKS)), dict[int, "tuple[list[int], int, list[int], set[int]]"]()
    frozen: dict[int, torch.Tensor] = {}
    arrived: dict[int, int] = {}
    complete: list[int] = []
    for transfer_id in range(300):
        action = rng.random()
        if action < 0.35 and len(free) >= 8:
            rng.shuffle(free)
            blocks = [free.pop() for _ in range(rng.randint(1, 8))]
            for each in blocks:
                frozen.pop(each, None)
                block(target, each)[:] = EMPTY
            receiver.grant(transfer_id, blocks, 60)
            leases[transfer_id] = (blocks, rng.randrange(2), rng.choices(range(NUM_BLOCKS), k=len(blocks)), set())
        elif action < 0.85 and leases:
            chosen = rng.choice(list(leases))
            blocks, which, origins, pushed = leases[chosen]
            first = rng.randrange(len(blocks))
            last = rng.randint(first + 1, len(blocks))
            senders[which].push(through(transport, receiver), chosen, first, origins[first:last])
            pushed.update(range(first, last))
        elif action < 0.9:
            senders[rng.randrange(2)].push(through(transport, receiver), 1000 + transfer_id, 0, [3, 4])
        elif leases:
            chosen = rng.choice(list(leases))
            receiver.revoke(chosen)
            blocks, which, origins, pushed = leases.pop(chosen)
            for position, each in enumerate(blocks):
                assert is_empty(target, each) or position in pushed
                frozen[each] = block(target, each).clone()
            free += blocks
        arrived.update(receiver.take_arrivals())
        for chosen in [each for each, lease in leases.items() if arrived.get(each) == len(lease[0])]:
            blocks, which, origins, _ = leases.pop(chosen)
            complete.append(chosen)
            for each, origin in zip(blocks, origins, strict=True):
                frozen[each] = block(sources[which], origin)
            free += blocks
        assert all(torch.equal(block(target, each), content) for each, content in frozen.items())
    wait_for_arrivals_of = {each: len(lease[3]) for each, lease in leases.items() if lease[3]}
    poll(
        lambda: (
            arrived.update(receiver.take_arrivals())
            or all(arrived.get(each, 0) >= count for each, count in wait_for_arrivals_of.items())
        ),
        "all that was pushed has arrived",
    )
    assert complete
    for blocks, which, origins, pushed in leases.values():
        for position, each in enumerate(blocks):
            expected = block(sources[which], origins[position]) if position in pushed else np.full(1, EMPTY)
            assert torch.equal(
                block(target, each), torch.as_tensor(expected).expand_as(block(target, each)).to(torch.int16)
            )
    assert all(torch.equal(block(target, each), content) for each, content in frozen.items())
    assert {reason for each in senders for _, reason in each.take_failures()} == {Reason.REFUSED}
    assert receiver.counters().duplicate_blocks > 0
    assert receiver.counters().late_blocks > 0
