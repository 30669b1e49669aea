"""The load generator against the whole stack."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NUM_PROMPTS, INPUT_LEN, OUTPUT_LEN = 24, 40, 12


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_what_the_server_did_is_what_is_reported(server: Any, tmp_path: Path, backend: str) -> None:
    report_file = tmp_path / "report.json"
    flags = {
        "base-url": server.base_url,
        "backend": backend,
        "num-prompts": NUM_PROMPTS,
        "random-input-len": INPUT_LEN,
        "random-output-len": OUTPUT_LEN,
        "max-concurrency": 8,
        "request-timeout-s": 60,
        "json": report_file,
    }
    command = [sys.executable, "-m", "pagoda.cli.main", "bench", "serve", "--ignore-eos"]
    done = subprocess.run(
        command + [text for name, value in flags.items() for text in (f"--{name}", str(value))],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(report_file.read_text())
    assert (report["completed"], report["failures"], report["uncounted"]) == (NUM_PROMPTS, {}, 0)
    assert report["model_id"] == server.model
    assert report["total_output_tokens"] == NUM_PROMPTS * OUTPUT_LEN
    if backend == "openai":
        assert report["total_input_tokens"] == NUM_PROMPTS * INPUT_LEN
    else:
        assert report["total_input_tokens"] > NUM_PROMPTS * INPUT_LEN
    assert 1 < report["max_concurrent_requests"] <= 8
    assert 0 < report["median_ttft_ms"] < report["median_e2el_ms"]
    assert report["p99_itl_ms"] > 0
