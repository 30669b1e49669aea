"""What the scheduler tells operators about itself."""

from __future__ import annotations

import dataclasses

from pagoda.scheduler import codec
from pagoda.scheduler.core.lane import Lane
from pagoda.scheduler.engine import Engine
from pagoda.v1 import scheduler_pb2


def describe(engine: Engine) -> scheduler_pb2.SchedulerState:
    core = engine.core
    return scheduler_pb2.SchedulerState(
        model=codec.encode_model(core.model) if core.model else None,
        lanes=[_describe_lane(lane, engine.executors[lane.id].registration) for lane in core.lanes.values()],
        num_waiting=len(core.waiting),
        max_num_waiting=core.options.max_num_waiting,
        draining=core.is_draining,
        num_tokenizers=len(engine.tokenizers),
        **dataclasses.asdict(core.counters),
    )


def _describe_lane(lane: Lane, registration: scheduler_pb2.ExecutorRegistration) -> scheduler_pb2.LaneState:
    return scheduler_pb2.LaneState(
        session_id=lane.id,
        name=registration.name,
        role=registration.role,
        kv_layout=registration.kv_layout,
        max_num_seqs=lane.spec.max_num_seqs,
        num_running=len(lane.running),
        num_free_blocks=lane.pool.num_free,
        num_cached_blocks=lane.pool.num_cached,
        num_referenced_blocks=lane.pool.num_referenced,
        steps=lane.num_completed_steps,
        last_forward_ns=lane.last_forward_ns,
        max_num_batched_tokens=lane.spec.max_num_batched_tokens,
    )
