"""Who follows kv_events.proto has a copy that is right, whatever is lost, late or restarted."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest
import zmq
import zmq.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda.rpc.arrays import pack_u32, unpack_u32
from pagoda.scheduler import kv_event_publisher
from pagoda.scheduler.config import SchedulerOptions
from pagoda.scheduler.core.hashes import PrefixHashes
from pagoda.scheduler.core.kv_events import LaneKvEvents
from pagoda.scheduler.kv_event_publisher import TOPIC, KvEventPublisher
from pagoda.v1 import common_pb2, step_pb2
from pagoda.v1 import kv_events_pb2 as pb

DEVICE, HOST = pb.KV_MEDIUM_DEVICE, pb.KV_MEDIUM_HOST

# (session, medium, hash) -> parent
Holdings: TypeAlias = dict[tuple[str, int, bytes], bytes]


def name_of(number: int) -> bytes:
    """A hash."""
    return number.to_bytes(32, "big")


def split(hashes: bytes) -> list[bytes]:
    assert len(hashes) % 32 == 0
    return [hashes[first : first + 32] for first in range(0, len(hashes), 32)]


class Mirror:
    """A consumer: a copy of what every executor holds, kept as kv_events.proto says."""

    def __init__(self) -> None:
        self.held: Holdings = {}
        self.epoch = self.sequence = -1

    def receive(self, frames: list[bytes]) -> bool:
        """False: something was lost, and a snapshot must be loaded."""
        topic, sequence, payload = frames
        batch = pb.KvEventBatch.FromString(payload)
        assert (topic, int.from_bytes(sequence, "big")) == (TOPIC, batch.sequence)
        if batch.epoch == self.epoch and batch.sequence <= self.sequence:
            return True
        if (batch.epoch, batch.sequence) != (self.epoch, self.sequence + 1):
            return False
        self.sequence = batch.sequence
        for executor in batch.executors:
            for event in executor.events:
                self._apply(executor, event)
        return True

    def load(self, snapshot: Iterable[pb.ListKvBlocksResponse]) -> None:
        first, *parts = snapshot
        self.epoch, self.sequence = first.start.epoch, first.start.sequence
        self.held = {}
        for part in parts:
            blocks = part.blocks
            for block_hash, parent in zip(split(blocks.hashes), split(blocks.parents), strict=True):
                self.held[blocks.session_id, blocks.medium, block_hash] = parent

    def _apply(self, executor: pb.ExecutorKvEvents, event: pb.KvEvent) -> None:
        session = executor.session_id
        match event.WhichOneof("event"):
            case "stored" if event.stored.medium == DEVICE:
                hashes, parent = split(event.stored.hashes), event.stored.parent
                assert len(unpack_u32(event.stored.token_ids)) == len(hashes) * executor.block_size
                for block_hash in hashes:
                    assert (session, DEVICE, block_hash) not in self.held
                    self.held[session, DEVICE, block_hash], parent = parent, block_hash
            case "stored":
                assert event.stored.medium == HOST
                for block_hash in split(event.stored.hashes):
                    assert (session, HOST, block_hash) not in self.held
                    self.held[session, HOST, block_hash] = self.held[session, DEVICE, block_hash]
            case "removed":
                for block_hash in split(event.removed.hashes):
                    del self.held[session, event.removed.medium, block_hash]
            case "cleared":
                self.held = {key: parent for key, parent in self.held.items() if key[0] != session}
            case kind:
                raise AssertionError(f"unknown event {kind}")


class Wire:
    """Stands in for a ZeroMQ context and its one socket: keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[list[bytes]] = []

    def socket(self, kind: int) -> Wire:
        assert kind == zmq.PUB
        return self

    def setsockopt(self, option: int, value: int) -> None: ...

    def bind(self, endpoint: str) -> None: ...

    def getsockopt_string(self, option: int) -> str:
        return ""

    def send_multipart(self, frames: list[bytes], flags: int) -> None:
        assert flags & zmq.NOBLOCK
        self.sent.append(frames)


