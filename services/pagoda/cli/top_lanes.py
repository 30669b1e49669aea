"""The lanes in a frame of `pagoda top`: a table, and as much about each lane as there is room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pagoda.cli import top_text as text
from pagoda.cli.top_history import History
from pagoda.cli.top_pools import ROLES, has_pools
from pagoda.cli.top_text import Line, Span
from pagoda.v1.scheduler_pb2 import BlockState, LaneState, SchedulerState

# From this share of a bound on, it is worth a look.
NEARLY_FULL = 0.9

# Lines of a block map, at most.
_MAX_MAP_LINES = 6
# What the scheduler sends at most.
_MAX_MAP_CELLS = 65536
# What stands before a lane's details.
_INDENT = "  "

_LONGEST_NAME = 24

_ROLES = list(ROLES)

_CELLS: dict[int, Span] = {
    BlockState.BLOCK_STATE_FREE: Span("·", "dim"),
    BlockState.BLOCK_STATE_CACHED: Span("░", "cached"),
    BlockState.BLOCK_STATE_REFERENCED: Span("█", "held"),
    BlockState.BLOCK_STATE_SHARED: Span("▓", "shared"),
    BlockState.BLOCK_STATE_MIXED: Span("░", "cached"),
}
_LEGEND: Line = [
    Span(f"{_INDENT}block map: "),
    *(
        span
        for state, name in (
            (BlockState.BLOCK_STATE_FREE, " free  "),
            (BlockState.BLOCK_STATE_CACHED, " cached  "),
            (BlockState.BLOCK_STATE_REFERENCED, " held  "),
            (BlockState.BLOCK_STATE_SHARED, " shared  "),
        )
        for span in (_CELLS[state], Span(name))
    ),
    Span("▁▄▇", "held"),
    Span(" partly held"),
]


def lane_lines(history: History, state: SchedulerState, width: int, height: int | None) -> list[Line]:
    """At most `height` lines; None: all there are. Lanes of a role stand together."""
    lanes = sorted(state.lanes, key=lambda lane: _ROLES.index(lane.role) if lane.role in _ROLES else len(_ROLES))
    if not lanes:
        return []
    room = (height if height is not None else 1_000_000) - 1
    details, has_maps = _choose_details(history, lanes, width, room)
    titles, *rows = _table(_columns(history, with_pools=has_pools(state)), lanes, width)
    if len(rows) > room:
        rows = rows[: max(room - 1, 0)]
        more = [[Span(f"and {len(lanes) - len(rows)} more executors", "dim")]]
    else:
        more = [_LEGEND] if has_maps else []
    lines = [titles]
    for row, lane in zip(rows, lanes, strict=False):
        lines += [row, *(line for detail in details for line in detail(lane))]
    return lines + more


def map_cells(num_lanes: int, width: int, height: int | None) -> int:
    """How many cells of each lane's block map `lane_lines` has room for."""
    if not num_lanes:
        return 0
    num_lines = _MAX_MAP_LINES
    if height is not None:
        # Beside the maps: titles and legend, and of each lane its row and two lines of details.
        num_lines = min(num_lines, (height - 2 - 3 * num_lanes) // num_lanes)
    return min(max(num_lines, 0) * _map_width(width), _MAX_MAP_CELLS)


Detail = Callable[[LaneState], list[Line]]


def _choose_details(history: History, lanes: Sequence[LaneState], width: int, room: int) -> tuple[list[Detail], bool]:
    """(what to say of every lane, whether the block maps are in it)."""
    details: list[Detail] = [
        partial(_block_lines, width=width),
        partial(_past_lines, history=history, width=width),
        partial(_map_lines, width=width),
    ]
    num_map_lines = sum(len(_map_lines(lane, width)) for lane in lanes)
    if num_map_lines and 3 * len(lanes) + num_map_lines + 1 <= room:
        return details, True
    num_details = min(max(room // len(lanes) - 1, 0), 2)
    return details[:num_details], False


def _block_lines(lane: LaneState, width: int) -> list[Line]:
    held = f"{text.count(lane.num_referenced_blocks)} blocks held"
    if lane.block_map.num_shared_blocks:
        held += f" ({text.count(lane.block_map.num_shared_blocks)} shared)"
    items: list[Line] = [
        [Span(held)],
        [Span(f"{text.count(lane.num_cached_blocks)} cached")],
        [Span(f"{text.count(lane.num_free_blocks)} free of {text.count(lane.kv_layout.num_blocks)}")],
    ]
    if lane.num_host_blocks:
        items.append([Span(f"host {text.count(lane.num_used_host_blocks)} of {text.count(lane.num_host_blocks)}")])
    items.append([Span(f"{text.count(lane.steps)} steps")])
    return [text.fit([Span(_INDENT)], items, width)]


def _past_lines(lane: LaneState, history: History, width: int) -> list[Line]:
    """Two sparklines, side by side."""
    labels = (f"{_INDENT}step ", f"{_INDENT}kv ")
    spark_width = max((width - sum(map(len, labels))) // 2, 0)
    steps = history.lane_values(lane.session_id, _forward_ns)
    blocks = history.lane_values(lane.session_id, _held_share)
    return [
        [
            Span(labels[0], "dim"),
            Span(text.sparkline(steps, spark_width), "cached"),
            Span(labels[1], "dim"),
            Span(text.sparkline(blocks, spark_width, top=1), "held"),
        ]
    ]


def _map_lines(lane: LaneState, width: int) -> list[Line]:
    cells = [_cell(value) for value in lane.block_map.cells]
    columns = _map_width(width)
    starts = range(0, len(cells), columns) if columns else ()
    return [[Span(_INDENT), *text.runs(cells[start : start + columns])] for start in starts]


def _map_width(width: int) -> int:
    return max(width - len(_INDENT), 0)


def _cell(value: int) -> Span:
    if value <= BlockState.BLOCK_STATE_MIXED:
        return _CELLS.get(value, Span("?"))
    # Never quite as high as a cell of which every block is held by one row.
    return Span(text.eighth((value - BlockState.BLOCK_STATE_MIXED) / 128 * 7 / 8), "held")


# The table


@dataclass(frozen=True)
class _Column:
    """title: as wide as the column is at least. importance: the lowest is the first to go where room is short"""

    title: str
    importance: int
    cell: Callable[[LaneState], Span]
    is_left: bool = False


def _table(columns: list[_Column], lanes: Sequence[LaneState], width: int) -> list[Line]:
    """The titles, and a row per lane, of as many columns as there is room for."""
    cells = {column: [column.cell(lane) for lane in lanes] for column in columns}
    widths = {column: max(len(column.title), *(len(cell.text) for cell in cells[column])) for column in columns}
    while len(columns) > 1 and sum(widths[column] + 1 for column in columns) - 1 > width:
        columns.remove(min(columns, key=lambda column: column.importance))
    rows = [[Span(column.title, "bold") for column in columns]]
    rows += [[cells[column][position] for column in columns] for position in range(len(lanes))]
    return [_join(row, columns, [widths[column] for column in columns]) for row in rows]


def _join(row: Sequence[Span], columns: Sequence[_Column], widths: Sequence[int]) -> Line:
    line: Line = []
    for cell, column, width in zip(row, columns, widths, strict=True):
        space = Span(" " * (width - len(cell.text)))
        line += [Span(" "), *([cell, space] if column.is_left else [space, cell])]
    return line[1:]


def _columns(history: History, *, with_pools: bool) -> list[_Column]:
    columns = [
        _Column("EXECUTOR  ", 99, _name, is_left=True),
        _Column("ROLE   ", 10 if with_pools else 2, _role, is_left=True),
        _Column(" DEC+PRE/MAX", 8, _rows),
        _Column("PLANS", 4, lambda lane: Span(f"{lane.steps_in_flight}/{lane.max_steps_in_flight}")),
        _Column(" KV", 9, _kv),
        _Column("STEP p50", 7, partial(_time, field="forward_p50_ns")),
        _Column("  p99", 6, partial(_time, field="forward_p99_ns")),
        _Column("TURN p50", 3, partial(_time, field="turnaround_p50_ns")),
        _Column("  p99", 1, partial(_time, field="turnaround_p99_ns")),
        _Column("TOK/S", 5, partial(_tokens_per_s, history=history)),
    ]
    if with_pools:
        columns += [
            _Column("ARR", 7, lambda lane: Span(str(lane.num_arriving))),
            _Column("SENT B/S", 5, partial(_bytes_per_s, history=history, direction="sent")),
            _Column("RECV B/S", 5, partial(_bytes_per_s, history=history, direction="received")),
        ]
    return columns


def _name(lane: LaneState) -> Span:
    name = text.printable(lane.name or lane.session_id)
    return Span(name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…")


def _role(lane: LaneState) -> Span:
    return Span("leaving", "warn") if lane.leaving else Span(ROLES.get(lane.role, "-"))


def _rows(lane: LaneState) -> Span:
    is_nearly_full = lane.num_running >= NEARLY_FULL * lane.max_num_seqs > 0
    rows = f"{lane.num_decoding}+{lane.num_prefilling}/{lane.max_num_seqs}"
    return Span(rows, "warn" if is_nearly_full else "")


def _kv(lane: LaneState) -> Span:
    held, total = lane.num_referenced_blocks, lane.kv_layout.num_blocks
    return Span(text.share(held, total), "warn" if held >= NEARLY_FULL * total > 0 else "held")


def _time(lane: LaneState, field: str) -> Span:
    if not lane.HasField("recent_steps"):
        return Span("-")
    return Span(text.seconds(getattr(lane.recent_steps, field) / 1e9))


def _tokens_per_s(lane: LaneState, history: History) -> Span:
    """Steps of the last interval, times the tokens of a recent step."""
    steps_per_s = history.lane_rate(lane.session_id, lambda each: each.steps)
    return Span(text.rate(None if steps_per_s is None else steps_per_s * lane.recent_steps.mean_num_tokens))


def _bytes_per_s(lane: LaneState, history: History, direction: str) -> Span:
    return Span(text.rate(history.lane_rate(lane.session_id, lambda each: getattr(each.transfers, direction).bytes)))


def _forward_ns(lane: LaneState) -> float | None:
    return float(lane.recent_steps.forward_p50_ns) if lane.HasField("recent_steps") else None


def _held_share(lane: LaneState) -> float:
    return lane.num_referenced_blocks / max(lane.kv_layout.num_blocks, 1)
