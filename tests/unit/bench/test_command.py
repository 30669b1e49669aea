"""`pagoda bench scheduler` as a user meets it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from pagoda.cli.main import main

FEW = ("bench", "scheduler", "--num-prompts", "20", "--random-output-len", "8", "--num-blocks", "600")


def exit_of(*arguments: str) -> int:
    """The exit code, whether it is returned or raised by argparse."""
    try:
        return main(arguments)
    except SystemExit as exit:
        return int(exit.code or 0)


def test_a_run_and_its_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = {name: str(tmp_path / name) for name in ("trace.jsonl", "first.json", "second.json")}
    assert (
        exit_of(*FEW, "--clients", "a:1", "b:2", "--save-trace", paths["trace.jsonl"], "--json", paths["first.json"])
        == 0
    )
    output = capsys.readouterr().out
    assert output.startswith("1 x 1 x h100-8b, 20 generated requests, seed 0; pagoda ")
    assert "time to first token" in output
    assert "Share of the service" in output
    assert exit_of(*FEW, "--trace", paths["trace.jsonl"], "--json", paths["second.json"]) == 0
    first, second = (json.loads(Path(paths[name]).read_text()) for name in ("first.json", "second.json"))
    assert first["options"]["num_prompts"] == 20
    assert first["requests"]["finished"] == 20
    for part in ("requests", "throughput", "latency", "cells", "fairness"):
        assert first[part] == second[part]


def test_pools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    assert exit_of(*FEW, "--prefill-executors", "1", "--decode-executors", "2", "--json", str(path)) == 0
    output = capsys.readouterr().out
    assert output.startswith("1 x (1 prefill + 2 decode) x h100-8b, 20 generated requests")
    assert "Moves between executors" in output
    moves = json.loads(path.read_text())["moves"]
    assert moves["remote_prefills"] == moves["moves_done"] == 20
    # The prompts, of 64 blocks of 16 tokens, 128 KiB each; a block more of the 15 whose second token was on its way.
    assert moves["moved_bytes"] == (20 * 64 + 15) * 16 * 128 * 1024
    assert exit_of(*FEW, "--executors-per-cell", "2") == 0
    assert "Moves between executors" not in capsys.readouterr().out


@pytest.mark.parametrize(("name", "magic"), [("plot.png", b"\x89PNG"), ("plot.svg", b"<?xml")])
def test_a_plot(tmp_path: Path, name: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    assert exit_of(*FEW, "--plot", str(tmp_path / name)) == 0
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "pagoda.bench.scheduler.plot.find_spec", lambda name: None if name == "matplotlib" else found(name)
    )
    assert exit_of(*FEW, "--plot", str(tmp_path / "plot.svg")) == 2
    assert "pip install 'pagoda[bench]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cells", "0"], "cells is 0; it must be at least 1"),
        (["--num-prompts", "0"], "num_prompts is 0; it must be at least 1"),
        (["--request-rate", "0"], "request_rate is 0.0; it must be more than 0"),
        (["--clients", "a"], "'a' is not NAME:SHARE"),
        (["--executor-losses", "soon"], "'soon' is not SECONDS, SECONDS:COUNT or SECONDS:COUNT:ROLE"),
        (["--executor-joins", "1:0"], "a count of at least 1"),
        (["--executor-joins", "1:1:reader"], "'1:1:reader' is not SECONDS, SECONDS:COUNT or SECONDS:COUNT:ROLE"),
        (["--executors-per-cell", "0"], "executors_per_cell is 0; it must be at least 1 where no others"),
        (["--decode-executors", "-1"], "decode_executors is -1; it must not be negative"),
        (["--transfer-gb-per-s", "0"], "transfer_gb_per_s is 0.0; it must be more than 0"),
        (["--client-weights", "a=2"], "weights are for the policy fair"),
        (["--num-blocks", "4"], "the KV cache holds 64 tokens, fewer than max_model_len"),
        (["--random-prefix-len", "8192"], "leaves no room"),
        (["--plot", "plot.txt"], "must end with one of .svg, .png, .pdf"),
        (["--preset", "abacus"], "invalid choice: 'abacus'"),
        (["--memory-bandwidth", "0"], "memory_bandwidth is 0.0; it must be more than 0"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_of("bench", "scheduler", *arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("pagoda bench scheduler: error: ")
    assert message in last


def test_a_trace_that_is_none_is_one_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trace").write_text("arrival_s,num_prompt_tokens")
    assert exit_of("bench", "scheduler", "--trace", str(tmp_path / "trace")) == 1
    assert exit_of("bench", "scheduler", "--trace", str(tmp_path / "nothing")) == 1
    malformed, missing = capsys.readouterr().err.splitlines()
    assert malformed.startswith(f"pagoda bench: {tmp_path / 'trace'}, line 1: JSON is malformed")
    assert "No such file or directory" in missing
