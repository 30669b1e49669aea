"""What the lanes tell of their blocks: who takes all events has the same picture as who looks."""

from __future__ import annotations

import hashlib
import random
from array import array
from typing import TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda.scheduler.core.hashes import MediaItem, PrefixHashes
from pagoda.scheduler.core.kv_events import (
    BlocksCleared,
    BlocksRemoved,
    BlocksStored,
    KvEvents,
    LaneBlocks,
    LaneChanges,
    LaneKvEvents,
    Medium,
)

DEVICE, HOST = Medium.DEVICE, Medium.HOST

# (lane, medium, hash) -> parent
Holdings: TypeAlias = dict[tuple[str, Medium, bytes], bytes]


def tokens(*token_ids: int) -> array[int]:
    return array("I", token_ids)


def lane() -> LaneKvEvents:
    """Two tokens per block."""
    return LaneKvEvents("executor-1", "a", 2)


def holdings(lanes: list[LaneBlocks]) -> Holdings:
    return {
        (each.lane_id, each.medium, block_hash): parent
        for each in lanes
        for block_hash, parent in zip(each.hashes, each.parents, strict=True)
    }


def test_blocks_that_follow_each_other_are_one_event() -> None:
    events = lane()
    events.stored([b"1", b"2"], b"root", tokens(11, 12, 21, 22))
    events.stored([b"3"], b"2", tokens(31, 32))
    events.stored([b"x"], b"2", tokens(91, 92))
    assert events.take() == LaneChanges(
        "executor-1",
        "a",
        2,
        [
            BlocksStored(DEVICE, [b"1", b"2", b"3"], b"root", tokens(11, 12, 21, 22, 31, 32)),
            BlocksStored(DEVICE, [b"x"], b"2", tokens(91, 92)),
        ],
    )
    device, host = events.blocks()
    assert (device.hashes, device.parents) == ([b"1", b"2", b"3", b"x"], [b"root", b"1", b"2", b"2"])
    assert host.hashes == []


def test_neither_what_was_taken_nor_what_was_given_changes() -> None:
    events, chain, token_ids, gone = lane(), [b"1"], tokens(11, 12), [b"1"]
    events.stored(chain, b"root", token_ids)
    events.stored([b"2"], b"1", tokens(21, 22))
    taken = events.take()
    events.stored([b"3"], b"2", tokens(31, 32))
    assert taken.events == [BlocksStored(DEVICE, [b"1", b"2"], b"root", tokens(11, 12, 21, 22))]
    assert events.take().events == [BlocksStored(DEVICE, [b"3"], b"2", tokens(31, 32))]
    events.removed(gone)
    events.removed([b"2"])
    assert events.take().events == [BlocksRemoved(DEVICE, [b"1", b"2"])]
    assert (chain, token_ids, gone) == ([b"1"], tokens(11, 12), [b"1"])
    assert not events.has_events


def test_removals_side_by_side_are_one_event_per_medium() -> None:
    events = lane()
    events.stored([b"1", b"2", b"3"], b"root", tokens(1, 1, 2, 2, 3, 3))
    events.take()
    events.offloaded(b"3")
    events.offloaded(b"2")
    events.removed([b"3", b"2"])
    events.removed([b"1"])
    events.dropped(b"3")
    events.dropped(b"2")
    assert events.take().events == [
        BlocksStored(HOST, [b"3", b"2"]),
        BlocksRemoved(DEVICE, [b"3", b"2", b"1"]),
        BlocksRemoved(HOST, [b"3", b"2"]),
    ]


def test_a_block_in_host_memory_keeps_its_parent() -> None:
    events = lane()
    events.stored([b"1", b"2"], b"root", tokens(1, 1, 2, 2))
    events.offloaded(b"2")
    events.removed([b"2"])
    device, host = events.blocks()
    assert (device.hashes, device.parents) == ([b"1"], [b"root"])
    assert (host.hashes, host.parents) == ([b"2"], [b"1"])


def test_a_block_that_comes_and_goes_and_comes_is_told_of_in_that_order() -> None:
    events = lane()
    for _ in range(2):
        events.stored([b"1"], b"root", tokens(1, 1))
        events.removed([b"1"])
    events.stored([b"1"], b"root", tokens(1, 1))
    kinds = [type(event) for event in events.take().events]
    assert kinds == [BlocksStored, BlocksRemoved, BlocksStored, BlocksRemoved, BlocksStored]


def test_a_lane_that_leaves_is_cleared_and_nothing_else() -> None:
    events = KvEvents()
    first, second = events.add_lane("executor-1", "a", 2), events.add_lane("executor-2", "b", 2)
    first.stored([b"1"], b"root", tokens(1, 1))
    second.stored([b"1"], b"root", tokens(1, 1))
    events.remove_lane("executor-1")
    assert {changes.lane_id: changes.events for changes in events.take()} == {
        "executor-1": [BlocksCleared()],
        "executor-2": [BlocksStored(DEVICE, [b"1"], b"root", tokens(1, 1))],
    }
    assert events.take() == []
    assert [(each.lane_id, each.hashes) for each in events.blocks()] == [("executor-2", [b"1"]), ("executor-2", [])]


