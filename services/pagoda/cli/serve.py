"""`pagoda serve`: the whole stack on one machine, as the processes that a cluster would run.

The processes talk over unix sockets in a private folder; the gateway's port is the only one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pagoda.checkpoint import resolve_model
from pagoda.children import MAX_FOLDER_CHARS, private_folder
from pagoda.cli.plan import gateway_url, model_names, plan
from pagoda.cli.supervisor import ServiceFailedError, Supervisor
from pagoda.executor.config import ExecutorOptions
from pagoda.gateway.config import LOG_LEVELS, GatewayOptions
from pagoda.gateway.server import check_port
from pagoda.logs import configure_logging
from pagoda.options import option
from pagoda.scheduler.config import SchedulerOptions
from pagoda.signals import stop_event
from pagoda.tokenizer.config import TokenizerOptions


def _same_as(options_type: type[Any], name: str) -> Any:
    """The option `name` of a service: the same default, help and choices."""
    (field,) = [each for each in dataclasses.fields(options_type) if each.name == name]
    return dataclasses.field(default=field.default, metadata=field.metadata)


@dataclass(frozen=True)
class ServeOptions:
    """Where a name exists in vLLM, it means the same here. An option named as a service's goes to that service."""

    model: str | None = option(
        None, "Checkpoint folder or Hugging Face id; the bundled model if not given.", positional=True
    )
    host: str = _same_as(GatewayOptions, "host")
    port: int = _same_as(GatewayOptions, "port")
    api_key: tuple[str, ...] = _same_as(GatewayOptions, "api_key")
    allowed_origins: tuple[str, ...] = _same_as(GatewayOptions, "allowed_origins")
    max_body_bytes: int = _same_as(GatewayOptions, "max_body_bytes")
    access_log: str | None = _same_as(GatewayOptions, "access_log")
    drain_s: float = _same_as(GatewayOptions, "drain_s")
    served_model_name: tuple[str, ...] = option(
        (), 'Names clients may call the model by. Default: as given, "pagoda" for the bundled one.', metavar="NAME"
    )
    chat_template: str | None = _same_as(TokenizerOptions, "chat_template")
    enable_prefix_caching: bool = _same_as(SchedulerOptions, "enable_prefix_caching")
    max_num_waiting: int = _same_as(SchedulerOptions, "max_num_waiting")
    device: str = _same_as(ExecutorOptions, "device")
    dtype: str = _same_as(ExecutorOptions, "dtype")
    load_format: str = _same_as(ExecutorOptions, "load_format")
    max_model_len: int | None = _same_as(ExecutorOptions, "max_model_len")
    max_num_seqs: int = _same_as(ExecutorOptions, "max_num_seqs")
    max_num_batched_tokens: int = _same_as(ExecutorOptions, "max_num_batched_tokens")
    block_size: int = _same_as(ExecutorOptions, "block_size")
    gpu_memory_utilization: float = _same_as(ExecutorOptions, "gpu_memory_utilization")
    kv_cache_memory_bytes: int | None = _same_as(ExecutorOptions, "kv_cache_memory_bytes")
    num_gpu_blocks_override: int | None = _same_as(ExecutorOptions, "num_gpu_blocks_override")
    threads: int | None = _same_as(ExecutorOptions, "threads")
    tokenizers: int = option(1, "Number of tokenizer processes.")
    executors: int = option(1, "Number of executor processes, each with a copy of the model.")
    run_dir: Path | None = option(
        None, "Folder for sockets and for state.json, which lists processes and addresses. Default: a temporary one."
    )
    log_level: str = option("warning", "Least severe messages of the services to show.", choices=LOG_LEVELS)

    def __post_init__(self) -> None:
        for name in ("tokenizers", "executors"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.run_dir is not None and len(str(self.run_dir.absolute())) > MAX_FOLDER_CHARS:
            raise ValueError(f"run_dir is too long for unix sockets; {MAX_FOLDER_CHARS} characters at most")
        # Each service checks its own options, so that wrong ones are reported before anything starts.
        plan(self, folder=Path("/run"), model=Path("/model"))


def main(options: ServeOptions) -> int:
    """Runs until SIGINT or SIGTERM. 0 after an orderly stop, 1 if a service cannot start or keeps dying."""
    configure_logging("supervisor")
    check_port(GatewayOptions(host=options.host, port=options.port).listen)
    model = resolve_model(options.model)
    print(f"Pagoda {version('pagoda')} starts {model_names(options)[0]} from {model}", flush=True)
    with _run_folder(options.run_dir) as folder:
        services = plan(options, folder, model)
        supervisor = Supervisor(services, folder / "state.json", options.drain_s, greeting(options))
        try:
            asyncio.run(_supervise(supervisor))
        except ServiceFailedError as error:
            print(f"pagoda serve: {error}", file=sys.stderr)
            return 1
    return 0


async def _supervise(supervisor: Supervisor) -> None:
    await supervisor.run(stop_event())


def greeting(options: ServeOptions) -> str:
    """A command to paste, as the first thing to do with the server."""
    body = {"model": model_names(options)[0], "messages": [{"role": "user", "content": "Hello! Who are you?"}]}
    lines = [f"curl {gateway_url(options)}/v1/chat/completions", "-H 'content-type: application/json'"]
    if options.api_key:
        lines.append('-H "authorization: Bearer $PAGODA_API_KEY"')
    lines.append(f"-d {shlex.quote(json.dumps(body))}")
    return "\nReady. Try it:\n\n  " + " \\\n    ".join(lines) + "\n"


@contextmanager
def _run_folder(run_dir: Path | None) -> Iterator[Path]:
    if run_dir is None:
        with private_folder("pagoda-") as folder:
            yield folder
        return
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Whoever can reach the sockets can use the services without a key.
    run_dir.chmod(0o700)
    with (run_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{run_dir} is in use by another `pagoda serve`; choose another --run-dir") from None
        yield run_dir.absolute()
