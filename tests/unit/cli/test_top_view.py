"""Frames of `pagoda top`: fixed states in, exact text out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pagoda.cli import top_text as text
from pagoda.cli.top_history import History
from pagoda.cli.top_view import CONNECTED, Connection, render, wanted_map_cells
from pagoda.scheduler.block_map import block_map
from pagoda.v1 import common_pb2, scheduler_pb2


def history_of(*states: Any) -> History:
    history = History(1.0)
    for state in states:
        history.add(state)
    return history


def frame(history: History, width: int, height: int | None, connection: Connection = CONNECTED) -> str:
    lines = render(history, connection, width, height, hint="q quits")
    assert all(text.length(line) <= width for line in lines)
    assert height is None or len(lines) <= height
    return "\n".join(text.plain(line) for line in lines)


@pytest.fixture
def busy(state_of: Any, lane_of: Any) -> History:
    """Two executors, the second with host memory; a second between the two states."""
    first = state_of(
        7379,
        lane_of("executor-0", forward_ms=6.25),
        lane_of("executor-1", num_host_blocks=100, num_used_host_blocks=10),
        requests_admitted=40,
        requests_finished=30,
        prompt_tokens=1000,
        generation_tokens=5000,
        prefix_cache_queries=1000,
        prefix_cache_hits=100,
        preemptions=3,
        offloaded_blocks=5,
    )
    second = state_of(
        7380,
        lane_of("executor-0", steps=1080, block_map=map_of([3, 3, 4, 1, 2, 128, 150, 200, 255])),
        lane_of("executor-1", num_host_blocks=100, num_used_host_blocks=10, block_map=map_of([1] * 9)),
        clients={"alice": 2, "": 1},
        num_waiting=3,
        oldest_waiting_s=0.8,
        requests_admitted=44,
        requests_finished=33,
        prompt_tokens=1500,
        generation_tokens=6234,
        prefix_cache_queries=1500,
        prefix_cache_hits=400,
        preemptions=3,
        offloaded_blocks=7,
    )
    return history_of(first, second)


def map_of(cells: list[int], num_shared_blocks: int = 0) -> scheduler_pb2.BlockMap:
    return scheduler_pb2.BlockMap(cells=bytes(cells), num_shared_blocks=num_shared_blocks)


def test_a_usual_terminal(busy: History) -> None:
    assert frame(busy, 80, 24) == (
        """\
pagoda top  llama bfloat16  fcfs  serving  up 2h03m                      q quits
requests   28 running · 3 of 1,024 waiting · oldest 800ms · 2 tokenizers
per second 4.0 admitted · 3.0 finished · 0 aborted · 0 rejected
waiting    alice 2 · without a name 1
tokens/s    1,234 generated                █ ·    500 prompt                █
kv blocks  25% held · 50% cached · 25% free of 2,000 · host 10 of 100
prefix     27% of prompt tokens found · 60% in the last 1s
events     3 preempted · 7 offloaded (+2)

EXECUTOR   ROLE     DEC+PRE/MAX PLANS  KV STEP p50    p99 TURN p50    p99 TOK/S
executor-0 mixed        12+2/64   1/2 25%   12.5ms 14.1ms    850us 2.00ms 4,800
  250 blocks held · 500 cached · 250 free of 1,000 · 1,080 steps
  step                                 ▅█  kv                                 ▃▃
  ██▓·░░▂▄▇
executor-1 mixed        12+2/64   1/2 25%   12.5ms 14.1ms    850us 2.00ms     0
  250 blocks held · 500 cached · 250 free of 1,000 · host 10 of 100
  step                                 ██  kv                                 ▃▃
  ·········
  block map: · free  ░ cached  █ held  ▓ shared  ▁▄▇ partly held"""
    )


def test_a_narrow_terminal(busy: History) -> None:
    assert frame(busy, 40, 12) == (
        """\
pagoda top  llama bfloat16  fcfs  servi…
requests   28 running
per second 4.0 admitted · 3.0 finished
waiting    alice 2 · without a name 1
tokens/s    1,234 generated
kv blocks  25% held · 50% cached
prefix     27% of prompt tokens found
events     3 preempted

EXECUTOR    DEC+PRE/MAX  KV STEP p50
executor-0      12+2/64 25%   12.5ms
executor-1      12+2/64 25%   12.5ms"""
    )


def test_more_executors_than_lines(state_of: Any, lane_of: Any) -> None:
    lanes = [lane_of(f"executor-{i}", block_map=map_of([1])) for i in range(100)]
    lines = frame(history_of(state_of(1, *lanes)), 80, 24).splitlines()
    assert [line.split()[0] for line in lines[8:]] == [
        "EXECUTOR",
        *(f"executor-{i}" for i in range(14)),
        "and",
    ]
    assert lines[-1] == "and 86 more executors"


def test_no_executor_yet(state_of: Any) -> None:
    state = state_of(3.0)
    state.ClearField("model")
    assert frame(history_of(state), 80, 24) == (
        """\