class Cell:
    """Executors to which things happen, a scheduler that publishes them, and the truth about both."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.truth: Holdings = {}
        self.num_blocks = 0
        self.num_lanes = 0
        # What subscribers are yet to get, and what was held after each batch.
        self.queue: deque[list[bytes]] = deque()
        self.history: dict[tuple[int, int], Holdings] = {}
        self.start()

    def start(self) -> None:
        """A scheduler starts, perhaps after another one died; executors have to register again."""
        self.truth = {}
        self.lanes: dict[str, LaneKvEvents] = {}
        self.wire = Wire()
        context: Any = self.wire
        self.publisher = KvEventPublisher(context, "tcp://127.0.0.1:*")
        self.events = self.publisher.events

    def on(self, session: str, medium: int) -> list[bytes]:
        return [key[2] for key in self.truth if key[:2] == (session, medium)]

    def snapshot(self) -> list[pb.ListKvBlocksResponse]:
        parts = self.publisher.snapshot()
        self.collect()
        if self.rng.random() < 0.5:
            self.change()
        return list(parts)

    def collect(self) -> None:
        """What was sent is under way."""
        for frames in self.wire.sent:
            batch = pb.KvEventBatch.FromString(frames[2])
            self.history[batch.epoch, batch.sequence] = dict(self.truth)
            self.queue.append(frames)
        # Only what was sent last can be told from the truth of now.
        assert len(self.wire.sent) <= 1
        self.wire.sent.clear()

    def change(self) -> None:
        """Something happens on one executor."""
        rng = self.rng
        if not self.lanes or (len(self.lanes) < 3 and rng.random() < 0.1):
            self.num_lanes += 1
            session = f"executor-{self.num_lanes}"
            self.lanes[session] = self.events.add_lane(session, "name", 1)
            return
        session = rng.choice(sorted(self.lanes))
        lane, device, host = self.lanes[session], self.on(session, DEVICE), self.on(session, HOST)
        kind = rng.random()
        if kind < 0.05:
            self.events.remove_lane(session)
            del self.lanes[session]
            self.truth = {key: parent for key, parent in self.truth.items() if key[0] != session}
        elif kind < 0.5 or not device:
            chain = [name_of(self.num_blocks + i) for i in range(rng.randint(1, 3))]
            self.num_blocks += len(chain)
            parent = rng.choice([name_of(0), *device])
            lane.stored(chain, parent, array("I", range(len(chain))))
            for block_hash in chain:
                self.truth[session, DEVICE, block_hash], parent = parent, block_hash
        elif kind < 0.7:
            gone = rng.sample(device, rng.randint(1, len(device)))
            lane.removed(gone)
            for block_hash in gone:
                del self.truth[session, DEVICE, block_hash]
        elif kind < 0.9:
            if (block_hash := rng.choice(device)) not in host:
                lane.offloaded(block_hash)
                self.truth[session, HOST, block_hash] = self.truth[session, DEVICE, block_hash]
        elif host:
            block_hash = rng.choice(host)
            lane.dropped(block_hash)
            del self.truth[session, HOST, block_hash]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_steps=st.integers(1, 200),
    loss=st.sampled_from([0.0, 0.05, 0.5]),
    part=st.sampled_from([1, 3, 1000]),
)
def test_the_copy_is_right_after_every_message(seed: int, num_steps: int, loss: float, part: int) -> None:
    rng = random.Random(seed)
    cell = Cell(rng)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_event_publisher, "MAX_BLOCKS_PER_PART", part)
        mirror = Mirror()
        mirror.load(cell.snapshot())

        def deliver() -> None:
            frames = cell.queue.popleft()
            if rng.random() >= loss:
                if not mirror.receive(frames):
                    mirror.load(cell.snapshot())
                assert mirror.held == cell.history.get((mirror.epoch, mirror.sequence), {})

        for _ in range(num_steps):
            kind = rng.random()
            if kind < 0.5:
                cell.change()
            elif kind < 0.7:
                cell.publisher.publish()
            elif kind < 0.75:
                cell.publisher.beat()
            elif kind < 0.76:
                cell.start()
            elif kind < 0.78:
                mirror.load(cell.snapshot())
            elif cell.queue:
                deliver()
            cell.collect()

        # Whatever was lost: once something comes through again, the copy is right.
        loss = 0.0
        for _ in range(2):
            cell.publisher.beat()
            cell.collect()
        while cell.queue:
            deliver()
        # The last batch may have brought a snapshot, while which more has happened.
        cell.publisher.publish()
        cell.collect()
        while cell.queue:
            deliver()
        assert mirror.held == cell.truth


def test_nothing_is_sent_when_nothing_happens_except_for_beats() -> None:
    cell = Cell(random.Random(0))
    lane = cell.events.add_lane("executor-1", "a", 1)
    cell.publisher.publish()
    assert cell.wire.sent == []
    cell.publisher.beat()
    lane.stored([name_of(1)], name_of(0), array("I", [7]))
    cell.publisher.publish()
    cell.publisher.publish()
    lane.removed([name_of(1)])
    cell.publisher.beat()
    batches = [pb.KvEventBatch.FromString(payload) for _, _, payload in cell.wire.sent]
    assert [(batch.sequence, len(batch.executors)) for batch in batches] == [(1, 0), (2, 1), (3, 1)]
    assert len({batch.epoch for batch in batches}) == 1


def test_a_batch_says_all_that_the_contract_promises() -> None:
    cell = Cell(random.Random(0))
    lane = cell.events.add_lane("executor-1", "a", 2)
    lane.stored([name_of(1), name_of(2)], name_of(0), array("I", [5, 6, 7, 8]))
    lane.offloaded(name_of(2))
    lane.removed([name_of(2)])
    cell.events.add_lane("executor-2", "b", 2)
    cell.events.remove_lane("executor-2")
    cell.publisher.publish()
    ((topic, sequence, payload),) = cell.wire.sent
    batch = pb.KvEventBatch.FromString(payload)
    assert (topic, sequence, batch.sequence) == (b"pagoda.kv.v1", bytes(7) + b"\1", 1)
    assert batch.published_at.seconds > 0
    executors = {executor.session_id: executor for executor in batch.executors}
    assert {session: executor.name for session, executor in executors.items()} == {"executor-1": "a", "executor-2": "b"}
    assert executors["executor-1"].block_size == 2
    stored, offloaded, removed = executors["executor-1"].events
    assert stored.stored == pb.KvBlocksStored(
        medium=DEVICE,
        hashes=name_of(1) + name_of(2),
        parent=name_of(0),
        token_ids=b"\5\0\0\0\6\0\0\0\7\0\0\0\x08\0\0\0",
    )
    assert offloaded.stored == pb.KvBlocksStored(medium=HOST, hashes=name_of(2))
    assert removed.removed == pb.KvBlocksRemoved(medium=DEVICE, hashes=name_of(2))
    assert [event.WhichOneof("event") for event in executors["executor-2"].events] == ["cleared"]


def test_a_snapshot_is_of_the_moment_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_event_publisher, "MAX_BLOCKS_PER_PART", 2)
    cell = Cell(random.Random(0))
    lane = cell.events.add_lane("executor-1", "a", 1)
    cell.events.add_lane("executor-2", "b", 1)
    lane.stored([name_of(number) for number in range(1, 6)], name_of(0), array("I", [0] * 5))
    parts = cell.publisher.snapshot()
    lane.removed([name_of(1)])
    start, *rest = parts
    # What had not been published was, so that the snapshot is at a batch.
    assert [pb.KvEventBatch.FromString(payload).sequence for _, _, payload in cell.wire.sent] == [1]
    assert start.start.sequence == 1
    listed = [(part.blocks.session_id, part.blocks.medium, len(split(part.blocks.hashes))) for part in rest]
    assert listed == [
        ("executor-1", DEVICE, 2),
        ("executor-1", DEVICE, 2),
        ("executor-1", DEVICE, 1),
        ("executor-1", HOST, 0),
        ("executor-2", DEVICE, 0),
        ("executor-2", HOST, 0),
    ]


# Real sockets


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


def subscribe(context: zmq.Context[zmq.Socket[bytes]], publisher: KvEventPublisher) -> zmq.Socket[bytes]:
    """A subscriber that gets messages from now on, and reads only a few ahead."""
    subscriber = context.socket(zmq.SUB)
    subscriber.setsockopt(zmq.RCVHWM, 1)
    subscriber.setsockopt(zmq.RCVTIMEO, 10_000)
    subscriber.setsockopt(zmq.SUBSCRIBE, TOPIC)
    subscriber.connect(publisher.endpoint)
    while not subscriber.poll(10):
        publisher.beat()
    return subscriber


def test_a_subscriber_that_comes_late_has_it_all(context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path) -> None:
    publisher = KvEventPublisher(context, f"ipc://{tmp_path}/events")
    assert (tmp_path / "events").stat().st_mode & 0o777 == 0o600
    lane = publisher.events.add_lane("executor-1", "a", 1)
    lane.stored([name_of(1)], name_of(0), array("I", [7]))
    publisher.publish()
    subscriber = subscribe(context, publisher)
    mirror = Mirror()
    mirror.load(publisher.snapshot())
    lane.stored([name_of(2)], name_of(1), array("I", [8]))
    publisher.publish()
    lane.removed([name_of(1)])
    publisher.publish()
    while mirror.held.keys() != {("executor-1", DEVICE, name_of(2))}:
        assert mirror.receive(subscriber.recv_multipart())
    subscriber.close()
    publisher.close()


def test_a_subscriber_that_does_not_read_delays_nobody_and_recovers(
    context: zmq.Context[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_event_publisher, "SEND_HIGH_WATER_MARK", 2)
    publisher = KvEventPublisher(context, "tcp://127.0.0.1:*")
    block_size = 1 << 16
    lane = publisher.events.add_lane("executor-1", "a", block_size)
    subscriber = subscribe(context, publisher)
    mirror = Mirror()
    mirror.load(publisher.snapshot())
    tokens = array("I", bytes(4 * block_size))
    # Far more than sockets and queues hold. Nobody reads: a send that waits would wait for ever.
    for number in range(1, 301):
        lane.stored([name_of(number)], name_of(number - 1), tokens)
        publisher.publish()
    while mirror.receive(subscriber.recv_multipart()):
        publisher.beat()
    mirror.load(publisher.snapshot())
    assert mirror.held == {("executor-1", DEVICE, name_of(number)): name_of(number - 1) for number in range(1, 301)}
    subscriber.close()
    publisher.close()


async def test_who_follows_a_running_cell_knows_its_blocks(start: Callable[..., Any]) -> None:
    service = await start(kv_events_endpoint="tcp://127.0.0.1:*", heartbeat_interval_s=0.05)
    tokenizer, executor = await service.tokenizer(), await service.executor()
    subscriber = zmq.asyncio.Context.instance().socket(zmq.SUB)
    subscriber.setsockopt(zmq.SUBSCRIBE, TOPIC)
    subscriber.connect(service.engine.kv_publisher.endpoint)
    prompt = list(range(3, 23))
    request = step_pb2.NewRequest(
        key=1,
        token_ids=pack_u32(prompt),
        num_prompt_tokens=len(prompt),
        sampling=common_pb2.SamplingParams(seed=0, max_tokens=1),
    )
    await tokenizer.send(request)
    await tokenizer.until(lambda: tokenizer.finished)
    hashes = PrefixHashes(4)
    hashes.extend(array("I", prompt))
    wanted = dict(zip(hashes.chain, [hashes.root, *hashes.chain], strict=False))
    session = executor.session.session_id

    mirror = Mirror()

    async def follow(done: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not done():
                if not mirror.receive(await subscriber.recv_multipart()):
                    mirror.load([part async for part in service.stub.ListKvBlocks(pb.ListKvBlocksRequest())])

    await follow(lambda: mirror.held == {(session, DEVICE, each): parent for each, parent in wanted.items()})
    await executor.stop()
    await follow(lambda: mirror.held == {})
    subscriber.close(linger=0)


async def test_there_is_nothing_to_list_when_nothing_is_published(service: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="start the scheduler with kv_events_endpoint") as caught:
        async for _ in service.stub.ListKvBlocks(pb.ListKvBlocksRequest()):
            pass
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_an_endpoint_that_cannot_be_bound_is_an_os_error(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    with pytest.raises(OSError, match="cannot bind ipc:///nonexistent/folder/socket"):
        KvEventPublisher(context, "ipc:///nonexistent/folder/socket")


def test_the_endpoint_must_be_out_of_reach_for_others() -> None:
    assert SchedulerOptions().kv_events_endpoint is None
    assert SchedulerOptions(kv_events_endpoint="tcp://127.0.0.1:*").kv_events_endpoint == "tcp://127.0.0.1:*"
    with pytest.raises(ValueError, match=r"kv_events_endpoint .* without authentication"):
        SchedulerOptions(kv_events_endpoint="tcp://0.0.0.0:5557")


def test_without_prefix_caching_there_is_nothing_to_publish() -> None:
    with pytest.raises(ValueError, match="needs enable_prefix_caching"):
        SchedulerOptions(kv_events_endpoint="tcp://127.0.0.1:*", enable_prefix_caching=False)
