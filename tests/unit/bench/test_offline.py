"""`pagoda bench latency` and `throughput` as a user meets them, with the bundled model."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pagoda.bench.dataset import Prompt
from pagoda.bench.offline.options import EngineOptions, ThroughputOptions
from pagoda.bench.offline.run import run
from pagoda.bench.offline.throughput import encoded
from pagoda.bundled import CHAT_MODEL
from pagoda.cli.main import main
from pagoda.errors import InvalidArgumentError
from pagoda.executor.config import ExecutorOptions

SMALL = "--device cpu --threads 1 --num-gpu-blocks-override 256 --max-model-len 512 --max-num-seqs 8".split()
NO_ENGINE = {
    "scheduler",
    "listen",
    "name",
    "role",
    "transfer",
    "transfer_endpoint",
    "drain_s",
    "cpus",
    "cell_key_file",
    "log_level",
}
"""Options of an executor's process, not of its model."""


def exit_of(*arguments: str) -> int:
    """The exit code, whether it is returned or raised by argparse."""
    try:
        return main(["bench", *arguments])
    except SystemExit as exit:
        return int(exit.code or 0)


def bench(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    path = tmp_path / "result.json"
    assert exit_of(*arguments, *SMALL, "--output-json", str(path)) == 0
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def test_throughput(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench(
        tmp_path,
        *"throughput --num-prompts 12 --input-len 20 --output-len 5 --num-warmups 2 --random-prefix-len 7".split(),
    )
    assert result["num_requests"] == 12
    assert result["total_num_prompt_tokens"] == 12 * 27
    assert result["total_num_output_tokens"] == 12 * 5
    assert result["tokens_per_second"] == pytest.approx(12 * 32 / result["elapsed_time"])
    output = capsys.readouterr().out
    assert output.startswith(f"{CHAT_MODEL}, bfloat16; pagoda ")
    assert re.search(r"\nThroughput: [\d.]+ requests/s, [\d.]+ total tokens/s, [\d.]+ output tokens/s\n", output)
    assert "\nTotal num output tokens:  60\n" in output


def test_throughput_of_texts(tmp_path: Path) -> None:
    (tmp_path / "file.jsonl").write_text('{"prompt": "Hello! Who are you?"}\n{"prompt": [5, 6, 7]}\n')
    arguments = ["throughput", "--dataset-name", "custom", "--dataset-path", str(tmp_path / "file.jsonl")]
    result = bench(tmp_path, *arguments, "--num-prompts", "2", "--output-len", "3")
    assert result["total_num_output_tokens"] == 6
    assert result["total_num_prompt_tokens"] == 3 + len(
        encoded([Prompt("Hello! Who are you?", 1)], CHAT_MODEL)[0].content
    )


def test_latency(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench(
        tmp_path, *"latency --batch-size 2 --input-len 8 --output-len 4 --num-iters 5 --num-iters-warmup 1".split()
    )
    assert len(result["latencies"]) == 5
    assert result["avg_latency"] == pytest.approx(sum(result["latencies"]) / 5)
    assert result["percentiles"]["50"] == sorted(result["latencies"])[2]
    assert "\n99% percentile latency: " in capsys.readouterr().out


def test_a_prompt_that_is_too_long_runs_none() -> None:
    options = EngineOptions(device="cpu", threads=1, num_gpu_blocks_override=64, max_model_len=256)
    with options.open() as engine:
        with pytest.raises(InvalidArgumentError, match="maximum context length"):
            run(engine, [Prompt([1, 2, 3], 4), Prompt([1] * 256, 4)])
        assert engine.core.requests == {}
        told: list[int] = []
        (request,) = run(engine, [Prompt([1, 2, 3], 4)], told.append)
        assert request.num_output_tokens == 4
        assert told == [1]


def test_every_option_of_the_model_is_there() -> None:
    names = {field.name for field in dataclasses.fields(ExecutorOptions)} - NO_ENGINE
    assert names - {field.name for field in dataclasses.fields(EngineOptions)} == set()


def test_the_warm_up_has_other_prompts() -> None:
    options = ThroughputOptions(num_warmups=3, random_input_len=5)
    assert (options.warmup.num_prompts, options.warmup.seed) == (3, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["latency", "--batch-size", "0"], 2, "error: batch_size is 0; it must be at least 1"),
        (["latency", "--max-num-seqs", "0"], 2, "error: --max-num-seqs is 0"),
        (["throughput", "--num-prompts", "0"], 2, "error: num_prompts is 0"),
        (["throughput", "--dataset-name", "sharegpt"], 2, "error: the dataset sharegpt needs dataset_path"),
        (["throughput", "--max-model-len", "1000000"], 1, "pagoda bench: --max-model-len is 1000000"),
        (["latency", "--model", "/nowhere"], 1, "pagoda bench: '/nowhere' is neither"),
    ],
)
def test_errors_are_one_line(arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(*arguments) == code
    assert message in capsys.readouterr().err.splitlines()[-1]
