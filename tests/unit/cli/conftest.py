"""States of a scheduler, for the tests of `pagoda top`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pagoda.v1 import common_pb2, scheduler_pb2


def make_lane(name: str = "executor-0", *, forward_ms: float | None = 12.5, **fields: Any) -> scheduler_pb2.LaneState:
    """A quarter of 1,000 blocks is held, half of them cached. Fields replace what is there."""
    lane = scheduler_pb2.LaneState(
        session_id=f"session of {name}",
        name=name,
        role=common_pb2.EXECUTOR_ROLE_MIXED,
        kv_layout=common_pb2.KvLayout(num_blocks=1000),
        max_num_seqs=64,
        num_running=14,
        num_decoding=12,
        num_prefilling=2,
        num_referenced_blocks=250,
        num_cached_blocks=500,
        num_free_blocks=250,
        steps=1000,
        steps_in_flight=1,
        max_steps_in_flight=2,
    )
    if forward_ms is not None:
        lane.recent_steps.CopyFrom(
            scheduler_pb2.RecentSteps(
                num_steps=256,
                forward_p50_ns=int(forward_ms * 1e6),
                forward_p99_ns=14_100_000,
                turnaround_p50_ns=850_000,
                turnaround_p99_ns=2_000_000,
                mean_num_rows=13,
                mean_num_tokens=60,
            )
        )
    lane.MergeFrom(scheduler_pb2.LaneState(**fields))
    return lane


def make_state(
    uptime_s: float, *lanes: scheduler_pb2.LaneState, clients: dict[str, int] | None = None, **fields: Any
) -> scheduler_pb2.SchedulerState:
    state = scheduler_pb2.SchedulerState(
        model=common_pb2.ModelInfo(model_type="llama", dtype="bfloat16"),
        lanes=lanes,
        policy="fcfs",
        max_num_waiting=1024,
        num_tokenizers=2,
        uptime_s=uptime_s,
    )
    for client_id, count in (clients or {}).items():
        state.waiting_clients.add(client_id=client_id, num_waiting=count)
    state.MergeFrom(scheduler_pb2.SchedulerState(**fields))
    return state


@pytest.fixture(scope="session")
def lane_of() -> Callable[..., scheduler_pb2.LaneState]:
    return make_lane


@pytest.fixture(scope="session")
def state_of() -> Callable[..., scheduler_pb2.SchedulerState]:
    return make_state
