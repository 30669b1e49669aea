"""Block pools of a few blocks: exact ids and eviction order."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from pagoda.scheduler.core.blocks import BlockPool
from pagoda.scheduler.core.hashes import MediaItem, PrefixHashes
from pagoda.scheduler.core.host import HostBlocks


def counts(pool: BlockPool) -> tuple[int, int, int]:
    return pool.num_free, pool.num_referenced, pool.num_cached


def find(pool: BlockPool, hashes: list[bytes]) -> list[int]:
    return pool.find_chain(hashes, len(hashes))


def fill(pool: BlockPool, *hashes: bytes) -> list[int]:
    """Takes a block for each hash, as a row that has computed them would."""
    block_ids = pool.allocate(len(hashes))
    assert block_ids is not None
    for block_id, block_hash in zip(block_ids, hashes, strict=True):
        pool.remember(block_id, block_hash)
    return block_ids


def test_blocks_are_handed_out_in_order_and_come_back() -> None:
    pool = BlockPool(4)
    assert pool.allocate(3) == [0, 1, 2]
    assert counts(pool) == (1, 3, 0)
    pool.release([0, 1, 2])
    assert counts(pool) == (4, 0, 0)
    assert pool.allocate(4) == [0, 1, 2, 3]


def test_too_many_blocks_are_none_and_change_nothing() -> None:
    pool = BlockPool(4)
    assert pool.allocate(3) == [0, 1, 2]
    assert pool.allocate(2) is None
    assert counts(pool) == (1, 3, 0)
    assert pool.allocate(0) == []


def test_released_blocks_with_content_stay_cached_and_are_found() -> None:
    pool = BlockPool(4)
    table = fill(pool, b"a", b"ab", b"abc")
    pool.release(table)
    assert counts(pool) == (1, 0, 3)
    assert find(pool, [b"a", b"ab", b"x"]) == [0, 1]
    assert find(pool, [b"x", b"ab"]) == []
    pool.share([0, 1])
    assert counts(pool) == (1, 2, 1)
    assert pool.check_integrity({"r": [0, 1]}) == []


def test_free_blocks_go_before_cached_ones_and_ends_before_beginnings() -> None:
    pool = BlockPool(6)
    pool.release(fill(pool, b"a", b"ab", b"abc"))  # 0 1 2
    pool.release(fill(pool, b"x", b"xy"))  # 3 4
    assert pool.allocate(1) == [5]
    assert pool.allocate(2) == [2, 1]
    assert find(pool, [b"a", b"ab"]) == [0]
    assert pool.allocate(3) == [0, 4, 3]
    assert find(pool, [b"a"]) == find(pool, [b"x"]) == []
    assert pool.check_integrity({"r": [5, 2, 1, 0, 4, 3]}) == []


def test_use_makes_a_cached_block_the_last_to_go() -> None:
    pool = BlockPool(3)
    for name in (b"a", b"b", b"c"):
        pool.release(fill(pool, name))
    pool.share(find(pool, [b"a"]))
    pool.release([0])
    assert pool.allocate(3) == [1, 2, 0]


def test_shared_blocks_are_released_by_their_last_owner() -> None:
    pool = BlockPool(3)
    first = fill(pool, b"a", b"ab")
    pool.share(first)
    pool.release(first)
    assert counts(pool) == (1, 2, 0)
    assert pool.num_available_besides(first) == 1
    pool.release(first)
    assert counts(pool) == (1, 0, 2)
    assert pool.num_available_besides(first) == 1


def test_of_two_equal_blocks_the_first_is_found_and_the_second_becomes_free() -> None:
    pool = BlockPool(3)
    first, second = fill(pool, b"a"), fill(pool, b"a")
    assert find(pool, [b"a"]) == first == [0]
    assert pool.remember(second[0], b"a") == 0
    pool.release(second)
    assert counts(pool) == (2, 1, 0)
    pool.release(first)
    assert counts(pool) == (2, 0, 1)
    assert pool.check_integrity({}) == []


def test_content_under_way_is_expected_until_the_last_who_computes_it_is_done() -> None:
    pool = BlockPool(4)
    pool.expect([b"a", b"ab"], 1)
    pool.expect([b"ab"], 2)
    assert pool.count_expected([b"a", b"ab", b"abc"], 0) == 2
    assert pool.count_expected([b"a", b"ab", b"abc"], 1) == 1
    assert pool.count_expected([b"y", b"a"], 0) == 0
    pool.unexpect([b"a", b"ab"], 1)
    assert pool.count_expected([b"a"], 0) == 0
    assert pool.count_expected([b"ab"], 0) == 1
    pool.unexpect([b"ab"], 2)
    assert pool.count_expected([b"ab"], 0) == 0


def tail_of(pool: BlockPool, parent: bytes, *token_ids: int) -> tuple[int, list[int]] | None:
    tail = pool.find_tail(parent, array("I", token_ids), 0, len(token_ids))
    return tail and (tail.block_id, list(tail.token_ids))


def test_the_tail_of_a_sequence_is_found_by_what_comes_before_and_its_tokens() -> None:
    pool = BlockPool(3)
    (block_id,) = pool.allocate(1) or []
    pool.remember_tail(block_id, b"parent", array("I", [5, 6, 7]))
    assert tail_of(pool, b"parent", 5, 6, 7, 8) == (block_id, [5, 6, 7])
    assert tail_of(pool, b"parent", 5, 6, 9) == (block_id, [5, 6])
    assert tail_of(pool, b"parent", 9) is None
    assert tail_of(pool, b"other", 5, 6, 7) is None
    pool.release([block_id])
    assert counts(pool) == (2, 0, 1)
    assert pool.check_integrity({}) == []


def test_a_longer_tail_replaces_a_shorter_one_and_not_the_other_way_round() -> None:
    pool = BlockPool(3)
    first, second = pool.allocate(1) or [], pool.allocate(1) or []
    pool.remember_tail(first[0], b"p", array("I", [5, 6]))
    pool.remember_tail(second[0], b"p", array("I", [5]))
    assert tail_of(pool, b"p", 5, 6) == (0, [5, 6])
    pool.remember_tail(second[0], b"p", array("I", [5, 6, 7]))
    assert tail_of(pool, b"p", 5, 6, 7) == (1, [5, 6, 7])
    pool.release(first)
    assert counts(pool) == (2, 1, 0)


def test_a_tail_that_is_replaced_while_nobody_holds_it_becomes_free() -> None:
    pool = BlockPool(3)
    first, second = pool.allocate(1) or [], pool.allocate(1) or []
    pool.remember_tail(first[0], b"p", array("I", [5]))
    pool.release(first)
    assert counts(pool) == (1, 1, 1)
    pool.remember_tail(second[0], b"p", array("I", [9]))
    assert counts(pool) == (2, 1, 0)
    assert pool.check_integrity({"r": second}) == []


def test_a_tail_is_evicted_like_any_block_and_not_reported() -> None:
    pool = BlockPool(2)
    table = pool.allocate(2) or []
    pool.remember(table[0], b"a")
    pool.remember_tail(table[1], b"a", array("I", [5]))
    pool.release(table)
    assert pool.allocate(2) == [1, 0]
    assert tail_of(pool, b"a", 5) is None
    assert pool.evicted == [(0, b"a")]
    assert pool.check_integrity({"r": [0, 1]}) == []


def test_without_prefix_caching_nothing_is_remembered() -> None:
    pool = BlockPool(2, enable_prefix_caching=False)
    pool.release(fill(pool, b"a", b"ab"))
    assert counts(pool) == (2, 0, 0)
    assert find(pool, [b"a"]) == []


def test_releasing_twice_is_a_defect() -> None:
    pool = BlockPool(2)
    table = pool.allocate(1)
    assert table is not None
    pool.release(table)
    with pytest.raises(AssertionError, match="block 0 is released more often"):
        pool.release(table)


def test_integrity_names_what_is_wrong() -> None:
    pool = BlockPool(3)
    assert pool.allocate(1) == [0]
    assert pool.check_integrity({}) == ["block 0 has 1 references and is held by nobody"]
    assert pool.check_integrity({"a": [0], "b": [0]}) == ["block 0 has 1 references and is held by a, b"]
    pool._free.append(0)
    assert pool.check_integrity({"a": [0]}) == ["block 0 is in 2 of the states free, cached and referenced"]


def chain(tokens: list[int], **fields: Any) -> list[bytes]:
    hashes = PrefixHashes(2, **fields)
    hashes.extend(array("I", tokens))
    return hashes.chain


def test_hashes_name_a_block_and_all_before_it() -> None:
    assert len(chain([1, 2, 3])) == 1
    assert chain([1, 2, 3, 4])[0] == chain([1, 2, 9, 9])[0]
    assert chain([1, 2, 3, 4])[1] != chain([9, 9, 3, 4])[1]


def test_salt_adapter_and_media_keep_prefixes_apart() -> None:
    image, other = MediaItem(2, 1, b"image"), MediaItem(2, 1, b"other")
    chains = [
        chain([1, 2, 3, 4], **fields)
        for fields in (
            {},
            {"salt": b"x"},
            {"adapter": "x"},
            {"salt": b"x", "adapter": "x"},
            {"salt": b"xx"},
            {"media": [image]},
            {"media": [other]},
            {"media": [MediaItem(3, 1, b"image")]},
            {"media": [MediaItem(2, 2, b"image")]},
        )
    ]
    assert len({each[1] for each in chains}) == len(chains)
    # An image begins in the second block: what comes before is shared.
    assert chains[0][0] == chains[5][0] == chains[6][0]
    assert chains[0][0] not in (chains[1][0], chains[2][0])


def test_hashes_extend_as_tokens_come() -> None:
    tokens = array("I", [1, 2, 3])
    media = [MediaItem(0, 1, b"a"), MediaItem(1, 1, b"b"), MediaItem(5, 1, b"c")]
    hashes = PrefixHashes(2, salt=b"s", media=media)
    assert hashes.last == hashes.root
    hashes.extend(tokens)
    tokens.extend([4, 5, 6, 7])
    hashes.extend(tokens)
    assert hashes.chain == chain([1, 2, 3, 4, 5, 6, 7], salt=b"s", media=media)
    assert hashes.last == hashes.chain[2]


def test_host_blocks_drop_the_least_recently_used() -> None:
    host = HostBlocks(2)
    assert host.write(b"a") == (0, None)
    assert host.write(b"b") == (1, None)
    host.unpin()
    assert host.write(b"a") is None
    assert host.write(b"c") == (1, b"b")
    assert (b"a" in host, b"b" in host, host.num_used) == (True, False, 2)
    assert host.check_integrity() == []


def test_what_a_step_reads_or_writes_is_not_overwritten_by_it() -> None:
    host = HostBlocks(1)
    host.write(b"a")
    assert host.write(b"b") is None
    host.unpin()
    assert host.read(b"a") == 0
    assert host.write(b"b") is None
    host.unpin()
    assert host.write(b"b") == (0, b"a")