pagoda top  fcfs  no executor  up 3.00s                                  q quits
requests   0 running · 0 of 1,024 waiting · 2 tokenizers
per second - admitted · - finished · - aborted · - rejected
tokens/s        - generated                  ·      - prompt
kv blocks  -
prefix     - of prompt tokens found
events     none
"""
    )


def test_an_executor_without_steps(state_of: Any, lane_of: Any) -> None:
    lane = lane_of(forward_ms=None)
    row = frame(history_of(state_of(1, lane), state_of(2, lane)), 80, 24).splitlines()[9]
    assert row.split() == ["executor-0", "mixed", "12+2/64", "1/2", "25%", "-", "-", "-", "-", "0"]


@pytest.fixture
def pools(state_of: Any, lane_of: Any) -> History:
    """Requests move from one executor to two others, one of which leaves; a second between the two states."""

    def moved(num_bytes: int) -> scheduler_pb2.TransferStats:
        return scheduler_pb2.TransferStats(
            sent=scheduler_pb2.TransferCounters(bytes=num_bytes),
            received=scheduler_pb2.TransferCounters(bytes=num_bytes // 2),
        )

    decode, prefill = common_pb2.EXECUTOR_ROLE_DECODE, common_pb2.EXECUTOR_ROLE_PREFILL
    first = state_of(
        10, lane_of("d0", role=decode), lane_of("d1", role=decode), lane_of("p0", role=prefill, transfers=moved(1000))
    )
    second = state_of(
        11,
        lane_of("d0", role=decode, num_arriving=3),
        lane_of("d1", role=decode, leaving=True),
        lane_of("p0", role=prefill, transfers=moved(12_301_000)),
        moves_begun=20,
        moves_done=12,
        moves_failed=5,
        move_failures={"timeout": 1, "push_unreachable": 4},
        transferred_bytes=12_300_000,
        transferred_blocks=44,
    )
    return history_of(first, second)


def test_pools(pools: History) -> None:
    assert frame(pools, 120, 14) == (
        """\
pagoda top  llama bfloat16  fcfs  serving  up 11s                                                                q quits
requests   42 running · 0 of 1,024 waiting · 2 tokenizers
per second 0 admitted · 0 finished · 0 aborted · 0 rejected
tokens/s        0 generated                ▁ ·      0 prompt                ▁
kv blocks  25% held · 50% cached · 25% free of 3,000 ·               ▃▃
prefix     - of prompt tokens found · - in the last 1s
pools      1 prefill: 14 running · 2 decode: 28 running, 3 arriving, 1 leaving
moves      12/s · 12.3MB/s · 44 blocks/s · 12 done · 5 failed (+5) · push_unreachable 4 · timeout 1
events     none

EXECUTOR   ROLE     DEC+PRE/MAX PLANS  KV STEP p50    p99 TURN p50    p99 TOK/S ARR SENT B/S RECV B/S
p0         prefill      12+2/64   1/2 25%   12.5ms 14.1ms    850us 2.00ms     0   0    12.3M    6.15M
d0         decode       12+2/64   1/2 25%   12.5ms 14.1ms    850us 2.00ms     0   3        0        0
d1         leaving      12+2/64   1/2 25%   12.5ms 14.1ms    850us 2.00ms     0   0        0        0"""
    )


def test_pools_in_a_usual_terminal(pools: History) -> None:
    assert frame(pools, 80, 14) == (
        """\
pagoda top  llama bfloat16  fcfs  serving  up 11s                        q quits
requests   42 running · 0 of 1,024 waiting · 2 tokenizers
per second 0 admitted · 0 finished · 0 aborted · 0 rejected
tokens/s        0 generated                ▁ ·      0 prompt                ▁
kv blocks  25% held · 50% cached · 25% free of 3,000 ·               ▃▃
prefix     - of prompt tokens found · - in the last 1s
pools      1 prefill: 14 running · 2 decode: 28 running, 3 arriving, 1 leaving
moves      12/s · 12.3MB/s · 44 blocks/s · 12 done · 5 failed (+5)
events     none

EXECUTOR   ROLE     DEC+PRE/MAX  KV STEP p50    p99 TOK/S ARR SENT B/S RECV B/S
p0         prefill      12+2/64 25%   12.5ms 14.1ms     0   0    12.3M    6.15M
d0         decode       12+2/64 25%   12.5ms 14.1ms     0   3        0        0
d1         leaving      12+2/64 25%   12.5ms 14.1ms     0   0        0        0"""
    )


def test_an_executor_that_leaves_stands_out(pools: History) -> None:
    lines = render(pools, CONNECTED, 80, 24)
    assert [span.text for line in lines for span in line if span.style == "warn"] == [", 1 leaving", "leaving"]


def test_away_before_there_was_a_state() -> None:
    problem = Connection("127.0.0.1:50052: no scheduler listens there")
    assert frame(History(1.0), 80, 24, problem) == (
        """\
