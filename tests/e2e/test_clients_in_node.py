"""Clients that are not Python: the official `openai` npm package, and gRPC from the .proto files alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import openai

HERE = Path(__file__).resolve().parent
PROTOS = HERE.parents[1] / "protos"


def run_node(script: str, *args: str) -> dict[str, Any]:
    """Runs one of the scripts in node/ and returns the JSON line that it prints."""
    node = shutil.which("node") or str(Path(sysconfig.get_path("scripts")) / "node")
    done = subprocess.run(
        [node, HERE / "node" / script, *args], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_openai_package_streams(server: Any) -> None:
    prompt = "Copy these words: river lamp stone"
    answer = run_node("stream_chat.mjs", f"{server.base_url}/v1", server.model, prompt)
    client = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none")
    expected = client.chat.completions.create(
        model=server.model, messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=32
    )
    assert answer["text"] == expected.choices[0].message.content
    assert answer["finishReason"] == expected.choices[0].finish_reason
    assert expected.usage is not None
    assert answer["usage"]["completion_tokens"] == expected.usage.completion_tokens
    assert answer["chunks"] > 3


def test_grpc_js_generates_from_the_protos_alone(server: Any) -> None:
    sampling = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
    answer = run_node("generate.mjs", server.address, str(PROTOS), json.dumps({"text": "Hello", "sampling": sampling}))
    assert answer["error"] is None
    assert answer["finish_reason"] == "FINISH_REASON_LENGTH"
    assert answer["usage"]["completion_tokens"] == 12 == len(answer["token_ids"])
    client = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none")
    expected = client.completions.create(
        model=server.model, prompt="Hello", temperature=0, max_tokens=12, extra_body={"ignore_eos": True}
    )
    assert answer["text"] == expected.choices[0].text


def test_grpc_js_sees_a_clear_error(server: Any) -> None:
    request = json.dumps({"text": "Hello", "sampling": {"temperature": -2}})
    answer = run_node("generate.mjs", server.address, str(PROTOS), request)
    assert answer["error"]["code"] == 3  # INVALID_ARGUMENT
    assert "temperature" in answer["error"]["details"]
