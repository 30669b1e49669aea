"""Flags beat the environment, the environment beats the file, the file beats defaults."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest

from pagoda.options import add_options, option, resolve_options, same_option, shared_options, to_flags


@dataclass(frozen=True)
class Options:
    model: str | None = option(None, "Checkpoint folder.", positional=True)
    block_size: int = option(16, "Tokens per KV block.")
    share: float = option(0.9, "Share of memory, in (0, 1].")
    enable_cache: bool = option(True, "Reuse prefixes.")
    dtype: str = option("auto", "Weights' type.", choices=["auto", "float32"])
    chat_template: Path | None = option(None, "Template file.")
    api_key: tuple[str, ...] = option((), "Accepted keys.")


def resolve(*flags: str, environ: dict[str, str] | None = None) -> Options:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, Options)
    return resolve_options(Options, parser.parse_args(list(flags)), environ or {})


def test_defaults() -> None:
    assert resolve() == Options()


def test_flags() -> None:
    options = resolve("/m", "--block-size", "32", "--no-enable-cache", "--api-key", "a", "b", "--api-key", "c")
    assert options == Options(model="/m", block_size=32, enable_cache=False, api_key=("a", "b", "c"))


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("block-size: 8\nshare: 0.5\ndtype: float32\napi_key: [x, y]\n")
    options = resolve(
        "--config", str(file), "--block-size", "64", environ={"PAGODA_BLOCK_SIZE": "32", "PAGODA_SHARE": "0.7"}
    )
    assert options == Options(block_size=64, share=0.7, dtype="float32", api_key=("x", "y"))


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"PAGODA_BLOCK_SIZE": "many"}, "PAGODA_BLOCK_SIZE: 'many' is not a valid int"),
        ({"PAGODA_ENABLE_CACHE": "perhaps"}, "neither true nor false"),
        ({"PAGODA_DTYPE": "int3"}, "PAGODA_DTYPE: 'int3' is none of auto, float32"),
    ],
)
def test_bad_environment_names_the_variable(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(environ=environ)


def test_unknown_names_in_the_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("blok-size: 8\n")
    with pytest.raises(ValueError, match="unknown options: blok-size"):
        resolve("--config", str(file))


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the configuration file .*missing\.yaml"):
        resolve("--config", str(tmp_path / "missing.yaml"))


def test_flags_reproduce_the_options() -> None:
    options = Options(model="/m", block_size=32, enable_cache=False, chat_template=Path("t.jinja"), api_key=("a", "b"))
    assert resolve(*to_flags(options)) == options


@dataclass(frozen=True)
class Others:
    block_size: int = same_option(Options, "block_size")
    dtype: str = same_option(Options, "dtype", default="float32")
    own: int = option(1, "Nobody else has it.")


def test_the_same_option_of_another_class() -> None:
    ours = {field.name: field for field in dataclasses.fields(Options)}
    others = {field.name: field for field in dataclasses.fields(Others)}
    assert (others["block_size"].default, others["dtype"].default) == (16, "float32")
    for name in ("block_size", "dtype"):
        assert others[name].metadata == ours[name].metadata


def test_options_in_common() -> None:
    given = Others(block_size=8, own=5)
    assert shared_options(Options, given, model="/m") == Options(model="/m", block_size=8, dtype="float32")
    assert shared_options(Options, given, block_size=4).block_size == 4
