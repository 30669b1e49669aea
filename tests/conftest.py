"""For all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    # Under nohup it is ignored, which children would inherit, and tests send it to them.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
