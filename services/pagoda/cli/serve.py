"""`pagoda serve`: the whole stack on one machine, as the processes that a cluster would run.

The processes talk over unix sockets in a private folder; the gateway's port is the only one.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from pagoda.checkpoint import resolve_model
from pagoda.children import private_folder
from pagoda.cli.plan import gateway_url, model_names, plan
from pagoda.cli.serve_options import ServeOptions
from pagoda.cli.supervisor import ServiceFailedError, Supervisor
from pagoda.gateway.address import check_port
from pagoda.gateway.config import GatewayOptions
from pagoda.logs import configure_logging
from pagoda.signals import stop_event


def main(options: ServeOptions) -> int:
    """Runs until SIGINT or SIGTERM. 0 after an orderly stop, 1 if the services of a kind cannot start."""
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
