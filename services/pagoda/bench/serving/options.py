"""Options of `pagoda bench serve`. A name that `vllm bench serve` has means the same here."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagoda.bench.dataset import DatasetOptions
from pagoda.bench.serving.connections import Connections
from pagoda.bench.serving.report import GOODPUT_METRICS, METRICS
from pagoda.options import option

_ENDPOINTS = {"openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}


@dataclass(frozen=True)
class ServerOptions:
    backend: str = option(
        "openai", "openai: completions, prompts as token ids; openai-chat: prompts as text.", choices=tuple(_ENDPOINTS)
    )
    base_url: str | None = option(None, "The server, if not http://HOST:PORT.", metavar="URL")
    host: str = option("127.0.0.1", "The server's host.")
    port: int = option(8000, "The server's port.")
    endpoint: str | None = option(None, "Path to post to; the backend's if not given.", metavar="PATH")
    header: tuple[str, ...] = option((), "Headers of every request.", metavar="KEY=VALUE")
    api_key: str | None = option(None, "Key for servers that want one; $OPENAI_API_KEY if not given.", metavar="KEY")
    insecure: bool = option(False, "Accept any certificate.")
    model: str | None = option(None, "Model to ask for; the server's first one if not given.")
    vocab_size: int = option(1000, "Random token ids are drawn below this. Every model has as many.")

    @property
    def url(self) -> str:
        return self.base_url or f"http://{self.host}:{self.port}"

    @property
    def path(self) -> str:
        return self.endpoint or _ENDPOINTS[self.backend]

    @property
    def headers(self) -> dict[str, str]:
        """Raises ValueError for what is not KEY=VALUE."""
        key = self.api_key or os.environ.get("OPENAI_API_KEY")
        return ({"authorization": f"Bearer {key}"} if key else {}) | _pairs("header", self.header, "=")


@dataclass(frozen=True)
class RequestOptions:
    ignore_eos: bool = option(False, "Generate as many tokens as wanted, whatever they are.")
    temperature: float | None = option(None, "Sampling; the server's default if not given, as for the others.")
    top_p: float | None = option(None, "Sampling.")
    top_k: int | None = option(None, "Sampling.")
    min_p: float | None = option(None, "Sampling.")
    frequency_penalty: float | None = option(None, "Sampling.")
    presence_penalty: float | None = option(None, "Sampling.")
    repetition_penalty: float | None = option(None, "Sampling.")
    extra_body: str | None = option(None, "More fields of every request.", metavar="JSON")
    request_timeout_s: float | None = option(None, "A request that has not ended after this many seconds has failed.")

    @property
    def parameters(self) -> dict[str, Any]:
        """Raises ValueError for an extra_body that is no JSON object."""
        names = ("temperature top_p top_k min_p frequency_penalty presence_penalty repetition_penalty").split()
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.ignore_eos:
            given["ignore_eos"] = True
        return given | self._extra

    @property
    def _extra(self) -> dict[str, Any]:
        if self.extra_body is None:
            return {}
        try:
            extra = json.loads(self.extra_body)
        except ValueError as error:
            raise ValueError(f"extra_body is no JSON: {error}") from None
        if not isinstance(extra, dict):
            raise ValueError("extra_body must be a JSON object")
        return extra


@dataclass(frozen=True)
class LoadOptions:
    request_rate: float = option(float("inf"), "Requests per second; inf sends all at once.")
    burstiness: float = option(
        1.0, "Shape of the gamma distribution of the gaps between requests: 1 is Poisson, less comes in bursts."
    )
    max_concurrency: int | None = option(None, "Most requests under way at once; others wait at the client.")
    num_warmups: int = option(0, "Requests, of the same kind but others, to send before the time counts.")
    ready_check_timeout_sec: int = option(0, "Seconds to wait until the server answers a request; 0: do not check.")


@dataclass(frozen=True)
class ResultOptions:
    percentile_metrics: str = option(",".join(METRICS), "Metrics whose statistics are shown, of ttft, tpot, itl, e2el.")
    metric_percentiles: str = option("99", 'Percentiles of them, as in "50,90,99".')
    goodput: tuple[str, ...] = option(
        (), "Bounds that a good request keeps, in ms, of ttft, tpot, e2el.", metavar="METRIC:MS"
    )
    label: str | None = option(None, "First part of the result file's name; the backend if not given.")
    metadata: tuple[str, ...] = option((), "More to keep with the result.", metavar="KEY=VALUE")
    save_result: bool = option(False, "Write the result as JSON to --result-dir.")
    save_detailed: bool = option(False, "Write every request's times and errors, too.")
    result_dir: Path | None = option(None, "Folder for the result; the current one if not given.", metavar="FOLDER")
    result_filename: str | None = option(
        None, "Name of the result file; made of label, rate, model and time if not given.", metavar="NAME"
    )
    json: Path | None = option(None, "Write the result as JSON to this file.", metavar="FILE")

    @property
    def metrics(self) -> list[str]:
        """Raises ValueError for a name that is none."""
        names = self.percentile_metrics.split(",")
        if unknown := [name for name in names if name not in METRICS]:
            raise ValueError(f"percentile_metrics: {unknown[0]!r} is none of {', '.join(METRICS)}")
        return names

    @property
    def percents(self) -> list[float]:
        """Raises ValueError for what is no percentile."""
        try:
            percents = [float(text) for text in self.metric_percentiles.split(",")]
        except ValueError:
            raise ValueError(f"metric_percentiles: {self.metric_percentiles!r} is no list of numbers") from None
        if not all(0 <= percent <= 100 for percent in percents):
            raise ValueError(f"metric_percentiles: {self.metric_percentiles!r} must be from 0 to 100")
        return percents

    @property
    def goodput_ms(self) -> dict[str, float]:
        """Raises ValueError for what is no bound of a metric."""
        bounds = {}
        for name, text in _pairs("goodput", self.goodput, ":").items():
            if name not in GOODPUT_METRICS:
                raise ValueError(f"goodput: {name!r} is none of {', '.join(GOODPUT_METRICS)}")
            try:
                bounds[name] = float(text)
            except ValueError:
                raise ValueError(f"goodput: {text!r} is no number of milliseconds") from None
            if not bounds[name] >= 0:
                raise ValueError(f"goodput: the bound of {name} is {text}; it must not be negative")
        return bounds

    @property
    def metadata_fields(self) -> dict[str, str]:
        """Raises ValueError for what is not KEY=VALUE."""
        return _pairs("metadata", self.metadata, "=")


@dataclass(frozen=True)
class ServeBenchOptions(ResultOptions, LoadOptions, RequestOptions, ServerOptions, DatasetOptions):
    """Raises ValueError for values that cannot be meant."""

    def __post_init__(self) -> None:
        self.check_dataset()
        # Each raises for what it cannot read.
        _ = (self.headers, self.parameters, self.metrics, self.percents, self.goodput_ms, self.metadata_fields)
        Connections(self.url)
        if not self.path.startswith("/"):
            raise ValueError(f"endpoint is {self.path!r}; it must begin with /")
        for name in ("request_rate", "burstiness", "request_timeout_s"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be more than 0")
        for name, bound in (("vocab_size", 1), ("max_concurrency", 1), ("num_warmups", 0)):
            if (count := getattr(self, name)) is not None and count < bound:
                raise ValueError(f"{name} is {count}; it must be at least {bound}")


def _pairs(name: str, texts: tuple[str, ...], separator: str) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, found, value = text.partition(separator)
        if not found or not key:
            raise ValueError(f"{name}: {text!r} is not KEY{separator}VALUE")
        pairs[key] = value
    return pairs
