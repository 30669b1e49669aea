"""A checkpoint's JSON configuration, read with checks: an error names the file and the key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# No size of a model comes near; their products are still numbers of bytes.
_MAX_INTEGER = 2**31 - 1


class JsonConfig:
    """A JSON object with typed access. `null` reads as absent, but is not replaced by `with_defaults`."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        """source: what messages call it, for example the file's path."""
        self.values = values
        self.source = source

    @classmethod
    def read(cls, path: Path) -> JsonConfig:
        """Raises ValueError when the file is missing or holds no JSON object."""
        try:
            values = json.loads(path.read_text())
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold a JSON object")
        return cls(values, str(path))

    def with_defaults(self, defaults: Mapping[str, Any]) -> JsonConfig:
        """The same, with `defaults` for keys that are not there."""
        return JsonConfig({**defaults, **self.values}, self.source)

    def section(self, key: str) -> JsonConfig | None:
        """The object at `key`, or None."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return JsonConfig(value, f"{self.source}: {key}")

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer of 31 bits. Raises ValueError when it is absent and there is no default."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_INTEGER:
            raise self.wrong(key, f"an integer between 1 and {_MAX_INTEGER}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number. Raises ValueError when it is absent and there is no default."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.wrong(key, "a positive number")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A positive number or None."""
        return self.number(key) if key in self else None

    def flag(self, key: str, default: bool = False) -> bool:
        """A boolean."""
        value = self.values[key] if key in self else default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string. Raises ValueError when it is absent and there is no default."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers. Raises ValueError when it is absent."""
        value = self._get(key, None)
        if not isinstance(value, list) or not all(isinstance(each, int | float) for each in value):
            raise self.wrong(key, "a list of numbers")
        return tuple(float(each) for each in value)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One token id or a list of them; empty when absent."""
        value = self.values[key] if key in self else []
        ids = value if isinstance(value, list) else [value]
        if not all(type(each) is int and 0 <= each <= _MAX_INTEGER for each in ids):
            raise self.wrong(key, "a token id or a list of them")
        return tuple(ids)

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty when absent."""
        value = self.values[key] if key in self else []
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.wrong(key, "a list of strings")
        return tuple(value)

    def wrong(self, key: str, expected: str) -> ValueError:
        """The error for a value that is not what it must be."""
        return ValueError(f"{self.source}: {key} must be {expected}, not {self.values.get(key)!r}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values[key] if key in self else default
        if value is None:
            raise ValueError(f"{self.source}: {key} is missing")
        return value
