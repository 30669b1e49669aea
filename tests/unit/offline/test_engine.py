"""The cell in one process: the same tokens however it is run, and refusals that leave nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pagoda.errors import FailedPreconditionError, InvalidArgumentError
from pagoda.executor.config import ExecutorOptions
from pagoda.offline.engine import Engine
from pagoda.scheduler.core.request import FinishReason, Sampling
from pagoda.scheduler.core.scheduler import CoreOptions

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": 1,
    "dtype": "float32",
}
PROMPTS = [[(7 * number + 5 * position) % 96 for position in range(1 + number % 9)] for number in range(12)]

Open = Callable[..., Engine]


@pytest.fixture
def open_engine(tmp_path: Path) -> Iterator[Open]:
    """Engines with few rows and blocks, so that requests wait and are preempted. flags: other executor options"""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    engines: list[Engine] = []

    def make(core: CoreOptions | None = None, **flags: object) -> Engine:
        options = {
            "model": str(tmp_path),
            "load_format": "dummy",
            "device": "cpu",
            "threads": 1,
            "block_size": 4,
            "max_num_seqs": 4,
            "max_num_batched_tokens": 16,
            "num_gpu_blocks_override": 16,
        }
        engines.append(Engine(ExecutorOptions(**{**options, **flags}), core))  # type: ignore[arg-type]
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def generate(engine: Engine) -> list[list[int]]:
    requests = [
        engine.submit(prompt, Sampling(seed=number, max_tokens=8 + number, ignore_eos=True))
        for number, prompt in enumerate(PROMPTS)
    ]
    engine.finish()
    assert engine.core.requests == {}
    assert engine.core.check_integrity() == []
    assert all(request.end and request.end.reason is FinishReason.LENGTH for request in requests)
    return [request.token_ids[request.num_prompt_tokens :].tolist() for request in requests]


@pytest.mark.parametrize("depth", [1, 2])
def test_together_as_alone(open_engine: Open, depth: int) -> None:
    together = open_engine(CoreOptions(max_plans_in_flight=depth))
    tokens = generate(together)
    assert [len(each) for each in tokens] == [8 + number for number in range(12)]
    assert together.core.counters.preemptions > 0
    alone = open_engine(CoreOptions(enable_prefix_caching=False), max_num_seqs=1, max_num_batched_tokens=64)
    assert generate(alone) == tokens
    # What is in the prefix cache by now changes nothing.
    assert generate(together) == tokens


def test_steps_tell_what_happens(open_engine: Open) -> None:
    engine = open_engine()
    request = engine.submit(PROMPTS[8], Sampling(max_tokens=3, ignore_eos=True))
    told: list[int] = []
    ended = []
    while engine.core.requests:
        outputs = engine.step()
        told += [token_id for run in outputs.tokens for token_id in run.token_ids.tolist()]
        ended += outputs.ended
    assert ended == [request]
    assert told == request.token_ids[9:].tolist()


def test_a_refused_prompt_leaves_nothing(open_engine: Open) -> None:
    engine = open_engine()
    with pytest.raises(InvalidArgumentError, match="maximum context length is 64 tokens"):
        engine.submit([1] * 60, Sampling(max_tokens=5))
    assert engine.core.requests == {}
    engine.finish()


def test_options_that_do_not_go_together(open_engine: Open) -> None:
    with pytest.raises(FailedPreconditionError, match="max-model-len is 65"):
        open_engine(max_model_len=65)
    with pytest.raises(InvalidArgumentError, match="smaller than max_num_seqs"):
        open_engine(max_num_batched_tokens=2)


def test_a_step_that_fails_is_told(open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine()

    def fail(plan: object) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(engine._runner, "launch", fail)
    engine.submit([1, 2], Sampling(max_tokens=2))
    with pytest.raises(MemoryError, match="no more"):
        engine.finish()
