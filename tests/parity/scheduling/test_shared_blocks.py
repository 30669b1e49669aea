"""Requests that share blocks get what they would get alone, and what they share is computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from real_cell import RealCell, Served, Shape
from traffic import Ask, Text, alone, difference, notes_text

from pagoda.bundled import CHAT_MODEL
from pagoda.scheduler.core.request import RequestKey, Sampling

BLOCK_SIZE = 16

Fixture = Callable[[str, str], Any]


class Case:
    """One executor, and requests with their outcomes."""

    def __init__(self, served: Served, max_plans_in_flight: int, max_num_batched_tokens: int) -> None:
        self.served = served
        self.cell = RealCell(served, max_plans_in_flight=max_plans_in_flight)
        self.cell.join("A", Shape(8, max_num_batched_tokens, BLOCK_SIZE, num_blocks=40))
        self.lane = self.cell.core.lanes["A"]
        self.asks: list[Ask] = []

    def ask(self, prompt: list[int], *, max_tokens: int, forked_from: Ask | None = None) -> Ask:
        number = len(self.asks)
        sampling = Sampling(seed=number, max_tokens=max_tokens, temperature=0.9, top_p=0.95, ignore_eos=True)
        ask = Ask(RequestKey("t", number), prompt, sampling, forked_from.key if forked_from else None)
        self.asks.append(ask)
        return ask

    def submit(self, *asks: Ask) -> None:
        for ask in asks:
            self.cell.submit(ask.request([]))

    def blocks(self, ask: Ask) -> list[int]:
        return self.lane.rows.block_ids[self.cell.core.requests[ask.key].row]

    def check(self) -> None:
        self.cell.finish()
        found = [difference(self.cell, ask, alone(self.served, ask), self.served.tolerance) for ask in self.asks]
        assert [each for each in found if each] == []
        assert self.lane.pool.num_free + self.lane.pool.num_cached == self.lane.pool.num_blocks


@pytest.fixture(params=[1, 2], ids=["one-plan", "two-plans"])
def make_case(request: pytest.FixtureRequest, served: Fixture) -> Callable[[int], Case]:
    return lambda max_num_batched_tokens: Case(served("chat", "bfloat16"), request.param, max_num_batched_tokens)


@pytest.fixture(scope="module")
def text() -> Text:
    return notes_text(CHAT_MODEL)


def test_blocks_of_two_prompts_that_begin_alike_are_merged(make_case: Callable[[int], Case], text: Text) -> None:
    """The longer prompt does not wait for the shorter one: most of it is its own."""
    case = make_case(48)
    shorter = case.ask(text(1, 32), max_tokens=20)
    longer = case.ask(text(1, 32) + text(2, 64), max_tokens=20)
    case.submit(shorter, longer)
    while len(case.cell.tokens[longer.key]) < 3:
        case.cell.turn()
    assert case.cell.counts["prefix_cache_hits"] == 0
    assert case.cell.counts["merged_blocks"] == 2
    assert case.blocks(longer)[:2] == case.blocks(shorter)[:2]
    case.check()
    assert case.cell.counts["merged_blocks"] == 2


def test_generated_blocks_are_merged_with_those_of_a_prompt(make_case: Callable[[int], Case], text: Text) -> None:
    """A prompt says what another request is about to generate; they turn out to be equal when somebody branches off."""
    case = make_case(64)
    first = case.ask(text(3, 30), max_tokens=45)
    tokens = alone(case.served, first).tokens
    ahead = case.ask(first.prompt + tokens[:34], max_tokens=50)
    fork = case.ask(first.prompt + tokens[:36], max_tokens=9, forked_from=first)
    case.submit(first, ahead)
    while len(case.cell.tokens[first.key]) < 36:
        case.cell.turn()
    assert case.cell.counts["merged_blocks"] == 1
    assert case.blocks(first)[1:4] != case.blocks(ahead)[1:4]
    case.submit(fork)
    assert case.cell.counts["merged_blocks"] == 4
    assert case.blocks(first)[:4] == case.blocks(ahead)[:4]
    case.check()


@pytest.mark.parametrize("budget", [24, 256])
def test_equal_prompts_are_computed_once(make_case: Callable[[int], Case], text: Text, budget: int) -> None:
    """As with n=4. The others copy the last, partly filled block, and compute the last token to sample from."""
    num_prompt, num_new = 70, 12
    case = make_case(budget)
    siblings = [case.ask(text(4, num_prompt), max_tokens=num_new) for _ in range(4)]
    case.submit(*siblings)
    while not all(case.cell.tokens[sibling.key] for sibling in siblings):
        case.cell.turn()
    tables = [case.blocks(sibling) for sibling in siblings]
    assert all(table[: num_prompt // BLOCK_SIZE] == tables[0][: num_prompt // BLOCK_SIZE] for table in tables)
    assert len({table[num_prompt // BLOCK_SIZE] for table in tables}) == 4
    case.check()
    counts = case.cell.counts
    assert counts["copied_blocks"] == 3
    assert counts["prefix_cache_hits"] == 3 * (num_prompt - 1)
    assert counts["computed_tokens"] == num_prompt + 3 + 4 * (num_new - 1)
    assert len({tuple(case.cell.tokens[sibling.key]) for sibling in siblings}) == 4
