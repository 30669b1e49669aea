"""Options that would open an unprotected port or cannot work together are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pagoda.scheduler.config import SchedulerOptions


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://127.0.0.1:*", "tcp://127.0.0.1:5555", "tcp://localhost:5555", "tcp://[::1]:5555", "ipc:///run/x"],
)
def test_endpoints_of_this_host_are_accepted(endpoint: str) -> None:
    SchedulerOptions(executor_endpoint=endpoint, tokenizer_endpoint=endpoint)


@pytest.mark.parametrize("endpoint", ["tcp://10.0.0.1:5555", "tcp://host:*"])
@pytest.mark.parametrize("name", ["executor_endpoint", "tokenizer_endpoint"])
def test_endpoints_that_others_could_reach_are_refused(name: str, endpoint: str) -> None:
    options: Any = {name: endpoint}
    with pytest.raises(ValueError, match=f"{name} .* without authentication"):
        SchedulerOptions(**options)
    SchedulerOptions(**options, cell_key_file=Path("cell.key"))


@pytest.mark.parametrize("endpoint", ["tcp://*:5555", "tcp://0.0.0.0:*", "tcp://[::]:5555"])
def test_endpoints_that_nobody_could_connect_to_are_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="no address that a peer could connect to"):
        SchedulerOptions(executor_endpoint=endpoint, cell_key_file=Path("cell.key"))


@pytest.mark.parametrize(
    "options",
    [
        {"executor_endpoint": "inproc://x"},
        {"executor_endpoint": "127.0.0.1:5555"},
        {"max_num_waiting": 0},
        {"max_plans_in_flight": -1},
        {"inter_token_target_ms": -1.0},
        {"tie_window_s": -1.0},
        {"heartbeat_interval_s": 0.0},
        {"heartbeat_timeout_s": 0.5},
        {"no_executor_timeout_s": 0.0},
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name):
        SchedulerOptions(**options)


def test_options_of_a_policy_that_is_not_chosen_are_refused() -> None:
    with pytest.raises(ValueError, match="fair"):
        SchedulerOptions(client_weights="a=2")
    with pytest.raises(ValueError, match="tie_window_s"):
        SchedulerOptions(scheduling_policy="fair", tie_window_s=1.0)
    SchedulerOptions(scheduling_policy="fair", client_weights="a=2")