def test_integrity_finds_blocks_that_were_not_told_of_and_the_reverse() -> None:
    events = lane()
    events.stored([b"1", b"2"], b"root", tokens(1, 1, 2, 2))
    events.offloaded(b"1")
    assert events.check_integrity([b"2", b"1"], {b"1"}) == []
    assert events.check_integrity([b"1"], [b"1"]) == ["1 device blocks are there and were not told of, or the reverse"]
    assert len(events.check_integrity([b"1", b"3"], [])) == 2


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), num_events=st.integers(1, 150))
def test_all_events_together_are_what_is_held(seed: int, num_events: int) -> None:
    rng = random.Random(seed)
    events = KvEvents()
    lanes: dict[str, LaneKvEvents] = {}
    told: Holdings = {}
    wanted: Holdings = {}

    def apply(changes: LaneChanges) -> None:
        name = changes.lane_id
        for event in changes.events:
            match event:
                case BlocksStored(Medium.DEVICE, hashes, parent, token_ids):
                    assert len(token_ids) == 2 * len(hashes)
                    for block_hash in hashes:
                        assert (name, DEVICE, block_hash) not in told
                        # A block's tokens are in its name here.
                        assert token_ids[0] == token_ids[1] == int(block_hash[1:])
                        del token_ids[:2]
                        told[name, DEVICE, block_hash], parent = parent, block_hash
                case BlocksStored(_, hashes):
                    for block_hash in hashes:
                        told[name, HOST, block_hash] = told[name, DEVICE, block_hash]
                case BlocksRemoved(medium, hashes):
                    for block_hash in hashes:
                        del told[name, medium, block_hash]
                case BlocksCleared():
                    for key in [key for key in told if key[0] == name]:
                        del told[key]

    for number in range(num_events):
        name = rng.choice("ab")
        on_device = [each for _, medium, each in (key for key in wanted if key[0] == name) if medium is DEVICE]
        on_host = [each for _, medium, each in (key for key in wanted if key[0] == name) if medium is HOST]
        match rng.randrange(8):
            case 0 if name in lanes and rng.random() < 0.2:
                events.remove_lane(name)
                del lanes[name]
                wanted = {key: parent for key, parent in wanted.items() if key[0] != name}
            case 1:
                for changes in events.take():
                    apply(changes)
                assert told == wanted == holdings(events.blocks())
            case _ if name not in lanes:
                # A session's name does not come back in earnest; its events must be in order all the same.
                lanes[name] = events.add_lane(name, name, 2)
            case 2 | 3 | 4:
                count = rng.randint(1, 3)
                chain = [b"h%d" % (3 * number + i) for i in range(count)]
                parent = rng.choice([b"root", *on_device[-1:]])
                ids = array("I", [int(each[1:]) for each in chain for _ in range(2)])
                lanes[name].stored(chain, parent, ids)
                for block_hash in chain:
                    wanted[name, DEVICE, block_hash], parent = parent, block_hash
            case 5 if on_device:
                gone = rng.sample(on_device, rng.randint(1, len(on_device)))
                lanes[name].removed(gone)
                for block_hash in gone:
                    del wanted[name, DEVICE, block_hash]
            case 6 if on_device and (block_hash := rng.choice(on_device)) not in on_host:
                lanes[name].offloaded(block_hash)
                wanted[name, HOST, block_hash] = wanted[name, DEVICE, block_hash]
            case 7 if on_host:
                block_hash = rng.choice(on_host)
                lanes[name].dropped(block_hash)
                del wanted[name, HOST, block_hash]
    for changes in events.take():
        apply(changes)
    assert told == wanted == holdings(events.blocks())


def test_hashes_are_those_of_the_recipe_in_the_contract() -> None:
    """A router computes them from kv_events.proto alone."""
    prompt, salt, adapter = tokens(5, 6, 7, 8, 9, 10, 11), b"tenant", "poems"
    running = hashlib.sha256(b"pagoda kv blocks 6 5 tenantpoems")
    expected = [running.digest()]
    for first in (0, 3):
        for token_id in prompt[first : first + 3]:
            running.update(token_id.to_bytes(4, "little"))
        if first == 3:
            running.update(b"\xff\xff\xff\xff" + (4).to_bytes(8, "little") + (2).to_bytes(8, "little"))
            running.update((5).to_bytes(8, "little") + b"image")
        expected.append(running.digest())

    hashes = PrefixHashes(3, salt=salt, adapter=adapter, media=[MediaItem(4, 2, b"image")])
    hashes.extend(prompt)
    assert [hashes.root, *hashes.chain] == expected
    assert {len(each) for each in expected} == {32}
