"""Prompts: as many, as long and as much alike as the options say, and the same every time."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pagoda.bench.dataset import DatasetOptions, Prompt, make_prompts
from pagoda.errors import InvalidArgumentError

RANDOM = DatasetOptions(num_prompts=200, random_input_len=40, random_output_len=10)


def lengths(prompts: list[Prompt]) -> set[tuple[int, int]]:
    return {(len(prompt.content), prompt.num_output_tokens) for prompt in prompts}


def test_random_prompts() -> None:
    prompts = make_prompts(RANDOM, 50)
    assert lengths(prompts) == {(40, 10)}
    ids = [token_id for prompt in prompts for token_id in prompt.content]
    assert set(ids) == set(range(50))
    assert make_prompts(RANDOM, 50) == prompts
    assert make_prompts(replace(RANDOM, seed=1), 50) != prompts
    assert len({tuple(prompt.content) for prompt in prompts}) == 200


def test_input_len_and_output_len_stand_for_the_datasets_own() -> None:
    assert lengths(make_prompts(replace(RANDOM, input_len=3, output_len=2), 50)) == {(3, 2)}


def test_lengths_are_uniform_within_the_ratio() -> None:
    prompts = make_prompts(replace(RANDOM, num_prompts=4000, random_range_ratio=0.5, random_prefix_len=5), 50)
    counts = Counter(len(prompt.content) - 5 for prompt in prompts)
    assert set(counts) == set(range(20, 61))
    assert min(counts.values()) > 4000 / 41 / 2
    assert {prompt.num_output_tokens for prompt in prompts} == set(range(5, 16))
    assert len({tuple(prompt.content[:5]) for prompt in prompts}) == 1


def test_prefixes_are_used_equally_often() -> None:
    options = DatasetOptions(
        dataset_name="prefix_repetition",
        num_prompts=12,
        prefix_repetition_prefix_len=8,
        prefix_repetition_suffix_len=4,
        prefix_repetition_num_prefixes=3,
        prefix_repetition_output_len=2,
    )
    prompts = make_prompts(options, 1000)
    assert lengths(prompts) == {(12, 2)}
    assert sorted(Counter(tuple(prompt.content[:8]) for prompt in prompts).values()) == [4, 4, 4]
    assert len({tuple(prompt.content[8:]) for prompt in prompts}) == 12


def test_text_of_token_ids() -> None:
    assert Prompt([1, 2, 1], 1).text.split()[0] == Prompt([1, 2, 1], 1).text.split()[2]
    assert len(Prompt(list(range(50)), 1).text.split()) == 50
    assert Prompt("as it is", 1).text == "as it is"


def test_a_custom_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Hi", "output_tokens": 3, "other": 1}\n\n{"prompt": [1, 2], "output_tokens": 4}\n')
    options = DatasetOptions(dataset_name="custom", dataset_path=path, num_prompts=3, custom_output_len=-1)
    assert make_prompts(options, 9) == [Prompt("Hi", 3), Prompt([1, 2], 4), Prompt("Hi", 3)]
    assert [each.num_output_tokens for each in make_prompts(replace(options, custom_output_len=256), 9)] == [256] * 3
    assert [each.num_output_tokens for each in make_prompts(replace(options, output_len=7), 9)] == [7] * 3


@pytest.mark.parametrize("is_array", [True, False])
def test_a_sharegpt_file(tmp_path: Path, is_array: bool) -> None:
    conversations = [
        {"id": 1, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "x" * 40}]},
        {"conversations": [{"from": "human", "value": "Nobody answers"}]},
        {"conversations": [{"value": "Why?"}, {"value": "No"}]},
    ]
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps(conversations) if is_array else "\n".join(map(json.dumps, conversations)))
    options = DatasetOptions(dataset_name="sharegpt", dataset_path=path, num_prompts=2)
    assert make_prompts(options, 9) == [Prompt("Hi", 10), Prompt("Why?", 1)]
    assert make_prompts(replace(options, sharegpt_output_len=6), 9)[0] == Prompt("Hi", 6)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("custom", '{"prompt": "a", "output_tokens": 1}\n{"text": "b"}', "line 2: .*prompt"),
        ("custom", '{"prompt": "a"}', "line 1: no output_tokens"),
        ("custom", "\n", "has no prompts"),
        ("sharegpt", '[{"conversations": 3}]', "conversations"),
    ],
)
def test_files_that_are_no_dataset(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    options = DatasetOptions(dataset_name=name, dataset_path=path, custom_output_len=-1)
    with pytest.raises(InvalidArgumentError, match=message):
        make_prompts(options, 9)
