"""Random plans, most of them right: the batch does what a plain reading of the contract does, or refuses with it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from step_plans import make_plan

from pagoda.executor.batch import Batch, StepInputs
from pagoda.executor.plan_arrays import PlanError

NUM_ROWS, MAX_LEN, BUDGET, NUM_BLOCKS, BLOCK_SIZE, VOCAB_SIZE = 6, 22, 30, 40, 4, 50
MAX_ROW_BLOCKS = 6
NUM_PLANS = 300


class RefusedError(Exception):
    """The plan contradicts itself or the batch."""


def require(holds: bool) -> None:
    if not holds:
        raise RefusedError


@dataclass
class Row:
    tokens: list[int]
    computed: int
    table: list[int]

    @property
    def left(self) -> int:
        return len(self.tokens) - self.computed


@dataclass
class Model:
    """The contract, word by word."""

    rows: dict[int, Row] = field(default_factory=dict)

    def apply(self, change: dict[str, Any]) -> list[tuple[int, int]]:
        """Returns (row, number of tokens) of what runs, ascending."""
        for row in change["ended"]:
            require(row in self.rows)
            del self.rows[row]
        for start in change["starts"]:
            self._start(**start)
        for row, position, block in change["blocks"]:
            require(row in self.rows and block < NUM_BLOCKS)
            table = self.rows[row].table
            require(position <= len(table) and position < MAX_ROW_BLOCKS)
            table[position : position + 1] = [block]
        runs = {row: 1 for row, each in self.rows.items() if each.left == 1}
        for row, num_tokens in change["chunks"].items():
            require(row in self.rows and row not in runs and 1 <= num_tokens <= self.rows[row].left)
            runs[row] = num_tokens
        require(sum(runs.values()) <= BUDGET)
        slots = []
        for row, num_tokens in runs.items():
            each = self.rows[row]
            end = each.computed + num_tokens
            require(end <= min(len(each.table) * BLOCK_SIZE, MAX_LEN))
            slots += [self.slot(row, position) for position in range(each.computed, end)]
        require(len(set(slots)) == len(slots))
        return sorted(runs.items())

    def slot(self, row: int, position: int) -> int:
        return self.rows[row].table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE

    def _start(self, row: int, tokens: list[int], computed: int, blocks: list[int]) -> None:
        require(row < NUM_ROWS and row not in self.rows)
        require(computed < len(tokens) <= MAX_LEN and max(tokens) < VOCAB_SIZE)
        require(len(blocks) <= MAX_ROW_BLOCKS and all(block < NUM_BLOCKS for block in blocks))
        require(computed <= len(blocks) * BLOCK_SIZE)
        self.rows[row] = Row(list(tokens), computed, list(blocks))


def right_change(model: Model, rng: random.Random) -> dict[str, Any]:
    """What a scheduler might say next."""
    rows = {row: Row(list(each.tokens), each.computed, list(each.table)) for row, each in model.rows.items()}
    ended = [row for row, each in rows.items() if each.computed >= MAX_LEN or rng.random() < 0.1]
    for row in ended:
        del rows[row]
    free = [block for block in range(NUM_BLOCKS) if all(block not in each.table for each in rows.values())]
    rng.shuffle(free)
    starts = []
    for row in set(range(NUM_ROWS)) - set(rows):
        if rng.random() < 0.3:
            length = rng.choice([1, 2, MAX_LEN, rng.randint(1, MAX_LEN)])
            blocks = [free.pop() for _ in range(rng.randint(0, -(-length // BLOCK_SIZE)))]
            start = {
                "row": row,
                "tokens": [rng.randrange(VOCAB_SIZE) for _ in range(length)],
                "computed": rng.randint(0, min(length - 1, len(blocks) * BLOCK_SIZE)),
                "blocks": blocks,
            }
            starts.append(start)
            rows[row] = Row(start["tokens"], start["computed"], list(blocks))
    chunks, budget = {}, BUDGET - sum(each.left == 1 for each in rows.values())
    for row in rng.sample(sorted(rows), len(rows)):
        if rows[row].left > 1 and budget and rng.random() < 0.8:
            chunks[row] = rng.randint(1, min(rows[row].left, budget))
            budget -= chunks[row]
    changes: dict[int, list[tuple[int, int, int]]] = {}
    for row, each in rows.items():
        num_new = 1 if each.left == 1 else chunks.get(row, 0)
        changes[row] = []
        while len(each.table) * BLOCK_SIZE < each.computed + num_new:
            changes[row].append((row, len(each.table), free.pop()))
            each.table.append(changes[row][-1][2])
        if each.table and free and rng.random() < 0.1:
            changes[row].append((row, rng.randrange(len(each.table)), free.pop()))
    # Those of a row in their order, rows mixed.
    order = rng.sample(mixed := [row for row in changes for _ in changes[row]], len(mixed))
    return {"ended": ended, "starts": starts, "blocks": [changes[row].pop(0) for row in order], "chunks": chunks}


def spoil(change: dict[str, Any], rng: random.Random) -> None:
    """One thing is not as it should be; or it still is, by chance."""
    row, block = rng.randrange(NUM_ROWS + 1), rng.randrange(NUM_BLOCKS + 1)
    kind = rng.choice(
        ["ended", "not ended", "start", "computed", "token", "share", "block", "place", "drop", "chunk", "no chunk"]
    )
    start = rng.choice(change["starts"]) if change["starts"] else None
    if kind == "ended":
        change["ended"].append(row)
    elif kind == "not ended" and change["ended"]:
        change["ended"].pop()
    elif kind == "start":
        change["starts"].append({"row": row, "tokens": [1, 2], "computed": 0, "blocks": [block]})
    elif kind == "computed" and start:
        start["computed"] += rng.randint(1, 4)
    elif kind == "token" and start:
        start["tokens"][-1] = rng.choice([VOCAB_SIZE - 1, VOCAB_SIZE])
    elif kind == "share" and start:
        start["blocks"] = list(rng.choice(change["starts"])["blocks"])
    elif kind == "block":
        change["blocks"].append((row, rng.randrange(MAX_ROW_BLOCKS + 1), block))
    elif kind == "place" and change["blocks"]:
        index = rng.randrange(len(change["blocks"]))
        each = change["blocks"][index]
        change["blocks"][index] = rng.choice([(row, *each[1:]), (each[0], each[1] + 1, each[2]), (*each[:2], block)])
    elif kind == "drop" and change["blocks"]:
        change["blocks"].pop(rng.randrange(len(change["blocks"])))
    elif kind == "chunk":
        change["chunks"][row] = rng.randint(0, 4)
    elif kind == "no chunk" and change["chunks"]:
        change["chunks"].popitem()


def check(inputs: StepInputs | None, runs: list[tuple[int, int]], model: Model) -> None:
    """What runs is what the model says, which then has computed it."""
    if inputs is None:
        assert not runs
        return
    tokens = [(row, model.rows[row].computed + i) for row, num_tokens in runs for i in range(num_tokens)]
    assert inputs.token_ids.tolist() == [model.rows[row].tokens[position] for row, position in tokens]
    assert inputs.positions.tolist() == [position for _, position in tokens]
    assert inputs.slot_mapping.tolist() == [model.slot(row, position) for row, position in tokens]
    assert np.diff(inputs.cu_seqlens_q).tolist() == [num_tokens for _, num_tokens in runs]
    for i, (row, num_tokens) in enumerate(runs):
        each = model.rows[row]
        each.computed += num_tokens
        assert inputs.block_tables[i, : len(each.table)].tolist() == each.table
        assert inputs.seq_lens[i] == each.computed
    samples = [i for i, (row, _) in enumerate(runs) if not model.rows[row].left]
    assert inputs.sample_rows.tolist() == [runs[i][0] for i in samples]
    assert inputs.sample_tokens.tolist() == [int(inputs.cu_seqlens_q[i + 1]) - 1 for i in samples]


def append(inputs: StepInputs | None, batch: Batch, model: Model, rng: random.Random) -> None:
    """Random tokens for the rows that sample."""
    rows = [] if inputs is None else inputs.sample_rows.tolist()
    sampled = [rng.randrange(VOCAB_SIZE) for _ in rows]
    batch.append(np.array(rows, np.int64), np.array(sampled, np.int64))
    for row, token in zip(rows, sampled, strict=True):
        model.rows[row].tokens.append(token)


@pytest.mark.parametrize("seed", range(20))
def test_refuses_or_applies(seed: int) -> None:
    rng = random.Random(seed)
    batch = Batch(
        max_num_seqs=NUM_ROWS,
        max_model_len=MAX_LEN,
        max_num_batched_tokens=BUDGET,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        vocab_size=VOCAB_SIZE,
    )
    model = Model()
    num_refused = num_spoiled = 0
    for _ in range(NUM_PLANS):
        change = right_change(model, rng)
        spoiled = rng.random() < 0.1
        if spoiled:
            spoil(change, rng)
            num_spoiled += 1
        plan = make_plan(**change)
        try:
            runs = model.apply(change)
        except RefusedError:
            assert spoiled, "the model refuses what a scheduler may say"
            with pytest.raises(PlanError):
                batch.apply(plan)
            num_refused += 1
        else:
            inputs = batch.apply(plan)
            check(inputs, runs, model)
            append(inputs, batch, model, rng)
        if spoiled:
            # What was right by chance, like a block of two rows, may contradict later plans.
            batch.reset()
            model = Model()
    assert 0 < num_refused < num_spoiled
