"""The processes of `pagoda serve` and their command lines."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest

from pagoda.cli.plan import check, gateway_url, plan
from pagoda.cli.serve import greeting
from pagoda.cli.serve_options import ServeOptions
from pagoda.cli.service import Service
from pagoda.executor.config import ExecutorOptions
from pagoda.gateway.config import GatewayOptions
from pagoda.options import add_options, resolve_options
from pagoda.scheduler.config import SchedulerOptions
from pagoda.tokenizer.config import TokenizerOptions

FOLDER, MODEL = Path("/run/pagoda"), Path("/models/some")

KINDS = {
    "gateway": GatewayOptions,
    "tokenizer": TokenizerOptions,
    "executor": ExecutorOptions,
    "scheduler": SchedulerOptions,
}


def services_of(options: ServeOptions) -> dict[str, Service]:
    return {each.name: each for each in plan(options, FOLDER, MODEL)}


def options_of(service: Service) -> Any:
    """What the child will make of its command line and environment."""
    options_type: type[Any] = KINDS[service.kind]
    parser = argparse.ArgumentParser()
    add_options(parser, options_type)
    return resolve_options(options_type, parser.parse_args(service.command[4:]), service.environ)


def test_one_process_of_each_kind_in_the_order_of_stopping() -> None:
    services = services_of(ServeOptions())
    assert list(services) == ["gateway", "tokenizer", "executor", "scheduler"]
    assert all(each.command[1:3] == ("-m", "pagoda.cli.main") for each in services.values())


def test_processes_find_each_other() -> None:
    services = services_of(ServeOptions(tokenizers=2, executors=2))
    options = {name: options_of(each) for name, each in services.items()}
    scheduler = f"unix:{FOLDER}/scheduler.sock"
    assert options["scheduler"].listen == services["scheduler"].address == scheduler
    assert options["scheduler"].executor_endpoint != options["scheduler"].tokenizer_endpoint
    for name in ("tokenizer-0", "tokenizer-1", "executor-0", "executor-1"):
        assert options[name].scheduler == scheduler
        assert options[name].listen == services[name].address == f"unix:{FOLDER}/{name}.sock"
        assert str(options[name].model) == str(MODEL)
        assert options[name].name == name
    assert options["gateway"].tokenizers == tuple(services[f"tokenizer-{i}"].address for i in (0, 1))
    assert services["gateway"].address == "http://127.0.0.1:8000"


def test_options_reach_their_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGODA_PORT", "1")  # read by the supervisor; its children must not read it again
    monkeypatch.setenv("PAGODA_BLOCK_SIZE", "1")
    monkeypatch.setenv("PAGODA_HEARTBEAT_TIMEOUT_S", "3")  # no option of `pagoda serve`: meant for a child
    options = ServeOptions(
        "org/name",
        host="0.0.0.0",
        port=8000,
        block_size=32,
        max_num_seqs=7,
        swap_space=1.5,
        kv_offloading_size=2,
        max_num_waiting=9,
        enable_prefix_caching=False,
        drain_s=3,
        chat_template="{{ messages }}",
        log_level="error",
    )
    children = {name: options_of(each) for name, each in services_of(options).items()}
    assert (children["gateway"].host, children["gateway"].port, children["gateway"].drain_s) == ("0.0.0.0", 8000, 3)
    assert children["tokenizer"].served_model_name == ("org/name",)
    assert children["tokenizer"].chat_template == "{{ messages }}"
    assert (children["executor"].block_size, children["executor"].max_num_seqs) == (32, 7)
    assert (children["executor"].swap_space, children["executor"].kv_offloading_size) == (1.5, 2.0)
    assert (children["scheduler"].max_num_waiting, children["scheduler"].enable_prefix_caching) == (9, False)
    assert children["scheduler"].heartbeat_timeout_s == 3
    assert {each.log_level for each in children.values()} == {"error"}
    assert gateway_url(options) == "http://127.0.0.1:8000"


def test_how_requests_are_scheduled_is_the_schedulers_matter() -> None:
    given: dict[str, Any] = {
        "scheduling_policy": "fair",
        "client_weights": "alice=2,bob=0.5",
        "inter_token_target_ms": 25.0,
        "max_plans_in_flight": 1,
        "kv_events_endpoint": "tcp://127.0.0.1:5557",
    }
    scheduler = options_of(services_of(ServeOptions(**given))["scheduler"])
    assert {name: getattr(scheduler, name) for name in given} == given
    scheduler = options_of(services_of(ServeOptions(scheduling_policy="fcfs", tie_window_s=0.2))["scheduler"])
    assert (scheduler.scheduling_policy, scheduler.tie_window_s) == ("fcfs", 0.2)


def test_keys_are_in_no_command_line() -> None:
    services = services_of(ServeOptions(api_key=("sk-1", "sk-2")))
    assert not any("sk-1" in " ".join(each.command) for each in services.values())
    assert not any("sk-1" in repr(each) for each in services.values())
    assert options_of(services["gateway"]).api_key == ("sk-1", "sk-2")
    assert "PAGODA_API_KEY" not in services["executor"].environ
    assert "sk-1" not in greeting(ServeOptions(api_key=("sk-1",)))


@pytest.mark.parametrize(("num_cpus", "decoding"), [(4, -10), (3, 0)])
def test_prompts_stand_back_and_decoding_goes_first_on_cores_of_its_own(
    num_cpus: int, decoding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_cpus)))
    services = services_of(ServeOptions(prefill_executors=2, decode_executors=1, executors=1))
    niceness = {each.name: each.niceness for each in services.values() if each.kind == "executor"}
    assert niceness == {"prefill-0": 10, "prefill-1": 10, "decode": decoding, "executor": 0}
    assert not any(each.niceness for each in services.values() if each.kind != "executor")


def test_decoding_has_its_cores_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 5, 7, 8, 9})
    services = services_of(ServeOptions(prefill_executors=1, decode_executors=2))
    cpus = {name: options_of(services[name]).cpus for name in ("prefill", "decode-0", "decode-1")}
    assert cpus == {"prefill": "2,3", "decode-0": "5,7", "decode-1": "8,9"}
    assert {each.cpus for each in services.values() if each.kind != "executor"} == {frozenset({2, 3})}
    assert not any(each.cpus for each in services.values() if each.kind == "executor")
    for others in (ServeOptions(executors=2), ServeOptions(prefill_executors=1, decode_executors=9)):
        assert not any(each.cpus for each in services_of(others).values())


def test_executors_share_the_cores() -> None:
    assert options_of(services_of(ServeOptions())["executor"]).threads is None
    assert options_of(services_of(ServeOptions(executors=1000))["executor-0"]).threads == 1
    assert options_of(services_of(ServeOptions(executors=2, threads=5))["executor-1"]).threads == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenizers": 0}, "tokenizers is 0"),
        ({"port": -1}, "port is -1"),
        ({"max_num_waiting": 0}, "max_num_waiting"),
        ({"gpu_memory_utilization": 1.5}, "gpu-memory-utilization"),
        ({"swap_space": -1.0}, "--swap-space is -1.0"),
        ({"kv_offloading_size": float("nan")}, "--kv-offloading-size is nan"),
        ({"run_dir": Path("/" + "x" * 100)}, "too long"),
        ({"scheduling_policy": "lottery"}, "policy must be one of fcfs, priority, fair"),
        ({"client_weights": "alice=2"}, "weights are for the policy fair"),
        ({"scheduling_policy": "fair", "tie_window_s": 1.0}, "tie_window_s is for"),
        ({"max_plans_in_flight": -1}, "max_plans_in_flight must not be negative"),
        ({"inter_token_target_ms": float("nan")}, "inter_token_target_ms must not be negative"),
        ({"kv_events_endpoint": "tcp://0.0.0.0:5557"}, "open to other hosts"),
        ({"kv_events_endpoint": "ipc:///run/kv", "enable_prefix_caching": False}, "needs enable_prefix_caching"),
    ],
)
def test_wrong_options_are_found_before_anything_starts(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(ServeOptions(**fields))
