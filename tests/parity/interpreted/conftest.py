"""The GPU's kernels in Triton's interpreter, which a process has from its start or not at all.

`tests/test_interpreted.py` runs these tests in a process of their own; others pass them over.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]

# runner_pair stands there.
sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "executor"))
