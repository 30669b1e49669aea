"""Records steps with the torch profiler."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pagoda.errors import FailedPreconditionError


class Profiler:
    """At most one recording at a time. Both methods must be called in the thread that runs the steps."""

    def __init__(self) -> None:
        self._profile: Any = None  # torch is not loaded yet

    def start(self) -> None:
        """Raises FailedPreconditionError when a recording is on."""
        import torch.profiler

        if self._profile is not None:
            raise FailedPreconditionError("a profile is being recorded; stop it first", reason="PROFILE_RUNNING")
        self._profile = torch.profiler.profile()
        self._profile.start()

    def stop(self) -> Path:
        """Writes the trace (Chrome's format) to a new folder. Raises FailedPreconditionError without a recording."""
        if self._profile is None:
            raise FailedPreconditionError("no profile is being recorded; start one first", reason="NO_PROFILE")
        profile, self._profile = self._profile, None
        profile.stop()
        folder = Path(tempfile.mkdtemp(prefix="pagoda-profile-"))
        profile.export_chrome_trace(str(folder / "trace.json"))
        return folder
