"""The bundled model answers its own questions through the whole stack: a wrong KV block would be a wrong answer."""

from __future__ import annotations

import subprocess
import sys

from stack_fixtures import Serve, Server

SAMPLES = 20
# With nothing cached, every prompt is for the prefill executor.
POOLS = ("--prefill-executors", "1", "--decode-executors", "1", "--max-local-prefill-tokens", "0")


def assert_every_target_is_met(server: Server) -> None:
    command = [sys.executable, "-m", "pagoda.cli.main", "bench", "canary"]
    done = subprocess.run(
        [*command, "--url", server.base_url, "--samples", str(SAMPLES)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_target_is_met(server: Server) -> None:
    assert_every_target_is_met(server)


def test_every_target_is_met_through_pools(serve: Serve) -> None:
    server = serve(*POOLS).wait_until_ready()
    assert_every_target_is_met(server)
    server.assert_idle()
    state = server.state()
    # All but those for which the prefill executor has too much to do.
    assert state.remote_prefills > state.requests_finished / 2
    assert state.moved_blocks > state.moves_done > 0
    # An answer of one token has ended before it could move.
    assert state.moves_done + state.move_failures["ended"] == state.moves_begun >= state.remote_prefills
