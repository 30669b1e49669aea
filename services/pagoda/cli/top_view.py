"""One frame of `pagoda top`: the cell above, its lanes below. Pure: a history and a size in, lines out."""

from __future__ import annotations

from dataclasses import dataclass

from pagoda.cli import top_text as text
from pagoda.cli.top_history import History
from pagoda.cli.top_lanes import NEARLY_FULL, lane_lines, map_cells
from pagoda.cli.top_pools import has_pools, moves, pools
from pagoda.cli.top_text import Line, Span
from pagoda.v1.scheduler_pb2 import SchedulerState

_LABEL_WIDTH = 10
# Lines above the lanes, at most, and those about pools among them.
_CELL_LINES = 12
_POOL_LINES = 2
_SPARKLINE_WIDTH = 16

# Counters that stand still as long as nothing out of the ordinary happens.
_EVENTS = (
    ("rejected", "requests_rejected"),
    ("preempted", "preemptions"),
    ("recovered", "recoveries"),
    ("expired", "requests_expired"),
    ("offloaded", "offloaded_blocks"),
    ("loaded", "loaded_blocks"),
    ("merged", "merged_blocks"),
    ("copied", "copied_blocks"),
)


@dataclass(frozen=True)
class Connection:
    """How things stand with the scheduler. problem: why it cannot be seen; silent_s: for how long, then"""

    problem: str | None = None
    silent_s: float = 0.0


CONNECTED = Connection()


def render(history: History, connection: Connection, width: int, height: int | None, hint: str = "") -> list[Line]:
    """At most `height` lines (None: as many as there are) of at most `width` columns.

    hint: stands in the corner, where there is room
    """
    state = history.last
    lines = [_title(state, width, hint)]
    if connection.problem is not None:
        since = f" for {text.seconds(connection.silent_s)}" if state else ""
        problem = text.printable(connection.problem)
        lines.append([Span(f"no answer{since}, trying again: {problem}", "bad")])
    if state is not None:
        lines += _cell_lines(history, state, width)
        lines.append([])
        room = None if height is None else height - len(lines)
        lines += lane_lines(history, state, width, room)
    return [text.clip(line, width) for line in lines[:height]]


def wanted_map_cells(state: SchedulerState | None, width: int, height: int | None) -> int:
    """How many cells of each lane's block map a frame of that size has room for, about a state like this one."""
    if state is None:
        return 0
    num_cell_lines = _CELL_LINES if has_pools(state) else _CELL_LINES - _POOL_LINES
    return map_cells(len(state.lanes), width, None if height is None else height - num_cell_lines)


def _title(state: SchedulerState | None, width: int, hint: str) -> Line:
    line = [Span("pagoda top", "bold")]
    if state is not None:
        if state.HasField("model"):
            line.append(Span(f"  {text.printable(state.model.model_type)} {text.printable(state.model.dtype)}"))
        if state.policy:
            line.append(Span(f"  {text.printable(state.policy)}"))
        line += [Span("  "), _badge(state), Span(f"  up {text.seconds(state.uptime_s)}")]
    room = width - text.length(line) - len(hint)
    return [*line, Span(" " * room), Span(hint, "dim")] if room > 0 else line


def _badge(state: SchedulerState) -> Span:
    if state.draining:
        return Span("draining", "warn")
    return Span("serving", "good") if state.lanes else Span("no executor", "bad")


def _cell_lines(history: History, state: SchedulerState, width: int) -> list[Line]:
    lines = [
        _row("requests", _requests(state), width),
        _row("per second", _request_rates(history), width),
    ]
    if state.waiting_clients:
        lines.append(_row("waiting", _waiting_clients(state), width))
    lines += [
        _row("tokens/s", _token_rates(history, width), width),
        _row("kv blocks", _blocks(history, state, width), width),
        _row("prefix", _prefix_cache(history, state), width),
    ]
    if has_pools(state):
        lines += [_row("pools", pools(state), width), _row("moves", moves(history, state), width)]
    lines += [
        _row("events", _events(history, state), width),
    ]
    return lines


def _row(label: str, items: list[Line], width: int) -> Line:
    return text.fit([Span(label.ljust(_LABEL_WIDTH + 1), "dim")], items, width)