pagoda top                                                               q quits
no answer, trying again: 127.0.0.1:50052: no scheduler listens there"""
    )


def test_away_shows_what_was_last_known(busy: History) -> None:
    lines = frame(busy, 80, 24, Connection("gone", 75)).splitlines()
    assert lines[1] == "no answer for 1m15s, trying again: gone"
    assert lines[2].startswith("requests   28 running")


def test_draining_and_nearly_full_stand_out(state_of: Any, lane_of: Any) -> None:
    lane = lane_of(num_referenced_blocks=950, num_running=64)
    state = state_of(1, lane, draining=True, num_waiting=1000)
    lines = render(history_of(state), CONNECTED, 80, 24)
    warnings = [span.text for line in lines for span in line if span.style == "warn"]
    assert warnings == ["draining", "1,000 of 1,024 waiting", "95% held", "12+2/64", "95%"]


def test_names_of_strangers(state_of: Any, lane_of: Any) -> None:
    lane = lane_of("\x1b[2J" + "x" * 100)
    lane.session_id = "s"
    shown = frame(history_of(state_of(1, lane, clients={"\x07東京\n": 3}, policy="\x1b[0m")), 200, 24)
    assert "waiting    ????  3" not in shown
    assert "waiting    ???? 3" in shown
    assert "?[2J" + "x" * 19 + "…" in shown
    assert not any(each < " " and each != "\n" for each in shown)


def test_wide_terminals_have_room_for_totals(state_of: Any, lane_of: Any) -> None:
    events = ("preemptions", "recoveries", "requests_expired", "requests_rejected", "offloaded_blocks")
    blocks = ("loaded_blocks", "merged_blocks", "copied_blocks")
    state = state_of(1, lane_of(), **dict.fromkeys(events + blocks, 12_345))
    assert (
        "events     12,345 rejected · 12,345 preempted · 12,345 recovered · 12,345 expired · 12,345 offloaded · "
        "12,345 loaded · 12,345 merged · 12,345 copied\n"
    ) in frame(history_of(state), 200, 50)


def test_the_longest_recovery(state_of: Any, lane_of: Any) -> None:
    times = {"executor": {"longest_s": 0.25}, "executors": {"longest_s": 3.5}, "blocks": {}}
    shown = frame(history_of(state_of(1, lane_of(), recoveries=3, recovery_times=times)), 200, 50)
    assert "events     3 recovered · longest recovery 3.50s\n" in shown


@pytest.mark.parametrize("lane_fields", [{}, {"role": common_pb2.EXECUTOR_ROLE_DECODE}], ids=["mixed", "pools"])
@pytest.mark.parametrize("num_lanes", [0, 1, 2, 3, 5, 40])
@pytest.mark.parametrize(
    "size", [(80, 24), (1, 1), (2, 3), (12, 8), (40, 10), (79, 30), (132, 43), (500, 200), (80, None)]
)
def test_every_size(
    state_of: Any, lane_of: Any, lane_fields: dict[str, Any], num_lanes: int, size: tuple[int, int | None]
) -> None:
    """Nothing is too wide or too high, and the block maps fit where as many cells came as were asked for."""
    ref_counts = np.arange(100_000, dtype=np.int32) % 3
    cached = ref_counts == 0
    lanes = [lane_of(f"executor-{i}", **lane_fields) for i in range(num_lanes)]
    num_cells = wanted_map_cells(state_of(1, *lanes), *size)
    if num_cells:
        cells = block_map(ref_counts, cached, num_cells)
        for lane in lanes:
            lane.block_map.CopyFrom(map_of(list(cells)))
    state = state_of(1, *lanes, clients={"a": 1}, num_waiting=1)
    shown = frame(history_of(state), *size, Connection("away", 3))
    assert ("block map:"[: size[0] - 3] in shown) == (num_cells > 0)
    full = size == (80, None) or size == (500, 200)
    num_other_lines = 14 if lane_fields else 12
    has_room = full or (size[1] is not None and size[1] >= num_other_lines + 4 * num_lanes)
    assert (num_cells > 0) == (num_lanes > 0 and has_room)


def test_a_block_map_of_another_size_waits_for_the_next_state(state_of: Any, lane_of: Any) -> None:
    state = state_of(1, lane_of(block_map=map_of([1] * 2000, num_shared_blocks=7)))
    assert "block map:" in frame(history_of(state), 500, 50)
    shown = frame(history_of(state), 80, 24)
    assert "block map:" not in shown
    assert "250 blocks held (7 shared)" in shown


def test_an_old_scheduler_tells_less(state_of: Any) -> None:
    """One that knows no uptime has no rates."""
    history = history_of(state_of(0), state_of(0))
    assert "per second - admitted" in frame(history, 80, 24)
