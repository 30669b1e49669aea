"""`pagoda serve` as a supervisor: what dies comes back, what cannot start says why, and nothing is ever left over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest
from processes import descendants, is_alive, poll
from stack_fixtures import Serve, Server


def pids_of(server: Server) -> list[int]:
    """Of every process of a running server: the supervisor, the services and Envoy."""
    pids = [server.process.pid, *descendants(server.process.pid)]
    assert len(pids) >= len(server.services()) + 2
    return pids


def assert_gone(pids: list[int]) -> None:
    poll(lambda: not any(is_alive(pid) for pid in pids), 5, f"nothing is left of {pids}")


# --- a healthy start


def test_output_is_a_line_per_service_and_a_command_to_paste(serve: Serve) -> None:
    server = serve("--api-key", "sk-test").wait_until_ready()
    poll(lambda: "Try it:" in server.process.output, 5, "the greeting")
    progress, _, command = server.process.output.partition("\nReady. Try it:\n")
    first, *ready = progress.splitlines()
    assert first.startswith("Pagoda ")
    assert sorted(line.split()[0] for line in ready) == ["executor", "gateway", "scheduler", "tokenizer"]
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(
        ["bash", "-c", command], env={**os.environ, "PAGODA_API_KEY": "sk-test"}, capture_output=True, check=True
    )
    assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant"
    assert "sk-test" not in server.process.output


def test_several_tokenizers_and_executors(serve: Serve) -> None:
    server = serve("--tokenizers", "2", "--executors", "2", "--num-gpu-blocks-override", "256").wait_until_ready()
    assert set(server.services()) == {
        "gateway",
        *("tokenizer-0", "tokenizer-1"),
        *("executor-0", "executor-1"),
        "scheduler",
    }
    assert len(server.state().lanes) == 2
    assert server.complete("Hello") == server.complete("Hello")


def test_only_the_port_can_be_reached_by_others(serve: Serve) -> None:
    server = serve().wait_until_ready()
    for service in server.services().values():
        if service["name"] != "gateway":
            folder = Path(service["address"].removeprefix("unix:")).parent
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    inodes = {
        os.readlink(link)
        for pid in pids_of(server)
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if os.path.islink(link)
    }
    listening = [
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and f"socket:[{line.split()[9]}]" in inodes
    ]
    port = int(server.address.rpartition(":")[2])
    assert {int(each.rpartition(":")[2], 16) for each in listening} == {port}


# --- deaths


def test_killed_services_come_back(serve: Serve) -> None:
    server = serve().wait_until_ready()
    expected = server.complete("Hello")
    for name in ("tokenizer", "executor", "scheduler", "gateway"):
        server.kill(name)
        poll(lambda: httpx.get(f"{server.base_url}/health").status_code == 200, 20, f"healthy again after {name}")
        assert server.complete("Hello") == expected, name
        assert f"{name} died (killed by SIGKILL); restarting it" in server.process.output
        server.assert_idle()


def test_stream_of_a_killed_tokenizer_is_not_taken_for_complete(serve: Serve) -> None:
    server = serve().wait_until_ready()
    client = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0)
    stream = client.completions.create(
        model=server.model, prompt="Hello", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
    )
    next(stream)
    os.kill(server.services()["tokenizer"]["pid"], signal.SIGKILL)
    with pytest.raises((openai.APIError, httpx.TransportError)):
        list(stream)
    poll(lambda: httpx.get(f"{server.base_url}/health").status_code == 200, 20, "healthy again")
    server.assert_idle()


def test_without_a_tokenizer_requests_are_503_at_once(serve: Serve) -> None:
    server = serve().wait_until_ready()
    os.kill(server.services()["tokenizer"]["pid"], signal.SIGSTOP)
    try:
        begin = time.monotonic()
        poll(lambda: httpx.get(f"{server.base_url}/health", timeout=10).status_code == 503, 10, "unhealthy")
        assert time.monotonic() - begin < 8
    finally:
        os.kill(server.services()["tokenizer"]["pid"], signal.SIGCONT)


# --- starts that fail


def test_model_that_cannot_be_loaded(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nobody-knows"}')
    server = serve(str(tmp_path))
    assert server.process.wait() == 1
    assert "could not start (exit code" in server.process.output
    assert descendants(server.process.pid) == []
    assert server.services() == {}


def test_missing_model_is_one_line(serve: Serve) -> None:
    server = serve("/no/such/model")
    assert server.process.wait() == 1
    assert server.process.output.count("\n") == 1
    assert "'/no/such/model' is neither a checkpoint folder nor a hub id" in server.process.output


def test_port_in_use(serve: Serve) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = serve("--port", str(port))
        assert server.process.wait() == 1
    assert server.process.output.strip() == (
        f"pagoda serve: cannot listen on 127.0.0.1:{port}: Address already in use; choose another with --port"
    )


def test_run_folder_in_use(serve: Serve) -> None:
    first = serve()
    poll(first.services, 20, "the services are started")
    second = serve("--run-dir", str(first.run_dir))
    assert second.process.wait() == 1
    assert f"{first.run_dir} is in use by another" in second.process.output


# --- the end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_everything_after_running_requests(serve: Serve, number: signal.Signals) -> None:
    server = serve().wait_until_ready()
    pids = pids_of(server)
    answers = []
    request = threading.Thread(target=lambda: answers.append(server.complete("Hello", max_tokens=100)))
    request.start()
    poll(lambda: any(lane.num_running for lane in server.state().lanes), 5, "the request runs")
    # As a terminal does: to the whole foreground group.
    os.killpg(server.process.pid, number)
    assert server.process.wait(60) == 0
    assert_gone(pids)
    request.join(5)
    assert len(answers) == 1
    assert "Traceback" not in server.process.output
    assert "killed" not in server.process.output


def test_signal_during_the_start_stops_everything(serve: Serve) -> None:
    server = serve()
    poll(server.services, 20, "the services are started")
    pids = [server.process.pid, *descendants(server.process.pid)]
    assert server.process.stop(signal.SIGHUP) == 0  # the terminal is closed
    assert_gone(pids)


def test_second_signal_does_not_wait_for_requests(serve: Serve) -> None:
    server = serve().wait_until_ready()
    pids = pids_of(server)
    client = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0)
    stream = client.completions.create(
        model=server.model, prompt="Hello", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
    )
    next(stream)
    server.process.process.send_signal(signal.SIGINT)
    poll(lambda: "a second Ctrl-C" in server.process.output, 5, "the first one is noticed")
    server.process.process.send_signal(signal.SIGINT)
    server.process.wait(5)
    assert_gone(pids)
    stream.close()


def test_killed_supervisor_leaves_nothing(serve: Serve) -> None:
    server = serve().wait_until_ready()
    pids = pids_of(server)
    server.process.process.kill()
    assert_gone(pids)
