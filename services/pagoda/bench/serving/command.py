"""`pagoda bench serve`: sends requests to a running server, ours or any other that is OpenAI-compatible."""

from __future__ import annotations

import asyncio
import json
import math
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import uvloop
from tqdm import tqdm

from pagoda.bench.circumstances import circumstances
from pagoda.bench.dataset import Prompt, make_prompts
from pagoda.bench.serving.client import CompletionClient, first_model
from pagoda.bench.serving.connections import Connections
from pagoda.bench.serving.load import arrivals, run_load
from pagoda.bench.serving.options import ServeBenchOptions
from pagoda.bench.serving.report import Report, Run, details, make_report
from pagoda.bench.serving.table import format_report
from pagoda.errors import UnavailableError

# Between two attempts of the ready check, in seconds.
_RETRY_S = 0.5


def main(options: ServeBenchOptions) -> int:
    """0; 1 when no request has succeeded.

    Raises PagodaError for a server that cannot be asked and for a dataset that is none, OSError for files.
    """
    _allow_open_files()
    prompts = make_prompts(options, options.vocab_size)
    connections = Connections(options.url, insecure=options.insecure)
    with tqdm(total=len(prompts), unit="request", leave=False, disable=None) as progress:
        model, run = uvloop.run(_measure(options, connections, prompts, progress.update))
    report = make_report(run, options.percents, options.goodput_ms)
    print(f"{model} at {options.url}; client: {circumstances()}")
    print(format_report(report, options.metrics, options.percents))
    for path in _result_files(options, model):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_result(options, model, run, report), indent=2) + "\n")
    return 0 if report["completed"] else 1


async def _measure(
    options: ServeBenchOptions, connections: Connections, prompts: list[Prompt], on_end: Callable[[], object]
) -> tuple[str, Run]:
    """(model, what was seen)"""
    model = options.model or await first_model(connections, options.headers)
    client = CompletionClient(
        connections,
        options.path,
        model,
        is_chat=options.backend == "openai-chat",
        parameters=options.parameters,
        headers=options.headers,
        timeout_s=options.request_timeout_s,
    )
    if options.ready_check_timeout_sec:
        await _wait_until_ready(client, prompts[0], options.ready_check_timeout_sec)
    if options.num_warmups:
        warmup = replace(options, num_prompts=options.num_warmups, seed=options.seed + 1)
        await run_load(
            client, make_prompts(warmup, options.vocab_size), [0.0] * options.num_warmups, options.max_concurrency
        )
    arrivals_s = arrivals(len(prompts), options.request_rate, options.burstiness, options.seed)
    began, cpu_began = time.perf_counter(), time.process_time()
    answers = await run_load(client, prompts, arrivals_s, options.max_concurrency, on_end)
    run = Run(answers, time.perf_counter() - began, time.process_time() - cpu_began)
    connections.close()
    return model, run


async def _wait_until_ready(client: CompletionClient, prompt: Prompt, timeout_s: float) -> None:
    """Raises UnavailableError when no request has succeeded in time."""
    deadline = time.monotonic() + timeout_s
    while not (answer := await client.send(prompt)).is_ok:
        if time.monotonic() > deadline:
            raise UnavailableError(f"the server is not ready after {timeout_s:g} s: {answer.error}")
        await asyncio.sleep(_RETRY_S)


def _result(options: ServeBenchOptions, model: str, run: Run, report: Report) -> Report:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "backend": options.backend,
        "label": options.label,
        "model_id": model,
        "base_url": options.url,
        "dataset_name": options.dataset_name,
        "num_prompts": options.num_prompts,
        "request_rate": "inf" if math.isinf(options.request_rate) else options.request_rate,
        "burstiness": options.burstiness,
        "max_concurrency": options.max_concurrency,
        "client": circumstances(),
        **options.metadata_fields,
        **report,
        **(details(run.answers) if options.save_detailed else {}),
    }


def _result_files(options: ServeBenchOptions, model: str) -> list[Path]:
    files = [options.json] if options.json else []
    if options.save_result:
        concurrency = f"-concurrency{options.max_concurrency}" if options.max_concurrency else ""
        stem = f"{options.label or options.backend}-{options.request_rate}qps{concurrency}-{Path(model).name}"
        name = options.result_filename or f"{stem}-{datetime.now().strftime('%Y%m%d-%H%M%S')}.json"
        files.append((options.result_dir or Path()) / name)
    return files


def _allow_open_files() -> None:
    """As many connections as this process may ask for."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
