"""What `pagoda serve` runs: one `Service` per process, with its command line."""

from __future__ import annotations

import dataclasses
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from pagoda.checkpoint import served_name
from pagoda.cli.serve_options import ServeOptions
from pagoda.cli.service import Service
from pagoda.executor.config import ExecutorOptions
from pagoda.gateway.address import Address
from pagoda.gateway.config import GatewayOptions
from pagoda.options import shared_options, to_flags
from pagoda.scheduler.config import SchedulerOptions
from pagoda.tokenizer.config import TokenizerOptions

# Prompts take the processors that decoding and the other services leave. Whoever waits for the next token notices some
# milliseconds; whoever waits for a prompt does not.
_PREFILL_NICENESS = 10
# A step that waits for its processor makes every stream wait. Other programs there take turns of milliseconds, and of
# these they get a tenth.
_DECODE_NICENESS = -10


def plan(options: ServeOptions, folder: Path, model: Path) -> list[Service]:
    """The services in the order in which they are stopped: who sends work before who gets it.

    folder: private, for their sockets
    model: checkpoint folder
    """
    environ = _environ(options)
    # Envoy's configuration goes with the folder, even if the gateway is killed.
    inside = {"TMPDIR": str(folder)}
    # Every user of the machine can read command lines; keys stand in none.
    keys = {"PAGODA_API_KEY": ",".join(options.api_key)} if options.api_key else {}
    tokenizers = _names("tokenizer", options.tokenizers)
    gateway = shared_options(GatewayOptions, options, tokenizers=tuple(_socket(folder, each) for each in tokenizers))
    services = [
        _service(
            "gateway",
            "gateway",
            dataclasses.replace(gateway, api_key=()),
            gateway_url(options),
            environ | keys | inside,
        ),
        *(_tokenizer(options, folder, model, each, environ) for each in tokenizers),
        *_executors(options, folder, model, environ),
        _scheduler(options, folder, environ),
    ]
    cpus = _left_by_decoding(options)
    return [each if each.kind == "executor" else dataclasses.replace(each, cpus=cpus) for each in services]


def check(options: ServeOptions) -> None:
    """Raises ValueError for what a service would refuse: each checks its own options, before anything starts."""
    plan(options, folder=Path("/run"), model=Path("/model"))


def gateway_url(options: ServeOptions) -> str:
    """Where this machine reaches the gateway."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options.host, options.host)
    return f"http://{Address(host, options.port)}"


def model_names(options: ServeOptions) -> tuple[str, ...]:
    return options.served_model_name or (served_name(options.model),)


def _tokenizer(options: ServeOptions, folder: Path, model: Path, name: str, environ: dict[str, str]) -> Service:
    listen = _socket(folder, name)
    tokenizer = shared_options(
        TokenizerOptions,
        options,
        model=model,
        listen=listen,
        scheduler=_socket(folder, "scheduler"),
        served_model_name=model_names(options),
        name=name,
    )
    return _service("tokenizer", name, tokenizer, listen, environ)


def _executors(options: ServeOptions, folder: Path, model: Path, environ: dict[str, str]) -> list[Service]:
    roles = _roles(options)
    shares = _shares(options)
    # More executors than processors: one thread each is the least.
    threads = options.threads or (None if len(roles) == 1 or shares else 1)
    services: list[Service] = []
    for name, role in roles.items():
        listen = _socket(folder, name)
        executor = shared_options(
            ExecutorOptions,
            options,
            model=str(model),
            role=role,
            listen=listen,
            scheduler=_socket(folder, "scheduler"),
            threads=threads,
            cpus=",".join(map(str, shares[name])) if shares else None,
            name=name,
        )
        service = _service("executor", name, executor, listen, environ)
        services.append(dataclasses.replace(service, niceness=_niceness(role, has_own_cpus=bool(shares))))
    return services


def _niceness(role: str, *, has_own_cpus: bool) -> int:
    if role == "prefill":
        return _PREFILL_NICENESS
    return _DECODE_NICENESS if role == "decode" and has_own_cpus else 0


def _roles(options: ServeOptions) -> dict[str, str]:
    """Executor -> role."""
    return {
        name: role
        for role, count in options.num_executors.items()
        for name in _names("executor" if role == "mixed" else role, count)
    }


def _shares(options: ServeOptions) -> dict[str, list[int]]:
    """Executor -> its processors: those that share some get in each other's way. Empty when they have to."""
    names = list(_roles(options))
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if options.threads or len(names) == 1 or len(cpus) < len(names):
        return {}
    bounds = [len(cpus) * i // len(names) for i in range(len(names) + 1)]
    return {name: cpus[first:last] for name, (first, last) in zip(names, pairwise(bounds), strict=True)}


def _left_by_decoding(options: ServeOptions) -> frozenset[int]:
    """Processors for the other services where some executors only decode. Empty where there are none, or no others."""
    shares, roles = _shares(options), _roles(options)
    if "decode" not in roles.values():
        return frozenset()
    return frozenset(cpu for name, share in shares.items() if roles[name] != "decode" for cpu in share)


def _scheduler(options: ServeOptions, folder: Path, environ: dict[str, str]) -> Service:
    listen = _socket(folder, "scheduler")
    scheduler = shared_options(
        SchedulerOptions,
        options,
        listen=listen,
        executor_endpoint=f"ipc://{folder}/executors.zmq",
        tokenizer_endpoint=f"ipc://{folder}/tokenizers.zmq",
    )
    return _service("scheduler", "scheduler", scheduler, listen, environ)


def _service(kind: str, name: str, options: Any, address: str, environ: dict[str, str]) -> Service:
    command = (sys.executable, "-m", "pagoda.cli.main", kind, *to_flags(options))
    return Service(name, kind, command, address, environ)


def _environ(options: ServeOptions) -> dict[str, str]:
    """The environment without the variables that `options` were read from: they are in the flags by now."""
    read = {f"PAGODA_{each.name.upper()}" for each in dataclasses.fields(options)}
    return {name: value for name, value in os.environ.items() if name not in read}


def _names(kind: str, count: int) -> list[str]:
    return [kind] if count == 1 else [f"{kind}-{i}" for i in range(count)]


def _socket(folder: Path, name: str) -> str:
    return f"unix:{folder}/{name}.sock"
