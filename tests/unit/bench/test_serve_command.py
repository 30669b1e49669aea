"""`pagoda bench serve` as a user meets it, against a small server."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from fake_openai import FakeOpenAI

from pagoda.cli.main import main

SMALL = ("--num-prompts", "20", "--random-input-len", "6", "--random-output-len", "5")


def exit_of(*arguments: str) -> int:
    """The exit code, whether it is returned or raised by argparse."""
    try:
        return main(["bench", "serve", *arguments])
    except SystemExit as exit:
        return int(exit.code or 0)


def bench(server: FakeOpenAI, path: Path, *arguments: str) -> dict[str, Any]:
    """The report of a run."""
    assert exit_of("--base-url", server.url, *SMALL, "--json", str(path), *arguments) == 0
    report: dict[str, Any] = json.loads(path.read_text())
    return report


@pytest.fixture
def report_file(tmp_path: Path) -> Path:
    return tmp_path / "report.json"


def test_completions(server: FakeOpenAI, report_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = bench(server, report_file, "--ignore-eos", "--temperature", "0", "--extra-body", '{"top_p": 0.5}')
    assert (report["completed"], report["failed"], report["uncounted"]) == (20, 0, 0)
    assert (report["total_input_tokens"], report["total_output_tokens"]) == (120, 100)
    assert report["tokens_per_event"] == pytest.approx(5 / 3)
    assert report["max_concurrent_requests"] > 1
    assert report["model_id"] == "first"
    assert report["p99_itl_ms"] >= 0
    path, _, body = server.requests[0]
    assert path == "/v1/completions"
    assert len(body.pop("prompt")) == 6
    assert body == {
        "model": "first",
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "ignore_eos": True,
        "top_p": 0.5,
    }
    output = capsys.readouterr().out
    assert output.startswith(f"first at {server.url}; client: pagoda ")
    assert "Successful requests:                     20" in output


def test_chat(server: FakeOpenAI, report_file: Path) -> None:
    report = bench(server, report_file, "--backend", "openai-chat", "--model", "mine", "--header", "x-a=1=2")
    assert (report["completed"], report["total_input_tokens"]) == (20, 120)
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["x-a"] == "1=2"
    assert body["model"] == "mine"
    assert len(body["messages"][0]["content"].split()) == 6
    assert body["max_completion_tokens"] == 5


@pytest.mark.parametrize("hangs_up", [False, True])
def test_connections_are_used_again(server: FakeOpenAI, report_file: Path, hangs_up: bool) -> None:
    server.hangs_up = hangs_up
    report = bench(server, report_file, "--max-concurrency", "2", "--model", "m")
    assert report["completed"] == 20
    assert report["max_concurrent_requests"] <= 2
    assert len(server.requests) == 20
    if hangs_up:
        assert server.num_connections == 20
    else:
        assert server.num_connections == 2


def test_failures_are_told_apart(server: FakeOpenAI, report_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.refused, server.cut = {2, 5, 9}, {3}
    report = bench(server, report_file, "--save-detailed")
    assert (report["completed"], report["failed"]) == (16, 4)
    assert report["failures"] == {
        "HTTP 429: the queue is full": 3,
        "the server closed the connection before the end of its answer": 1,
    }
    assert report["total_output_tokens"] == 80
    assert sum(map(bool, report["errors"])) == 4
    assert "  3 x HTTP 429: the queue is full" in capsys.readouterr().out


def test_a_server_without_usage(server: FakeOpenAI, report_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.sends_usage = False
    report = bench(server, report_file)
    assert (report["uncounted"], report["total_output_tokens"]) == (20, 60)
    assert "no usage for 20 requests" in capsys.readouterr().out


def test_warm_up_and_ready_check_do_not_count(server: FakeOpenAI, report_file: Path) -> None:
    report = bench(server, report_file, "--num-warmups", "4", "--ready-check-timeout-sec", "5")
    assert report["completed"] == 20
    assert len(server.requests) == 25
    prompts = [tuple(body["prompt"]) for _, _, body in server.requests]
    # Of the ready check, and once more.
    assert len(set(prompts)) == 24


def test_the_key_of_the_environment(
    server: FakeOpenAI, report_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.chdir(tmp_path)
    bench(server, report_file, "--save-result", "--result-filename", "saved.json", "--metadata", "version=7")
    assert server.requests[0][1]["authorization"] == "Bearer secret"
    saved = (tmp_path / "saved.json").read_text()
    assert json.loads(saved)["version"] == "7"
    assert "secret" not in saved


def test_when_all_fail_the_exit_code_is_1(server: FakeOpenAI) -> None:
    server.refused = set(range(1, 21))
    assert exit_of("--base-url", server.url, *SMALL) == 1


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert exit_of("--port", str(unused.getsockname()[1]), *SMALL) == 1
    assert capsys.readouterr().err.startswith("pagoda bench: the server cannot be asked: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--request-rate", "0"], "request_rate is 0.0; it must be more than 0"),
        (["--random-range-ratio", "1"], "random_range_ratio is 1.0; it must be in [0, 1)"),
        (["--dataset-name", "custom"], "the dataset custom needs dataset_path"),
        (["--goodput", "itl:3"], "goodput: 'itl' is none of ttft, tpot, e2el"),
        (["--goodput", "ttft:soon"], "goodput: 'soon' is no number"),
        (["--percentile-metrics", "ttft,queue"], "'queue' is none of"),
        (["--metric-percentiles", "101"], "must be from 0 to 100"),
        (["--extra-body", "[1]"], "extra_body must be a JSON object"),
        (["--base-url", "localhost:8000"], "it must be like http://127.0.0.1:8000"),
        (["--header", "x"], "header: 'x' is not KEY=VALUE"),
        (["--max-concurrency", "0"], "max_concurrency is 0; it must be at least 1"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_of(*arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("pagoda bench serve: error: ")
    assert message in last
