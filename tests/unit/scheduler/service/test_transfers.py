"""Transfers that executors tell of in their heartbeats: added up, and never less than before."""

from __future__ import annotations

from typing import Any

from pagoda.scheduler.transfers import TransferTotals
from pagoda.v1 import scheduler_pb2
from pagoda.v1.scheduler_pb2 import TransferCounters, TransferStats


def stats(blocks: int, **failures: int) -> TransferStats:
    """Received: `blocks` of 10 bytes, half a second each; sent: twice as many."""
    return TransferStats(
        sent=TransferCounters(blocks=2 * blocks, bytes=20 * blocks, seconds=float(blocks)),
        received=TransferCounters(
            blocks=blocks, bytes=10 * blocks, seconds=0.5 * blocks, failures=failures, late_blocks=1 if blocks else 0
        ),
    )


async def beat(executor: Any, told: TransferStats) -> None:
    heartbeat = scheduler_pb2.Heartbeat(transfers=told)
    await executor.call.write(scheduler_pb2.RegisterExecutorRequest(heartbeat=heartbeat))


async def test_heartbeats_tell_of_transfers(service: Any) -> None:
    executor = await service.executor("e", transfers=stats(100, timeout=1))
    await service.executor("silent")
    state = await service.state()
    assert (state.transferred_blocks, state.transferred_bytes, len(state.transfers)) == (0, 0, 0)
    await beat(executor, stats(103, timeout=2, full=1))
    await service.until(lambda: service.engine.transfers.num_blocks)
    state = await service.state()
    # What it had received in an earlier session was not in this scheduler's time.
    assert (state.transferred_blocks, state.transferred_bytes) == (3, 30)
    (told,) = state.transfers
    assert told.name == "e"
    assert (told.stats.sent.blocks, told.stats.sent.bytes, told.stats.sent.seconds) == (6, 60, 3.0)
    assert (told.stats.received.blocks, told.stats.received.seconds) == (3, 1.5)
    assert told.stats.received.failures == {"timeout": 1, "full": 1}
    assert told.stats.received.late_blocks == 0
    assert {lane.name: lane.transfers for lane in state.lanes} == {
        "e": stats(103, timeout=2, full=1),
        "silent": TransferStats(),
    }


async def test_totals_outlive_executors(service: Any) -> None:
    first = await service.executor("e")
    await beat(first, stats(3))
    await service.until(lambda: service.engine.transfers.num_blocks == 3)
    await first.stop()
    await service.until(lambda: not service.engine.core.lanes)
    assert [each.stats for each in (await service.state()).transfers] == [stats(3)]
    # A new process of the same name counts from zero.
    second = await service.executor("e")
    await beat(second, stats(2))
    await service.until(lambda: service.engine.transfers.num_blocks == 5)
    (told,) = (await service.state()).transfers
    assert (told.name, told.stats.received.bytes, told.stats.sent.blocks) == ("e", 50, 10)


def test_counters_that_go_back_count_nothing() -> None:
    totals = TransferTotals()
    totals.add("e", stats(0), stats(5, timeout=2))
    totals.add("e", stats(5, timeout=2), stats(1))
    totals.add("e", stats(1), stats(2, timeout=1))
    (told,) = totals
    assert told.stats.received.blocks == totals.num_blocks == 6
    assert told.stats.received.failures == {"timeout": 3}


def test_words_that_are_none_are_not_repeated() -> None:
    totals = TransferTotals()
    totals.add("e", stats(0), stats(0, **{'x"} 1\n': 2, "a" * 100: 3, "timeout": 1}))
    (told,) = totals
    assert told.stats.received.failures == {"other": 5, "timeout": 1}


def test_the_executor_silent_for_longest_is_forgotten() -> None:
    totals = TransferTotals()
    for number in range(1030):
        totals.add(f"pod-{number}", stats(0), stats(1))
        totals.add("busy", stats(number), stats(number + 1))
    names = [each.name for each in totals]
    assert len(names) == 1024
    assert "busy" in names
    assert "pod-0" not in names
    assert totals.num_blocks == 2060
