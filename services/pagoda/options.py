"""Options of a service: one frozen dataclass, filled from flags > environment > file > defaults.

    @dataclass(frozen=True)
    class ExecutorOptions:
        block_size: int = option(16, "Tokens per KV block.")

gives `--block-size`, `PAGODA_BLOCK_SIZE`, and `block-size: 16` in the file named by `--config`. Supported field
types: str, int, float, bool, Path, `X | None` of these, and tuple[str, ...] (a flag that takes several values
and may be repeated). A bool gives `--name` and `--no-name`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    positional: bool = False,
    metavar: str = "",
) -> Any:
    """A dataclass field that is an option. `help` names the unit."""
    metadata = {"help": help, "choices": choices, "positional": positional, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


def same_option(options: type[Any], name: str, *, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field like the option `name` of `options`: the same help, choices and, unless given, default."""
    (field,) = [each for each in dataclasses.fields(options) if each.name == name]
    return dataclasses.field(
        default=field.default if default is dataclasses.MISSING else default, metadata=field.metadata
    )


def shared_options(options: type[T], given: Any, **own: Any) -> T:
    """An `options` of the fields that it has in common with the options `given`, and of `own`."""
    names = {field.name for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    shared = {field.name: getattr(given, field.name) for field in dataclasses.fields(given) if field.name in names}
    return options(**(shared | own))


def add_options(parser: argparse.ArgumentParser, options: type[Any]) -> None:
    """Adds a flag per field of `options`, and `--config`. A flag that is not given leaves room for the environment."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with options by their flag names")
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        _add_flag(parser, field, hints[field.name])


def resolve_options(options: type[T], args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> T:
    """Builds `options` from parsed flags, the environment and the configuration file.

    Raises ValueError, naming the source and the option, for values that do not parse and for unknown
    names in the file.
    """
    hints = typing.get_type_hints(options)
    fields = dataclasses.fields(options)  # type: ignore[arg-type]
    from_file = _read_file(args.config, {_flag(field.name) for field in fields}) if args.config else {}
    values: dict[str, Any] = {}
    for field in fields:
        given = getattr(args, field.name, None)
        variable = f"PAGODA_{field.name.upper()}"
        if given is not None:
            values[field.name] = tuple(given) if isinstance(given, list) else given
        elif variable in environ:
            values[field.name] = _parse(environ[variable], field, hints[field.name], f"environment variable {variable}")
        elif _flag(field.name) in from_file:
            source = f"{args.config}: {_flag(field.name)}"
            values[field.name] = _parse(from_file[_flag(field.name)], field, hints[field.name], source)
    return options(**values)


def to_flags(options: Any) -> list[str]:
    """The command line that reproduces every field of `options` that is not its default."""
    flags: list[str] = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value == field.default:
            continue
        if field.metadata["positional"]:
            flags.append(str(value))
        elif isinstance(value, bool):
            flags.append(f"--{_flag(field.name)}" if value else f"--no-{_flag(field.name)}")
        elif isinstance(value, tuple):
            for item in value:
                flags += [f"--{_flag(field.name)}", str(item)]
        elif value is not None:
            flags += [f"--{_flag(field.name)}", str(value)]
    return flags


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any) -> None:
    scalar, is_list = _scalar_type(hint)
    default = field.default
    text = field.metadata["help"]
    if default not in (None, ()):
        text += f" Default: {' '.join(default) if isinstance(default, tuple) else default}."
    arguments: dict[str, Any] = {"help": text.replace("%", "%%"), "default": None}
    if scalar is bool:
        arguments["action"] = argparse.BooleanOptionalAction
    else:
        arguments["type"] = scalar
        arguments["choices"] = field.metadata["choices"]
        if field.metadata["metavar"]:
            arguments["metavar"] = field.metadata["metavar"]
        if is_list:
            arguments |= {"action": "extend", "nargs": "+"}
    if field.metadata["positional"]:
        parser.add_argument(field.name, nargs="?", **arguments)
    else:
        parser.add_argument(f"--{_flag(field.name)}", dest=field.name, **arguments)


def _scalar_type(hint: Any) -> tuple[type[Any], bool]:
    """(scalar type, whether the option is a list of them) of a field's annotation."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = [each for each in typing.get_args(hint) if each is not types.NoneType]
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return hint, False


def _parse(value: Any, field: dataclasses.Field[Any], hint: Any, source: str) -> Any:
    scalar, is_list = _scalar_type(hint)
    if is_list:
        items = value if isinstance(value, list) else str(value).split(",")
        return tuple(_parse_scalar(item, scalar, source) for item in items)
    parsed = _parse_scalar(value, scalar, source)
    choices = field.metadata["choices"]
    if choices and parsed not in choices:
        raise ValueError(f"{source}: {parsed!r} is none of {', '.join(choices)}")
    return parsed


def _parse_scalar(value: Any, scalar: type[Any], source: str) -> Any:
    text = str(value)
    if scalar is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise ValueError(f"{source}: {text!r} is neither true nor false")
    try:
        return scalar(text)
    except ValueError:
        raise ValueError(f"{source}: {text!r} is not a valid {scalar.__name__}") from None


def _read_file(path: Path, known: set[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the configuration file {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping of option names to values")
    named = {str(name).replace("_", "-"): value for name, value in content.items()}
    if unknown := sorted(set(named) - known):
        raise ValueError(f"{path} has unknown options: {', '.join(unknown)}")
    return named
