"""The house rules that imports must keep: who may know whom, and what hides what."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ROOT / "services" / "pagoda"
SOURCE_ROOTS = [ROOT / "services", ROOT / "kernels", ROOT / "gen"]

TRANSPORTS = ("grpc", "zmq", "google.protobuf", "pagoda.v1", "pagoda.rpc")

# room -> modules that nothing below it may import
FORBIDDEN = {
    SERVICES / "text": (
        *TRANSPORTS,
        "torch",
        "transformers",
        "pagoda.tokenizer",
        "pagoda.scheduler",
        "pagoda.executor",
    ),
    SERVICES / "scheduler" / "core": (*TRANSPORTS, "torch", "asyncio", "pagoda.text"),
    SERVICES / "scheduler": ("torch", "tokenizers", "pagoda.text", "pagoda.tokenizer", "pagoda.executor"),
    SERVICES / "tokenizer": ("torch", "transformers", "pagoda.scheduler", "pagoda.executor"),
    SERVICES / "executor": ("transformers", "tokenizers", "pagoda.text", "pagoda.tokenizer", "pagoda.scheduler"),
    SERVICES / "gateway": ("torch", "pagoda.text", "pagoda.tokenizer", "pagoda.scheduler", "pagoda.executor"),
    ROOT / "kernels": (*TRANSPORTS, "pagoda.executor", "pagoda.text"),
}


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", FORBIDDEN, ids=lambda room: str(room.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may_know(room: Path) -> None:
    files = list(room.rglob("*.py"))
    assert files
    found = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files
        for module in imported_modules(path)
        for banned in FORBIDDEN[room]
        if module == banned or module.startswith(f"{banned}.")
    ]
    assert found == []


@pytest.mark.parametrize("root", SOURCE_ROOTS, ids=lambda root: root.name)
def test_pagoda_stays_a_namespace_package(root: Path) -> None:
    """An __init__.py in one root would hide the packages of the others."""
    assert not (root / "pagoda" / "__init__.py").exists()


@pytest.mark.parametrize("module", ["pagoda.tokenizer.server", "pagoda.scheduler.server", "pagoda.cli.main"])
def test_processes_without_tensors_do_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_generated_code_is_current() -> None:
    check = subprocess.run([sys.executable, ROOT / "protos" / "generate.py", "--check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr
