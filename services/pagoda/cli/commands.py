"""The subcommands. Each imports what it needs when it runs: `pagoda serve` must not wait for torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from pagoda.imports import collector_paused
from pagoda.options import add_options, resolve_options


@dataclass(frozen=True)
class Command:
    """run: takes the subcommand's parser, without flags yet, and its arguments; returns the exit code"""

    help: str
    run: Callable[[argparse.ArgumentParser, Sequence[str]], int]


def _parse(options_type: type[Any], parser: argparse.ArgumentParser, argv: Sequence[str]) -> Any:
    """Options from flags, environment and file. Prints one line and exits with 2 where they are wrong."""
    add_options(parser, options_type)
    return _resolve(options_type, parser, parser.parse_args(argv))


def _resolve(options_type: type[Any], parser: argparse.ArgumentParser, args: argparse.Namespace) -> Any:
    try:
        return resolve_options(options_type, args)
    except ValueError as error:
        parser.error(str(error))


def _serve(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    from pagoda.cli.plan import check
    from pagoda.cli.serve import main
    from pagoda.cli.serve_options import ServeOptions

    options: ServeOptions = _parse(ServeOptions, parser, argv)
    try:
        check(options)
    except ValueError as error:
        parser.error(str(error))
    return main(options)


def _gateway(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    from pagoda.gateway.address import Address
    from pagoda.gateway.config import GatewayOptions
    from pagoda.gateway.render import render
    from pagoda.gateway.server import main

    add_options(parser, GatewayOptions)
    parser.add_argument("--print-config", action="store_true", help="Print Envoy's configuration and end.")
    args = parser.parse_args(argv)
    options: GatewayOptions = _resolve(GatewayOptions, parser, args)
    if args.print_config:
        print(render(options, Address.parse(options.admin or "127.0.0.1:9901")), end="")
        return 0
    return main(options)


def _tokenizer(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    from pagoda.checkpoint import resolve_model, served_name
    from pagoda.tokenizer.config import TokenizerOptions

    options: TokenizerOptions = _parse(TokenizerOptions, parser, argv)
    model = str(options.model) if options.model else None
    names = options.served_model_name or (served_name(model),)
    options = replace(options, model=resolve_model(model), served_model_name=names)
    return _main("pagoda.tokenizer.server", options)


def _scheduler(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    from pagoda.scheduler.config import SchedulerOptions

    return _main("pagoda.scheduler.server", _parse(SchedulerOptions, parser, argv))


def _executor(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    from pagoda.checkpoint import resolve_model
    from pagoda.executor.config import ExecutorOptions

    options: ExecutorOptions = _parse(ExecutorOptions, parser, argv)
    return _main("pagoda.executor.server", replace(options, model=str(resolve_model(options.model))))


def _chat(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    from pagoda.cli.chat import ChatOptions, main

    options: ChatOptions = _parse(ChatOptions, parser, argv)
    return main(options)


def _top(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    from pagoda.cli.top import TopOptions, main

    options: TopOptions = _parse(TopOptions, parser, argv)
    return main(options)


# Benchmark -> what its help says, the module and name of its options, and the module that runs it.
_BENCHMARKS = {
    "serve": (
        "send requests to a running server and time the answers",
        ("pagoda.bench.serving.options", "ServeBenchOptions"),
        "pagoda.bench.serving.command",
    ),
    "latency": (
        "time one batch, in this process",
        ("pagoda.bench.offline.options", "LatencyOptions"),
        "pagoda.bench.offline.latency",
    ),
    "throughput": (
        "run many prompts as fast as it goes, in this process",
        ("pagoda.bench.offline.options", "ThroughputOptions"),
        "pagoda.bench.offline.throughput",
    ),
    "scheduler": (
        "run the scheduler against simulated executors",
        ("pagoda.bench.scheduler.options", "SimulationOptions"),
        "pagoda.bench.scheduler.command",
    ),
}


def _bench(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    subparsers = parser.add_subparsers(dest="benchmark", required=True)
    canary = subparsers.add_parser("canary", help="ask questions whose answers can be checked")
    parsers = {name: subparsers.add_parser(name, help=text) for name, (text, _, _) in _BENCHMARKS.items()}
    chosen = argv[0] if argv else ""
    if chosen == "canary":
        module = import_module("pagoda.bench.canary")
        module.add_arguments(canary)
        return int(module.main(parser.parse_args(argv)))
    if chosen not in _BENCHMARKS:
        # Help, or what is wrong.
        parser.parse_args(argv)
    _, (options_module, options_name), main_module = _BENCHMARKS[chosen]
    options_type = getattr(import_module(options_module), options_name)
    add_options(parsers[chosen], options_type)
    return _main(main_module, _resolve(options_type, parsers[chosen], parser.parse_args(argv)))


def _main(module: str, options: Any) -> int:
    with collector_paused():
        main = import_module(module).main
    return int(main(options))


COMMANDS = {
    "serve": Command("Run the whole stack on this machine.", _serve),
    "chat": Command("Talk to a server in the terminal.", _chat),
    "top": Command("Watch a scheduler in the terminal: executors, queues, KV blocks, step times.", _top),
    "bench": Command("Measure a server, the model, or the scheduler against simulated executors.", _bench),
    "gateway": Command("Run the gateway: HTTP, SSE and gRPC on one port (Envoy).", _gateway),
    "tokenizer": Command("Run a tokenizer service: text, chat templates, the OpenAI API.", _tokenizer),
    "scheduler": Command("Run a scheduler service: batches, KV blocks, requests.", _scheduler),
    "executor": Command("Run an executor: the model on a GPU or CPU.", _executor),
}
