"""A checkpoint folder on disk: which tensors its safetensors files hold, and their content, memory-mapped.

Knows nothing of models: what tensors there should be is `models/weights.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pagoda.executor.models.json_config import JsonConfig

T = TypeVar("T")
Shape = tuple[int, ...]

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Keys of config.json that say who wrote it, not what the model is.
_PROVENANCE_KEYS = {"_name_or_path", "transformers_version"}
# As the files' headers name them. Others, of quantized weights, mean nothing without their scales.
_FLOATS = ("F64", "F32", "F16", "BF16")
# Most tensors that an error names one by one.
_MAX_NAMED = 5


@dataclass(frozen=True)
class TensorInfo:
    """What a file's header says about one tensor."""

    file: Path
    dtype: str
    shape: Shape


class Checkpoint:
    """The safetensors files of one folder, single or sharded."""

    def __init__(self, folder: Path) -> None:
        """Reads headers only. Raises ValueError, naming the file, for files that are missing or corrupt."""
        self.folder = folder
        self._files: dict[Path, Any] = {}  # safe_open handles have no type
        self.tensors: dict[str, TensorInfo] = {}
        weight_map = _read_weight_map(folder)
        for path in dict.fromkeys(weight_map.values()) if weight_map else [folder / _SINGLE]:
            handle: Any = _read(path, partial(safe_open, path, framework="pt"))
            self._files[path] = handle
            for name in handle.keys():  # noqa: SIM118 (a handle is no mapping)
                header = handle.get_slice(name)
                self.tensors[name] = TensorInfo(path, header.get_dtype(), tuple(header.get_shape()))
        for name, path in weight_map.items():
            if name not in self.tensors:
                raise ValueError(f"{folder / _INDEX} places tensor {name} in {path.name}, which does not hold it")

    def tensor(self, name: str) -> Tensor:
        """The content of a tensor that is in `tensors`, as a view of its file on the CPU."""
        path = self.tensors[name].file
        tensor: Tensor = _read(path, partial(self._files[path].get_tensor, name))
        return tensor

    def check(self, expected: Mapping[str, Shape], ignored: Callable[[str], bool]) -> None:
        """Compares what there is with what a model needs.

        ignored: whether a tensor may be there without being needed

        Raises ValueError naming the tensors that are missing, not expected, of another shape or not of floats.
        """
        problems = [f"tensor {name} {list(expected[name])} is missing" for name in expected if name not in self.tensors]
        for name, info in self.tensors.items():
            if name in expected and info.shape != expected[name]:
                problems.append(
                    f"{info.file.name}: tensor {name} has shape {list(info.shape)}, expected {list(expected[name])}"
                )
            elif name in expected and info.dtype not in _FLOATS:
                problems.append(f"{info.file.name}: tensor {name} is of {info.dtype}, not of {', '.join(_FLOATS)}")
            elif name not in expected and not ignored(name):
                problems.append(f"{info.file.name}: tensor {name} {list(info.shape)} is not part of the model")
        if problems:
            more = f"; and {len(problems) - _MAX_NAMED} more" if len(problems) > _MAX_NAMED else ""
            raise ValueError(
                f"the weights in {self.folder} do not fit its config.json: {'; '.join(problems[:_MAX_NAMED])}{more}"
            )

    def description(self) -> list[Any]:
        """Names, dtypes, shapes and file sizes: what identifies the weights without reading them."""
        tensors = [[name, info.dtype, list(info.shape)] for name, info in sorted(self.tensors.items())]
        return [tensors, sorted(path.stat().st_size for path in self._files)]


def fingerprint(config: JsonConfig, weights: list[Any]) -> str:
    """32 hex digits that executors of one model share. weights: see `Checkpoint.description`."""
    identity = {key: value for key, value in config.values.items() if key not in _PROVENANCE_KEYS}
    content = json.dumps([identity, weights], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _read_weight_map(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, of a sharded checkpoint; empty for a single file."""
    if (folder / _SINGLE).exists():
        return {}
    if not (folder / _INDEX).exists():
        raise ValueError(f"{folder} has neither {_SINGLE} nor {_INDEX}; only safetensors checkpoints can be loaded")
    index = JsonConfig.read(folder / _INDEX)
    section = index.section("weight_map")
    if section is None or not all(isinstance(file, str) for file in section.values.values()):
        raise index.wrong("weight_map", "an object of file names")
    # Path.name: a checkpoint may not point outside its folder.
    return {name: folder / Path(file).name for name, file in section.values.items()}


def _read(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except SafetensorError as error:
        raise ValueError(f"{path} is not a valid safetensors file (truncated download?): {error}") from error
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
