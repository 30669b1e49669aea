"""The bundled model answers its own questions through the whole stack: a wrong KV block would be a wrong answer."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

SAMPLES = 20


def test_every_target_is_met(server: Any) -> None:
    command = [sys.executable, "-m", "pagoda.cli.main", "bench", "canary"]
    done = subprocess.run(
        [*command, "--url", server.base_url, "--samples", str(SAMPLES)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
