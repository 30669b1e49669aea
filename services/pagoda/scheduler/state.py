"""What the scheduler tells operators about itself.

It is told between steps, so it costs a few dozen microseconds per lane, and a bounded look at the queue. A block map
looks at every block, and is made for those who ask.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import islice

import numpy as np

from pagoda.scheduler import codec
from pagoda.scheduler.block_map import block_map
from pagoda.scheduler.core.blocks import BlockPool
from pagoda.scheduler.core.lane import Lane, StepRecord
from pagoda.scheduler.core.request import Request
from pagoda.scheduler.engine import Engine
from pagoda.scheduler.sessions import ExecutorSession
from pagoda.v1 import scheduler_pb2

# Most cells of a block map: more than fit any screen, and little enough for one message about many lanes.
MAX_BLOCK_MAP_CELLS = 65536

_MAX_REQUESTS_SEEN = 8192
_MAX_WAITING_CLIENTS = 8


def describe(engine: Engine, now: float, uptime_s: float, block_map_cells: int) -> scheduler_pb2.SchedulerState:
    """now: on the core's clock. block_map_cells: most cells per lane; 0 = no maps."""
    core = engine.core
    state = scheduler_pb2.SchedulerState(
        model=codec.encode_model(core.model) if core.model else None,
        num_waiting=len(core.waiting),
        max_num_waiting=core.options.max_num_waiting,
        draining=core.is_draining,
        num_tokenizers=len(engine.tokenizers),
        uptime_s=uptime_s,
        policy=core.options.policy,
        moves_failed=core.counters.moves_failed,
        transferred_blocks=engine.transfers.num_blocks,
        transferred_bytes=engine.transfers.num_bytes,
        transfers=engine.transfers,
        **dataclasses.asdict(core.counters),
    )
    for lane in core.lanes.values():
        described = _describe_lane(lane, engine.executors[lane.id])
        if block_map_cells:
            described.block_map.CopyFrom(_describe_blocks(lane.pool, block_map_cells))
        state.lanes.append(described)
    _describe_waiting(core.requests.values(), now, state)
    return state


def _describe_waiting(requests: Iterable[Request], now: float, state: scheduler_pb2.SchedulerState) -> None:
    """requests: unfinished, in the order of their arrival. The queue itself has another, and it costs more to ask."""
    waiting = [
        request for request in islice(requests, _MAX_REQUESTS_SEEN) if request.lane is None and request.move is None
    ]
    if waiting:
        state.oldest_waiting_s = now - waiting[0].arrived_at
    clients = Counter(request.client_id for request in waiting)
    for client_id, count in clients.most_common(_MAX_WAITING_CLIENTS):
        state.waiting_clients.add(client_id=client_id, num_waiting=count)


def _describe_lane(lane: Lane, session: ExecutorSession) -> scheduler_pb2.LaneState:
    return scheduler_pb2.LaneState(
        session_id=lane.id,
        name=session.name,
        role=codec.encode_role(lane.role),
        kv_layout=session.registration.kv_layout,
        max_num_seqs=lane.spec.max_num_seqs,
        num_running=lane.num_running,
        num_free_blocks=lane.pool.num_free,
        num_cached_blocks=lane.pool.num_cached,
        num_referenced_blocks=lane.pool.num_referenced,
        steps=lane.num_completed_steps,
        last_forward_ns=lane.last_forward_ns,
        max_num_batched_tokens=lane.spec.max_num_batched_tokens,
        num_decoding=lane.num_decoding,
        num_prefilling=lane.num_prefilling,
        steps_in_flight=len(lane.flights),
        max_steps_in_flight=lane.max_plans_in_flight,
        num_host_blocks=lane.host.num_blocks if lane.host else 0,
        num_used_host_blocks=lane.host.num_used if lane.host else 0,
        num_arriving=len(lane.arriving),
        leaving=lane.is_leaving,
        transfers=session.transfers,
        recent_steps=describe_steps(lane.recent_steps) if lane.recent_steps else None,
    )


def describe_steps(steps: Collection[StepRecord]) -> scheduler_pb2.RecentSteps:
    """steps: at least one"""
    # Sorting a few hundred numbers is several times faster than numpy's percentiles of them.
    forward_ns = sorted(step.forward_ns for step in steps)
    turnaround_ns = sorted(step.turnaround_ns for step in steps)
    return scheduler_pb2.RecentSteps(
        num_steps=len(steps),
        forward_p50_ns=_percentile(forward_ns, 50),
        forward_p99_ns=_percentile(forward_ns, 99),
        turnaround_p50_ns=_percentile(turnaround_ns, 50),
        turnaround_p99_ns=_percentile(turnaround_ns, 99),
        mean_num_rows=sum(step.num_rows for step in steps) / len(steps),
        mean_num_tokens=sum(step.num_tokens for step in steps) / len(steps),
    )


def _percentile(ascending: list[int], percent: int) -> int:
    """The smallest of the values that `percent` of them do not exceed."""
    return ascending[-(-len(ascending) * percent // 100) - 1]


def _describe_blocks(pool: BlockPool, num_cells: int) -> scheduler_pb2.BlockMap:
    ref_counts = pool.ref_counts
    return scheduler_pb2.BlockMap(
        cells=block_map(ref_counts, pool.cached_mask(), num_cells).tobytes(),
        num_shared_blocks=int(np.count_nonzero(ref_counts > 1)),
    )
