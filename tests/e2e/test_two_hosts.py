"""Prefill on another host, behind a bad network: the same tokens, only later."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from bad_link import BadLink, obstacle
from processes import PagodaProcess, poll
from stack_fixtures import Server, short_folder

from pagoda.bundled import CHAT_MODEL
from pagoda.rpc.channel import open_channel
from pagoda.v1 import common_pb2, inference_pb2, inference_pb2_grpc

PORT = 50052
LENGTHS = [40, 90, 200, 333, 512, 700]
NUM_TOKENS = 40
SMALL = "--max-model-len 1024 --max-num-seqs 16 --num-gpu-blocks-override 512 --device cpu --threads 1".split()
QUIET = ["--log-level", "warning"]

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=obstacle() or "-")


class TwoHosts:
    """A cell: tokenizer, scheduler and decode on one host, prefill on the other."""

    def __init__(self, folder: Path, link: BadLink) -> None:
        self.folder = folder
        key = folder / "cell.key"
        key.write_text(secrets.token_hex(32))
        here, there = link.addresses
        self.scheduler = f"unix:{folder}/scheduler.sock"
        self.tokenizer = f"unix:{folder}/tokenizer.sock"
        with_key = ["--cell-key-file", str(key), *QUIET]
        executor = ["executor", str(CHAT_MODEL), *SMALL, *with_key, "--scheduler", f"{here}:{PORT}"]
        commands = [
            [
                *("scheduler", "--listen", f"{here}:{PORT}", "--max-local-prefill-tokens", "16", *with_key),
                *("--executor-endpoint", f"tcp://{here}:*", "--tokenizer-endpoint", f"ipc://{folder}/tokenizers.zmq"),
            ],
            ["tokenizer", str(CHAT_MODEL), "--listen", self.tokenizer, "--scheduler", f"{here}:{PORT}", *with_key],
            [
                *(*executor, "--name", "decode", "--role", "decode", "--transfer-endpoint", f"tcp://{here}:*"),
                *("--listen", f"unix:{folder}/decode.sock"),
            ],
            [
                *(*executor, "--name", "prefill", "--role", "prefill", "--transfer-endpoint", f"tcp://{there}:*"),
                *("--listen", f"unix:{folder}/prefill.sock"),
            ],
        ]
        self._processes = [
            PagodaProcess(folder / f"{number}.log", *command, prefix=link.prefixes[number == len(commands) - 1])
            for number, command in enumerate(commands)
        ]

        self._prefix = link.prefixes[0]
        self._address = f"{here}:{PORT}"

    def close(self) -> None:
        for process in reversed(self._processes):
            process.close()

    @property
    def output(self) -> str:
        return "\n".join(process.output for process in self._processes)

    def state(self) -> dict[str, Any]:
        """The scheduler's view, proven sound; {} where it does not answer."""
        command = [*self._prefix, sys.executable, "-c", _GET_STATE, self._address]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        answer = json.loads(done.stdout) if done.returncode == 0 else {}
        assert "violations" not in answer
        state: dict[str, Any] = answer.get("state", {})
        return state

    def wait_until_ready(self) -> None:
        poll(lambda: len(self.state().get("lanes", ())) == 2, 60, f"both executors have joined\n{self.output}")


_GET_STATE = """
import sys
from google.protobuf.json_format import MessageToJson
from pagoda.rpc.channel import open_blocking_channel
from pagoda.v1 import scheduler_pb2, scheduler_pb2_grpc
with open_blocking_channel(sys.argv[1]) as channel:
    stub = scheduler_pb2_grpc.SchedulerStub(channel)
    print(MessageToJson(stub.GetState(scheduler_pb2.GetStateRequest(check_integrity=True), timeout=5)))
"""


async def answers(tokenizer: str) -> list[list[int]]:
    """The tokens of all prompts, asked at the same time, greedy and drawn."""

    async def ask(length: int, temperature: float) -> list[int]:
        # One of a kind, so that none has another's beginning.
        ids = [100 + (length * i + i * i) % 800 for i in range(length)]
        sampling = common_pb2.SamplingParams(max_tokens=NUM_TOKENS, temperature=temperature, seed=3, ignore_eos=True)
        request = inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=ids), sampling=sampling)
        return [token async for answer in stub.Generate(request, timeout=90) for token in answer.token_ids]

    async with open_channel(tokenizer) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
        return await asyncio.gather(*(ask(length, temperature) for length in LENGTHS for temperature in (0.0, 0.9)))


def test_a_bad_network_costs_time_and_nothing_else(shared_server: Server) -> None:
    """The tokens are those of one executor on one host."""
    undisturbed = asyncio.run(answers(shared_server.address))
    folder = short_folder()
    try:
        with BadLink(delay_s=0.05, loss=0.01, seed=1) as link, closing(TwoHosts(folder, link)) as hosts:
            hosts.wait_until_ready()
            assert asyncio.run(answers(hosts.tokenizer)) == undisturbed
            state = hosts.state()
            assert int(state["remotePrefills"]) > 0, hosts.output
            assert int(state["movesDone"]) > 0, hosts.output
            assert not any(lane.get("numReferencedBlocks") for lane in state["lanes"])
            assert link.num_lost > 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)
