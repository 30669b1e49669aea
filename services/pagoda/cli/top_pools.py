"""The pools in a frame of `pagoda top`: who computes prompts, who goes on with them, and what moves between them."""

from __future__ import annotations

from pagoda.cli import top_text as text
from pagoda.cli.top_history import History
from pagoda.cli.top_text import Line, Span
from pagoda.v1.common_pb2 import ExecutorRole
from pagoda.v1.scheduler_pb2 import SchedulerState

# In the order in which a request meets them.
ROLES = {
    ExecutorRole.EXECUTOR_ROLE_PREFILL: "prefill",
    ExecutorRole.EXECUTOR_ROLE_DECODE: "decode",
    ExecutorRole.EXECUTOR_ROLE_MIXED: "mixed",
}


def has_pools(state: SchedulerState) -> bool:
    """Whether there is anything to say of them: executors differ, or requests have moved."""
    return state.moves_begun > 0 or any(
        lane.role != ExecutorRole.EXECUTOR_ROLE_MIXED or lane.leaving for lane in state.lanes
    )


def pools(state: SchedulerState) -> list[Line]:
    """One item per role that there is."""
    items: list[Line] = []
    for role, name in ROLES.items():
        lanes = [lane for lane in state.lanes if lane.role == role]
        if not lanes:
            continue
        items.append([Span(f"{len(lanes)} {name}: {text.count(sum(lane.num_running for lane in lanes))} running")])
        if num_arriving := sum(lane.num_arriving for lane in lanes):
            items[-1].append(Span(f", {text.count(num_arriving)} arriving"))
        if num_leaving := sum(lane.leaving for lane in lanes):
            items[-1].append(Span(f", {num_leaving} leaving", "warn"))
    return items or [[Span("none")]]


def moves(history: History, state: SchedulerState) -> list[Line]:
    """How fast requests and their blocks move now, and what became of the moves so far. Executors tell of blocks with
    their heartbeats, so those rates lag a second behind."""
    items: list[Line] = [
        [Span(f"{text.rate(history.rate('moves_done'))}/s")],
        [Span(f"{text.rate(history.rate('transferred_bytes'))}B/s")],
        [Span(f"{text.rate(history.rate('transferred_blocks'))} blocks/s")],
        [Span(f"{text.count(state.moves_done)} done")],
    ]
    if state.moves_failed:
        items.append([Span(f"{text.count(state.moves_failed)} failed")])
        if recent := history.recent("moves_failed"):
            items[-1].append(Span(f" (+{text.count(recent)})", "bold"))
        reasons = sorted(state.move_failures.items(), key=lambda item: -item[1])
        items += [[Span(f"{text.printable(reason)} {text.count(count)}", "dim")] for reason, count in reasons]
    return items
