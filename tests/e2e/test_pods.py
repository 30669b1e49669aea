"""deploy/kubernetes: its pods make a cell that serves, scales, and restarts what died."""

from __future__ import annotations

import http.client
import json
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from pods import MANIFESTS, Pod, Pods, manifests
from processes import poll
from stack_fixtures import Server, scheduler_state, short_folder

from pagoda.bundled import CHAT_MODEL
from pagoda.executor.config import ExecutorOptions
from pagoda.gateway.config import GatewayOptions
from pagoda.tokenizer.config import TokenizerOptions
from pagoda.v1 import scheduler_pb2

SMALL = "--max-model-len 1024 --max-num-seqs 16 --num-gpu-blocks-override 512 --device cpu --threads 1".split()
# Long enough that another executor computes it.
PROMPT = " ".join(f"{number} and {number * number}," for number in range(60))
NUM_TOKENS = 200


@pytest.fixture
def pods() -> Iterator[Pods]:
    folder = short_folder()
    (folder / "cell.key").write_text(secrets.token_hex(32))
    try:
        with Pods(folder, {"/model": CHAT_MODEL, "/etc/pagoda": folder}, {"executor": SMALL}) as running:
            running.wait_until_ready()
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Stream:
    """A greedy completion through the gateway, read while it goes on."""

    def __init__(self, pods: Pods, prompt: str) -> None:
        body = {"model": "pagoda", "prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
        body["stream"] = True
        self.num_parts = 0
        self._connection = http.client.HTTPConnection(pods.service("pagoda"), timeout=60)
        self._connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})

    def text(self) -> str:
        """All of it, when it has ended."""
        response = self._connection.getresponse()
        assert response.status == 200, response.read()
        parts = []
        for line in response:
            if line.startswith(b"data: {"):
                parts.append(json.loads(line.removeprefix(b"data: "))["choices"][0]["text"])
                self.num_parts += 1
        self._connection.close()
        return "".join(parts)


def state(pods: Pods) -> scheduler_pb2.SchedulerState:
    """The scheduler's view, proven sound."""
    return scheduler_state(pods.service("pagoda-scheduler"), check_integrity=True)


def test_pods_serve_scale_and_come_back(pods: Pods, shared_server: Server) -> None:
    """Whatever dies meanwhile, answers are those of one undisturbed executor."""
    assert all(pod.passes("livenessProbe") for pod in pods.all())
    prompts = [f"{number}: {PROMPT}" for number in range(4)]
    undisturbed = [shared_server.complete(prompt, NUM_TOKENS) for prompt in prompts]

    def while_they_run(disturb: list[Pod]) -> None:
        streams = [Stream(pods, prompt) for prompt in prompts]
        with ThreadPoolExecutor(len(streams)) as pool:
            texts: list[Future[str]] = [pool.submit(stream.text) for stream in streams]
            poll(lambda: all(stream.num_parts > 5 for stream in streams), 30, f"they have begun\n{pods.output}")
            assert not any(text.done() for text in texts)
            for pod in disturb:
                pods.kill(pod)
            assert [text.result() for text in texts] == undisturbed

    while_they_run([])
    assert state(pods).remote_prefills >= len(prompts)

    more = pods.scale_up("pagoda-decode")
    poll(lambda: more.passes("readinessProbe"), 60, f"it has joined\n{pods.output}")
    while_they_run([*pods.of("pagoda-decode")[:1], *pods.of("pagoda-prefill")])
    pods.wait_until_ready()
    while_they_run(pods.of("pagoda-scheduler"))
    pods.wait_until_ready()
    assert pods.scale_down(more) == 0, pods.output
    while_they_run([])
    poll(lambda: not any(lane.num_referenced_blocks for lane in state(pods).lanes), 10, "every block is free")


def test_executors_differ_in_their_role_only() -> None:
    prefill, decode = ((MANIFESTS / f"{role}.yaml").read_text() for role in ("prefill", "decode"))
    assert prefill.replace("prefill", "decode") == decode


def test_every_service_has_the_pods_of_one_deployment() -> None:
    """What a name in a command line stands for exists, with the port that is asked for."""
    objects = manifests()
    pods = {each["metadata"]["name"]: each["spec"]["template"] for each in objects if each["kind"] == "Deployment"}
    for service in (each for each in objects if each["kind"] == "Service"):
        (selected,) = (
            pod for pod in pods.values() if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        )
        (container,) = selected["spec"]["containers"]
        ports = {each["containerPort"] for each in container["ports"]}
        assert {each["port"] for each in service["spec"]["ports"]} <= ports
    for each in objects:
        if each["kind"] == "Deployment":
            assert each["spec"]["selector"]["matchLabels"] == each["spec"]["template"]["metadata"]["labels"]


def test_a_pod_gets_longer_than_it_drains() -> None:
    options = {"executor": ExecutorOptions(), "gateway": GatewayOptions(), "tokenizer": TokenizerOptions()}
    for each in manifests():
        if each["kind"] == "Deployment":
            spec = each["spec"]["template"]["spec"]
            drained = options.get(spec["containers"][0]["name"])
            assert drained is None or spec["terminationGracePeriodSeconds"] > drained.drain_s
