"""The canary: asks any OpenAI-compatible server questions whose answers are known, and tables the share it gets right.

The questions are the held-out split of the bundled model's tasks, so with the bundled model a healthy server reaches
the targets; a wrong KV block, a lost token or a broken tool parser shows as a row below its target. It knows nothing
of the server but `/v1/chat/completions`. Standard library only.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pagoda.bundled.tasks import RECALL_DISTANCES, SHORT_TASKS, TOOL_TASKS, Reply, Sample, is_correct, recall

MAX_ANSWER_TOKENS = 128
"""Longer than any correct answer, and as much as the longest contexts leave room for."""

TIMEOUT_S = 120.0

TARGETS: dict[str, float] = {"copy": 97.0, "addition": 95.0, "json": 95.0, "tool_call": 95.0}
"""Percent of exact answers the bundled model must reach; tasks not named have no target."""
NEAR_RECALL_TOKENS = 600
NEAR_RECALL_TARGET = 95.0
FAR_RECALL_TARGET = 90.0


@dataclass(frozen=True)
class CanaryRow:
    """The result of one task, or of recall at one distance."""

    task: str
    distance: int | None
    """Tokens between the planted value and the answer; None for tasks other than recall."""
    samples: int
    correct: int
    errors: int
    """Requests without a usable answer; they count as wrong."""
    target: float | None
    """Percent; None = not judged."""

    @property
    def percent(self) -> float:
        return 100.0 * self.correct / self.samples

    @property
    def is_met(self) -> bool:
        return self.target is None or self.percent >= self.target


@dataclass(frozen=True)
class Server:
    """Where to ask, and as whom."""

    base_url: str
    """With or without the `/v1` at its end."""
    model: str | None
    """None = the first one the server lists."""
    api_key: str | None

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One JSON request; OSError or HTTPException where it fails, ValueError where the answer is no JSON object."""
        url = urlsplit(self.base_url)
        connect = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        connection = connect(url.hostname or "127.0.0.1", url.port, timeout=TIMEOUT_S)
        try:
            prefix = url.path.rstrip("/").removesuffix("/v1")
            connection.request(method, f"{prefix}/v1{path}", json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise http.client.HTTPException(f"{method} {path}: status {response.status}: {text[:500]}")
        answer = json.loads(text)
        if not isinstance(answer, dict):
            raise ValueError(f"{method} {path}: not a JSON object: {text[:500]}")
        return answer

    def first_model(self) -> str:
        model: str = self.request("GET", "/models")["data"][0]["id"]
        return model

    def ask(self, model: str, sample: Sample) -> Reply:
        """The server's greedy answer to a sample's prompt."""
        body: dict[str, Any] = {
            "model": model,
            "messages": list(sample.prompt),
            "temperature": 0,
            "max_tokens": MAX_ANSWER_TOKENS,
        }
        if sample.tools:
            body["tools"] = list(sample.tools)
        message = self.request("POST", "/chat/completions", body)["choices"][0]["message"]
        return Reply(message.get("content"), tuple(message.get("tool_calls") or ()))


def canary_samples(samples: int, seed: int) -> Iterator[tuple[str, int | None, list[Sample]]]:
    """(task, distance, held-out samples) of every row; each row draws from a seed of its own."""
    for task, generate in {**SHORT_TASKS, **TOOL_TASKS}.items():
        rng = random.Random(f"{seed}-{task}")
        yield task, None, [generate(rng, "held_out") for _ in range(samples)]
    for distance in RECALL_DISTANCES:
        rng = random.Random(f"{seed}-recall-{distance}")
        yield "recall", distance, [recall(rng, "held_out", distance) for _ in range(samples)]


def target_of(task: str, distance: int | None) -> float | None:
    if distance is None:
        return TARGETS.get(task)
    return NEAR_RECALL_TARGET if distance <= NEAR_RECALL_TOKENS else FAR_RECALL_TARGET


async def run_canary(
    base_url: str, model: str | None, api_key: str | None, samples: int, concurrency: int, seed: int
) -> list[CanaryRow]:
    """Ask `samples` questions per row, at most `concurrency` at a time.

    Raises OSError or HTTPException when the server does not even list its models.
    """
    server = Server(base_url, model, api_key)
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(concurrency, "canary") as threads:
        name = model if model else await loop.run_in_executor(threads, server.first_model)

        async def judge(sample: Sample) -> bool | None:
            """None = no usable answer."""
            try:
                return is_correct(sample, await loop.run_in_executor(threads, server.ask, name, sample))
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
                print(f"canary: {sample.task}: {error}", file=sys.stderr)
                return None

        rows = []
        for task, distance, asked in canary_samples(samples, seed):
            verdicts = await asyncio.gather(*(judge(sample) for sample in asked))
            rows.append(
                CanaryRow(
                    task=task,
                    distance=distance,
                    samples=len(verdicts),
                    correct=verdicts.count(True),
                    errors=verdicts.count(None),
                    target=target_of(task, distance),
                )
            )
    return rows


def format_table(rows: Sequence[CanaryRow]) -> str:
    """The rows as an aligned text table; a row below its target ends with a mark."""
    lines = [f"{'task':<12} {'distance':>8} {'samples':>8} {'exact %':>8} {'target':>7} {'errors':>7}"]
    for row in rows:
        distance = "-" if row.distance is None else str(row.distance)
        target = "-" if row.target is None else f"{row.target:.0f}"
        mark = "" if row.is_met else "  below target"
        lines.append(
            f"{row.task:<12} {distance:>8} {row.samples:>8} {row.percent:>8.1f} {target:>7} {row.errors:>7}{mark}"
        )
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the canary command."""
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="base URL of the server")
    parser.add_argument("--model", help="name of the served model (default: the first one listed)")
    parser.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY"), help="default: $OPENAI_API_KEY")
    parser.add_argument("--samples", type=_positive, default=100, help="questions per row")
    parser.add_argument("--concurrency", type=_positive, default=8, help="requests in flight")
    parser.add_argument("--seed", type=int, default=0, help="seed of the questions")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def main(args: argparse.Namespace) -> int:
    """Run, print the table; 0 = every target met, 1 = a row is below its target, 2 = the server cannot be asked."""
    try:
        rows = asyncio.run(run_canary(args.url, args.model, args.api_key, args.samples, args.concurrency, args.seed))
    except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
        print(f"canary: {args.url} cannot be asked: {error}", file=sys.stderr)
        return 2
    print(format_table(rows))
    return 0 if all(row.is_met for row in rows) else 1
