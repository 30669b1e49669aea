"""The generators: repeatable, disjoint splits, checkers that tell right from wrong."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest

from pagoda.bundled.chat_format import render
from pagoda.bundled.tasks import (
    RECALL_DISTANCES,
    SHORT_TASKS,
    TOOL_TASKS,
    Check,
    Generator,
    Reply,
    Sample,
    is_correct,
    is_held_out,
    recall,
)
from pagoda.bundled.tasks.arithmetic import pair_key
from pagoda.bundled.tasks.recall import FactSource

TASKS = {**SHORT_TASKS, **TOOL_TASKS}


def reply_of(sample: Sample) -> Reply:
    """The reply of a perfect server that parses tool calls."""
    return Reply(sample.expected["content"], tuple(sample.expected.get("tool_calls", ())))


@pytest.mark.parametrize("generate", TASKS.values(), ids=TASKS)
def test_same_seed_gives_same_samples(generate: Generator) -> None:
    first, second = random.Random(7), random.Random(7)
    assert [generate(first, "train") for _ in range(20)] == [generate(second, "train") for _ in range(20)]


# Replies of small talk and of tool results are few; their hold-out is by what is asked.
@pytest.mark.parametrize("task", ["copy", "addition", "json", "reverse", "sort", "count", "tool_call"])
def test_held_out_answers_are_never_trained(task: str) -> None:
    rng = random.Random(0)

    def key(sample: Sample) -> str:
        return json.dumps(sample.expected.get("tool_calls") or sample.expected["content"])

    trained = {key(TASKS[task](rng, "train")) for _ in range(3000)}
    held_out = {key(TASKS[task](rng, "held_out")) for _ in range(300)}
    assert trained.isdisjoint(held_out)


def test_held_out_small_talk_is_never_trained() -> None:
    rng = random.Random(0)

    def asked(sample: Sample) -> str:
        return str(sample.prompt[-1]["content"]).lower().rstrip("!.?")

    trained = {asked(SHORT_TASKS["small_talk"](rng, "train")) for _ in range(3000)}
    held_out = {asked(SHORT_TASKS["small_talk"](rng, "held_out")) for _ in range(300)}
    assert "hello" in trained
    assert trained.isdisjoint(held_out)


def test_held_out_pairs_are_held_out_in_both_orders_and_random() -> None:
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    held_out = {pair for pair in pairs if is_held_out(pair_key(pair))}
    assert all((b, a) in held_out for a, b in held_out)
    assert 0.07 < len(held_out) / len(pairs) < 0.13
    assert {a % 10 for a, _ in held_out} == set(range(10))


def test_facts_of_the_splits_are_disjoint_and_names_are_distinct() -> None:
    trained: set[tuple[str, str]] = set()
    held_out: set[tuple[str, str]] = set()
    for seed in range(40):
        for facts, source in (
            (trained, FactSource(random.Random(seed), "train")),
            (held_out, FactSource(random.Random(seed), "held_out")),
        ):
            drawn = [source.draw() for _ in range(len(source))]
            assert len({name for name, _ in drawn}) == len(drawn)
            facts.update(drawn)
    assert trained.isdisjoint(held_out)


@pytest.mark.parametrize("generate", TASKS.values(), ids=TASKS)
def test_checker_accepts_only_the_expected_answer(generate: Generator) -> None:
    rng = random.Random(3)
    for _ in range(20):
        sample = generate(rng, "held_out")
        assert is_correct(sample, reply_of(sample))
        assert not is_correct(sample, Reply(None))
        assert not is_correct(sample, Reply(""))
        assert not is_correct(sample, Reply("Hello"))
        assert not is_correct(sample, Reply((sample.expected["content"] or "x") + " 1"))


def test_tool_call_checker_reads_hermes_text_and_refuses_wrong_arguments() -> None:
    sample = TOOL_TASKS["tool_call"](random.Random(5), "held_out")
    assert sample.check is Check.TOOL_CALL
    function = sample.expected["tool_calls"][0]["function"]
    arguments = json.loads(function["arguments"])

    def markup(name: str, arguments: dict[str, object]) -> Reply:
        return Reply(f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>")

    assert is_correct(sample, markup(function["name"], arguments))
    assert not is_correct(sample, markup("other", arguments))
    assert not is_correct(sample, markup(function["name"], {**arguments, "more": 1}))
    assert not is_correct(sample, Reply("<tool_call>\n{\n</tool_call>"))
    twice = (sample.expected["tool_calls"][0],) * 2
    assert not is_correct(sample, Reply(None, twice))


def test_json_checker_ignores_spacing() -> None:
    sample = SHORT_TASKS["json"](random.Random(0), "held_out")
    value = json.loads(sample.expected["content"])
    assert is_correct(sample, Reply(json.dumps(value, indent=2)))
    assert not is_correct(sample, Reply(json.dumps({**value, "more": 1})))


@pytest.mark.parametrize("distance", RECALL_DISTANCES)
def test_recall_asks_once_for_a_value_planted_once(distance: int) -> None:
    rng = random.Random(distance)
    for _ in range(5):
        sample = recall(rng, "held_out", distance)
        text = render(sample.prompt)
        assert text.count(sample.expected["content"]) == 1
        assert sample.distance == distance
        code = sample.expected["content"].rstrip(".").split()[-1]
        wrong = sample.expected["content"].replace(code, code[::-1])
        assert not is_correct(sample, Reply(wrong))


def test_samples_are_frozen() -> None:
    sample = SHORT_TASKS["copy"](random.Random(0), "train")
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample.task = "other"  # type: ignore[misc]
