"""The names the served model goes by."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from pagoda.errors import NotFoundError


@dataclass(frozen=True, slots=True)
class ServedModel:
    """
    names: at least one; the first is the one that answers bear when the request names none
    root: the checkpoint folder's name
    created: when this service started, in seconds since 1970
    """

    names: Sequence[str]
    root: str
    created: int = field(default_factory=lambda: int(time.time()))

    def resolve(self, name: str | None) -> str:
        """The name to answer with; NotFoundError for one that is not served. None and "" ask for the model there is."""
        if not name:
            return self.names[0]
        if name not in self.names:
            raise NotFoundError(
                f"The model `{name[:256]}` does not exist. This server has: {', '.join(self.names)}.",
                reason="MODEL_NOT_FOUND",
                param="model",
            )
        return name