def _requests(state: SchedulerState) -> list[Line]:
    is_nearly_full = state.num_waiting >= NEARLY_FULL * state.max_num_waiting > 0
    waiting = f"{text.count(state.num_waiting)} of {text.count(state.max_num_waiting)} waiting"
    items: list[Line] = [
        [Span(f"{text.count(sum(lane.num_running for lane in state.lanes))} running")],
        [Span(waiting, "warn" if is_nearly_full else "")],
    ]
    if state.num_waiting:
        items.append([Span(f"oldest {text.seconds(state.oldest_waiting_s)}")])
    items.append([Span(f"{state.num_tokenizers} tokenizer{'' if state.num_tokenizers == 1 else 's'}")])
    return items


def _request_rates(history: History) -> list[Line]:
    return [
        [Span(f"{text.rate(history.rate(f'requests_{name}'))} {name}")]
        for name in ("admitted", "finished", "aborted", "rejected")
    ]


def _waiting_clients(state: SchedulerState) -> list[Line]:
    return [
        [Span(f"{text.printable(each.client_id) or 'without a name'} {text.count(each.num_waiting)}")]
        for each in state.waiting_clients
    ]


def _token_rates(history: History, width: int) -> list[Line]:
    items: list[Line] = []
    for counter, name in (("generation_tokens", "generated"), ("prompt_tokens", "prompt")):
        item = [Span(f"{text.rate(history.rate(counter)):>6} {name}")]
        if width >= 2 * _SPARKLINE_WIDTH + 48:
            item.append(Span(f" {text.sparkline(history.rates(counter), _SPARKLINE_WIDTH)}", "held"))
        items.append(item)
    return items


def _blocks(history: History, state: SchedulerState, width: int) -> list[Line]:
    total = _num_blocks(state)
    if not total:
        return [[Span("-")]]
    held = sum(lane.num_referenced_blocks for lane in state.lanes)
    cached = sum(lane.num_cached_blocks for lane in state.lanes)
    free = sum(lane.num_free_blocks for lane in state.lanes)
    items: list[Line] = [
        [Span(f"{text.share(held, total)} held", "warn" if held >= NEARLY_FULL * total else "held")],
        [Span(f"{text.share(cached, total)} cached", "cached")],
        [Span(f"{text.share(free, total)} free of {text.count(total)}")],
    ]
    if num_host_blocks := sum(lane.num_host_blocks for lane in state.lanes):
        used = sum(lane.num_used_host_blocks for lane in state.lanes)
        items.append([Span(f"host {text.count(used)} of {text.count(num_host_blocks)}")])
    items.append([Span(text.sparkline(history.values(_held_share), _SPARKLINE_WIDTH, top=1), "held")])
    return items


def _prefix_cache(history: History, state: SchedulerState) -> list[Line]:
    hits, queries = history.recent("prefix_cache_hits"), history.recent("prefix_cache_queries")
    items: list[Line] = [
        [Span(f"{text.share(state.prefix_cache_hits, state.prefix_cache_queries)} of prompt tokens found")]
    ]
    if len(history.states) > 1:
        items.append([Span(f"{text.share(hits, queries)} in the last {history.recent_s:.0f}s")])
    return items


def _events(history: History, state: SchedulerState) -> list[Line]:
    """What has happened since the scheduler started, and how much of it is recent."""
    items: list[Line] = []
    for name, counter in _EVENTS:
        if total := getattr(state, counter):
            recent = history.recent(counter)
            items.append([Span(f"{text.count(total)} {name}")])
            if recent:
                items[-1].append(Span(f" (+{text.count(recent)})", "bold"))
    if longest_s := max((each.longest_s for each in state.recovery_times.values()), default=0.0):
        items.append([Span(f"longest recovery {text.seconds(longest_s)}")])
    return items or [[Span("none")]]


def _held_share(state: SchedulerState) -> float:
    return sum(lane.num_referenced_blocks for lane in state.lanes) / max(_num_blocks(state), 1)


def _num_blocks(state: SchedulerState) -> int:
    return sum(lane.kv_layout.num_blocks for lane in state.lanes)
