"""Step plans, written down by hand."""

from __future__ import annotations

from typing import Any

from pagoda.rpc.arrays import pack_u32
from pagoda.v1 import step_pb2

Pairs = list[tuple[int, int]]


def make_plan(
    chunks: dict[int, int] | None = None,
    *,
    step: int = 1,
    ended: list[int] | None = None,
    starts: list[dict[str, Any]] | None = None,
    blocks: list[tuple[int, int, int]] | None = None,
    offloads: Pairs | None = None,
    copies: Pairs | None = None,
    loads: Pairs | None = None,
) -> step_pb2.StepPlan:
    """chunks: row -> tokens; starts: row, tokens, computed, blocks, sampling; blocks: (row, position, block id);
    offloads, copies, loads: (source, target)."""
    chunks, blocks = chunks or {}, blocks or []
    plan = step_pb2.StepPlan(
        step=step,
        ended_rows=pack_u32(ended or []),
        block_rows=pack_u32([row for row, _, _ in blocks]),
        block_positions=pack_u32([position for _, position, _ in blocks]),
        block_ids=pack_u32([block for _, _, block in blocks]),
        chunk_rows=pack_u32(list(chunks)),
        chunk_num_tokens=pack_u32(list(chunks.values())),
        offloads=_copies(offloads),
        copies=_copies(copies),
        loads=_copies(loads),
    )
    for start in starts or []:
        plan.started_rows.add(
            row=start["row"],
            token_ids=pack_u32(start["tokens"]),
            num_computed_tokens=start.get("computed", 0),
            block_ids=pack_u32(start.get("blocks", [])),
            sampling=step_pb2.RowSampling(**start.get("sampling", {})),
        )
    return plan


def _copies(pairs: Pairs | None) -> step_pb2.BlockCopies | None:
    if pairs is None:
        return None
    return step_pb2.BlockCopies(
        sources=pack_u32([source for source, _ in pairs]), targets=pack_u32([target for _, target in pairs])
    )
