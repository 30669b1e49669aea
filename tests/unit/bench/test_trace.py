"""Traces: what requests say, and JSONL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pagoda.bench.scheduler.trace import TraceRequest, clients_of, read_trace, tokens_at, write_trace
from pagoda.errors import InvalidArgumentError

VOCAB_SIZE = 1000

EVERYTHING = [
    TraceRequest(0.0, 4, 2, client_id="b", priority=-1, timeout_s=2.5, token_ids=(5, 6, 7, 8)),
    TraceRequest(0.25, 40, 8, client_id="a", prefix_id=3, num_prefix_tokens=32, session_id=0),
    TraceRequest(1.5, 60, 4, client_id="a", prefix_id=3, num_prefix_tokens=32, session_id=0, follows=1),
]


def test_round_trip(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.jsonl", EVERYTHING)
    assert read_trace(tmp_path / "trace.jsonl") == EVERYTHING
    assert clients_of(EVERYTHING) == ["a", "b"]


def test_a_line_needs_little(tmp_path: Path) -> None:
    (tmp_path / "t").write_text('\n{"arrival_s": 1, "num_prompt_tokens": 3, "num_output_tokens": 2}\n')
    assert read_trace(tmp_path / "t") == [TraceRequest(1.0, 3, 2)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "JSON is malformed"),
        ('{"arrival_s": 1, "num_prompt_tokens": 3}', "missing required field `num_output_tokens`"),
        ('{"arrival_s": -1, "num_prompt_tokens": 3, "num_output_tokens": 2}', "Expected `float` >= 0"),
        ('{"arrival_s": 1, "num_prompt_tokens": 3, "num_output_tokens": 0}', "Expected `int` >= 1"),
        ('{"arrival_s": 1, "num_prompt_tokens": 3, "num_output_tokens": 2, "x": 1}', "unknown field `x`"),
        ('{"arrival_s": 1, "num_prompt_tokens": 3, "num_output_tokens": 2, "follows": 1}', "no earlier request"),
        ('{"arrival_s": 1, "num_prompt_tokens": 3, "num_output_tokens": 2, "token_ids": [1]}', "1 token_ids"),
        ('{"arrival_s": 1, "num_prompt_tokens": 3, "num_output_tokens": 2, "num_prefix_tokens": 2}', "no prefix_id"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"arrival_s": 0, "num_prompt_tokens": 3, "num_output_tokens": 2}\n' + line)
    with pytest.raises(InvalidArgumentError) as error:
        read_trace(path)
    assert f"{path}, line 2: " in error.value.message
    assert message in error.value.message


def test_an_empty_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("\n")
    with pytest.raises(InvalidArgumentError, match="has no requests"):
        read_trace(tmp_path / "t")


def test_prompts_share_what_they_should() -> None:
    known, first, second = (request.prompt(number, VOCAB_SIZE) for number, request in enumerate(EVERYTHING))
    other_session = TraceRequest(0, 60, 4, prefix_id=3, num_prefix_tokens=32).prompt(3, VOCAB_SIZE)
    other_prefix = TraceRequest(0, 60, 4, prefix_id=4, num_prefix_tokens=32).prompt(3, VOCAB_SIZE)
    assert known.tolist() == [5, 6, 7, 8]
    assert len(first) == 40
    # The next turn repeats the prompt, and then the answer as the executor makes it up.
    answer = tokens_at(np.full(8, EVERYTHING[1].stream(1), np.uint64), np.arange(40, 48), VOCAB_SIZE)
    assert second[:48].tolist() == [*first, *answer]
    assert other_session[:32].tolist() == first[:32].tolist()
    assert other_session[32:48].tolist() != second[32:48].tolist()
    assert other_prefix[:16].tolist() != first[:16].tolist()


def test_tokens_are_spread_over_the_vocabulary() -> None:
    tokens = tokens_at(np.full(100_000, 7, np.uint64), np.arange(100_000), 10)
    assert np.bincount(tokens, minlength=10) == pytest.approx([10_000] * 10, rel=0.05)
