"""Memory in huge pages, where the kernel gives them."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from pagoda.executor import huge_pages

_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MIB = 1 << 20


def huge_kib() -> int:
    """Of this process's private memory."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages:"))


def test_private_memory_is_in_huge_pages() -> None:
    if not _ENABLED.exists() or "[never]" in _ENABLED.read_text():
        pytest.skip("the kernel gives none")
    before = huge_kib()
    memory = huge_pages.private_memory(64 * _MIB)
    assert memory[:100] == bytes(100)
    for offset in range(0, len(memory), mmap.PAGESIZE):
        memory[offset] = 1
    # The first and the last may be small, and a machine may have few that are free.
    assert huge_kib() - before >= 8 * 1024


def test_a_kernel_that_gives_none_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345)
    assert len(huge_pages.private_memory(_MIB)) == _MIB


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("always within_size advise [never] deny force", False),
        ("always within_size advise never [deny] force", False),
        ("always within_size [advise] never deny force", True),
        ("[always] within_size advise never deny force", True),
        (None, False),
    ],
)
def test_what_the_kernel_says_of_shared_memory(
    setting: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "shmem_enabled"
    if setting is not None:
        file.write_text(setting + "\n")
    monkeypatch.setattr(huge_pages, "_SHARED", file)
    assert huge_pages.shared_can_be_huge() is expected
