"""Generates gen/ from protos/: messages, stubs, types, and the descriptor set that the gateway transcodes by.

    python protos/generate.py            # write gen/
    python protos/generate.py --check    # write nothing; fail if gen/ is not what would be written

Also lints the protos with buf (`--lint`), over the descriptor set, so that no registry is needed to
resolve googleapis: its protos come with the googleapis-common-protos package.
"""

from __future__ import annotations

import argparse
import filecmp
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GEN = ROOT / "gen"
DESCRIPTORS = Path("pagoda/v1/descriptors.binpb")


def googleapis_path() -> Path:
    """The folder that holds google/api/annotations.proto."""
    spec = importlib.util.find_spec("google.api")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("googleapis-common-protos is not installed; run `make venv`")
    return Path(next(iter(spec.submodule_search_locations))).parent.parent


def include_options() -> list[str]:
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    return [f"-I{PROTOS}", f"-I{googleapis_path()}", f"-I{well_known}"]


def run_protoc(*options: str) -> None:
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    if protoc.main(["protoc", *include_options(), *options, *sources]) != 0:
        raise SystemExit(1)


def generate(out: Path) -> None:
    (out / DESCRIPTORS).parent.mkdir(parents=True, exist_ok=True)
    run_protoc(f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}")
    run_protoc("--include_imports", f"--descriptor_set_out={out / DESCRIPTORS}")


def stale_files(fresh: Path) -> list[str]:
    """Paths, relative to gen/, that differ from what `fresh` holds or stand on one side only."""
    names = {
        str(path.relative_to(root))
        for root in (fresh, GEN)
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    _, differing, missing = filecmp.cmpfiles(fresh, GEN, sorted(names), shallow=False)
    return sorted(differing + missing)


def lint() -> int:
    """Runs buf over the protos; the rules are in buf.yaml."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        run_protoc("--include_imports", "--include_source_info", f"--descriptor_set_out={image}")
        buf = Path(sysconfig.get_path("scripts")) / "buf"
        return subprocess.run([buf, "lint", image, "--config", PROTOS / "buf.yaml"], check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if gen/ is not current")
    parser.add_argument("--lint", action="store_true", help="lint the protos instead")
    args = parser.parse_args()
    if args.lint:
        return lint()
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        stale = stale_files(fresh)
        if args.check:
            for name in stale:
                print(f"gen/{name} is not what protos/ generates; run `make gen`", file=sys.stderr)
            return 1 if stale else 0
        shutil.rmtree(GEN / "pagoda", ignore_errors=True)
        shutil.copytree(fresh, GEN, dirs_exist_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
