"""Options of `pagoda bench scheduler`. A name that `vllm bench serve` or `pagoda serve` has means the same here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pagoda.bench.scheduler.cost import GB, PRESETS, DeviceOptions
from pagoda.bench.scheduler.plot import check_plot
from pagoda.bench.scheduler.report import Objectives
from pagoda.bench.scheduler.simulation import Cluster, Moment
from pagoda.bench.scheduler.workload import WorkloadOptions
from pagoda.errors import PagodaError
from pagoda.options import option, same_option
from pagoda.scheduler.config import SchedulerOptions
from pagoda.scheduler.core.queue import make_policy
from pagoda.scheduler.core.scheduler import CoreOptions
from pagoda.scheduler.core.spec import ExecutorRole, LaneSpec, ModelSpec

_MOMENT = "SECONDS[:COUNT[:ROLE]]"
# As large as that of any model a trace may come from.
VOCAB_SIZE = 1 << 18


@dataclass(frozen=True)
class ClusterOptions:
    cells: int = option(1, "Cells: one scheduler and its executors each.")
    executors_per_cell: int | None = option(
        None,
        "Executors of each cell that do everything, at the start. Default: 1, or none beside those that prefill and "
        "decode.",
    )
    prefill_executors: int = option(0, "Executors of each cell that compute prompts and hand them on.")
    decode_executors: int = option(0, "Executors of each cell that go on with requests handed on to them.")
    routing: str = option(
        "round-robin",
        "How requests are spread over cells: prefix sends what begins alike to the same one.",
        choices=("round-robin", "least-loaded", "prefix"),
    )
    executor_losses: tuple[str, ...] = option(
        (), "When executors die, and which: SECONDS, SECONDS:COUNT or SECONDS:COUNT:ROLE.", metavar=_MOMENT
    )
    executor_joins: tuple[str, ...] = option(
        (), "When executors join the cells that have the fewest, likewise; mixed ones if not said.", metavar=_MOMENT
    )
    transfer_gb_per_s: float = option(10.0, "GB per second of KV blocks that leave an executor, and that reach one.")
    transfer_latency_us: float = option(200.0, "Microseconds besides that blocks are on their way.")
    transport_us: float = option(50.0, "Microseconds a plan or a result is on its way.")
    measure_overhead: bool = option(
        False, "Let the real time of the scheduler's core pass in the simulation, which is then not repeatable."
    )
    sample_interval_s: float = option(0.1, "Seconds between two samples of load, KV use and service.")


@dataclass(frozen=True)
class CellOptions:
    scheduling_policy: str = same_option(SchedulerOptions, "scheduling_policy")
    client_weights: str = same_option(SchedulerOptions, "client_weights")
    tie_window_s: float = same_option(SchedulerOptions, "tie_window_s")
    max_num_waiting: int = same_option(SchedulerOptions, "max_num_waiting")
    enable_prefix_caching: bool = same_option(SchedulerOptions, "enable_prefix_caching")
    max_plans_in_flight: int = same_option(SchedulerOptions, "max_plans_in_flight")
    inter_token_target_ms: float = same_option(SchedulerOptions, "inter_token_target_ms")
    max_local_prefill_tokens: int = same_option(SchedulerOptions, "max_local_prefill_tokens")
    transfer_timeout_s: float = same_option(SchedulerOptions, "transfer_timeout_s")
    block_size: int = option(16, "Tokens per KV block.")
    num_blocks: int | None = option(None, "KV blocks of an executor; the preset's if not given.")
    num_host_blocks: int = option(0, "Blocks of host memory of an executor.")
    swap_only: bool = option(False, "Host memory is for what is preempted, not for every block that is evicted.")
    max_model_len: int | None = option(None, "Longest prompt + completion, in tokens; the preset's if not given.")
    max_num_seqs: int | None = option(None, "Rows of an executor's batch; the preset's if not given.")
    max_num_batched_tokens: int | None = option(None, "Tokens per step; the preset's if not given.")


@dataclass(frozen=True)
class ReportOptions:
    slo_ttft_ms: float | None = option(None, "Goodput counts requests whose first token comes within this time.")
    slo_tpot_ms: float | None = option(None, "... and whose mean time per further token is at most this.")
    slo_itl_ms: float | None = option(None, "... and of whose tokens none comes later than this after the one before.")
    slo_e2el_ms: float | None = option(None, "... and that have ended within this time.")
    json: Path | None = option(None, "Write the report to this file, too.", metavar="FILE")
    plot: Path | None = option(None, "Draw it: latencies, load, KV use, service (svg, png or pdf).", metavar="FILE")


@dataclass(frozen=True)
class SimulationOptions(ReportOptions, CellOptions, DeviceOptions, ClusterOptions, WorkloadOptions):
    """Raises ValueError for values that cannot work together."""

    def __post_init__(self) -> None:
        self.check_workload()
        self.check_device()
        for name in ("cells", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in (
            "executors_per_cell",
            "prefill_executors",
            "decode_executors",
            "transport_us",
            "transfer_latency_us",
            "max_plans_in_flight",
            "max_local_prefill_tokens",
            "inter_token_target_ms",
            "tie_window_s",
        ):
            if not (getattr(self, name) or 0) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("sample_interval_s", "transfer_gb_per_s", "transfer_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0")
        if not self.roles:
            raise ValueError("executors_per_cell is 0; it must be at least 1 where no others are asked for")
        make_policy(
            self.scheduling_policy,
            max_num_waiting=self.max_num_waiting,
            weights=self.client_weights,
            tie_window_s=self.tie_window_s,
        )
        try:
            self.lane.check()
        except PagodaError as error:
            raise ValueError(error.message) from error
        if self.random_prefix_len + 2 > self.lane.model.max_model_len:
            raise ValueError(
                f"random_prefix_len is {self.random_prefix_len}; it leaves no room for a request in max_model_len "
                f"({self.lane.model.max_model_len})"
            )
        _parse_moments("executor_losses", self.executor_losses)
        _parse_moments("executor_joins", self.executor_joins)
        if self.plot:
            check_plot(self.plot)

    @property
    def roles(self) -> tuple[ExecutorRole, ...]:
        """Of the executors of each cell at the start."""
        split = (ExecutorRole.PREFILL,) * self.prefill_executors + (ExecutorRole.DECODE,) * self.decode_executors
        num_mixed = (not split) if self.executors_per_cell is None else self.executors_per_cell
        return (ExecutorRole.MIXED,) * num_mixed + split

    @property
    def lane(self) -> LaneSpec:
        preset, cost = PRESETS[self.preset], self.cost_model
        num_blocks = int(preset.kv_cache_bytes // (cost.kv_bytes_per_token * self.block_size))
        model = ModelSpec("simulated", self.preset, self._or_preset("max_model_len"), VOCAB_SIZE, frozenset(), "none")
        return LaneSpec(
            name="",
            role=ExecutorRole.MIXED,
            model=model,
            block_size=self.block_size,
            num_blocks=num_blocks if self.num_blocks is None else self.num_blocks,
            max_num_seqs=self._or_preset("max_num_seqs"),
            max_num_batched_tokens=self._or_preset("max_num_batched_tokens"),
            receives=True,
            num_host_blocks=self.num_host_blocks,
            swap_only=self.swap_only,
        )

    @property
    def cluster(self) -> Cluster:
        return Cluster(
            num_cells=self.cells,
            roles=self.roles,
            lane=self.lane,
            cost=self.cost_model,
            core=CoreOptions(
                policy=self.scheduling_policy,
                client_weights=self.client_weights,
                tie_window_s=self.tie_window_s,
                max_num_waiting=self.max_num_waiting,
                enable_prefix_caching=self.enable_prefix_caching,
                max_plans_in_flight=self.max_plans_in_flight,
                inter_token_target_s=self.inter_token_target_ms / 1e3,
                max_local_prefill_tokens=self.max_local_prefill_tokens,
                transfer_timeout_s=self.transfer_timeout_s,
            ),
            routing=self.routing,
            transport_s=self.transport_us / 1e6,
            transfer_bandwidth=self.transfer_gb_per_s * GB,
            transfer_latency_s=self.transfer_latency_us / 1e6,
            losses=_parse_moments("executor_losses", self.executor_losses),
            joins=_parse_moments("executor_joins", self.executor_joins),
            measure_overhead=self.measure_overhead,
            seed=self.seed,
            sample_interval_s=self.sample_interval_s,
        )

    @property
    def objectives(self) -> Objectives:
        return Objectives(
            ttft_s=_seconds(self.slo_ttft_ms),
            tpot_s=_seconds(self.slo_tpot_ms),
            itl_s=_seconds(self.slo_itl_ms),
            e2el_s=_seconds(self.slo_e2el_ms),
        )

    def _or_preset(self, name: str) -> int:
        given: int | None = getattr(self, name)
        preset: int = getattr(PRESETS[self.preset], name)
        return preset if given is None else given


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3


def _parse_moments(name: str, texts: tuple[str, ...]) -> tuple[Moment, ...]:
    """Raises ValueError for what is not SECONDS, SECONDS:COUNT or SECONDS:COUNT:ROLE."""
    moments = []
    for text in texts:
        seconds, _, rest = text.partition(":")
        count, _, role = rest.partition(":")
        try:
            moments.append(Moment(float(seconds), int(count or 1), ExecutorRole[role.upper()] if role else None))
        except (KeyError, ValueError):
            raise ValueError(f"{name}: {text!r} is not SECONDS, SECONDS:COUNT or SECONDS:COUNT:ROLE") from None
        if (
            not (moments[-1].time_s >= 0 and moments[-1].num_executors >= 1)
            or moments[-1].role is ExecutorRole.UNSPECIFIED
        ):
            raise ValueError(f"{name}: {text!r} must be a time of at least 0, a count of at least 1, and a role")
    return tuple(moments)
