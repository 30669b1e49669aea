"""The pods of deploy/kubernetes as processes of this machine: started, probed and restarted as a kubelet does it.

Each pod has a loopback address of its own. Names of services, which a cluster's DNS resolves, and paths that volumes
are mounted at are put into the command line before it starts.
"""

from __future__ import annotations

import itertools
import re
import signal
import socket
import threading
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from processes import PagodaProcess, poll

from pagoda.rpc.channel import open_blocking_channel

MANIFESTS = Path(__file__).parents[2] / "deploy" / "kubernetes"
START_TIMEOUT_S = 60.0
_WATCH_INTERVAL_S = 0.05
_PROBE_TIMEOUT_S = 5.0

Manifest = dict[str, Any]


def manifests() -> list[Manifest]:
    """Every object that `kubectl apply -k` makes."""
    resources = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())["resources"]
    return [each for name in resources for each in yaml.safe_load_all((MANIFESTS / name).read_text())]


class Pod:
    """One container, on an address of its own."""

    def __init__(self, name: str, address: str, template: Manifest) -> None:
        (self.container,) = template["spec"]["containers"]
        self.name, self.address = name, address
        self.grace_s = template["spec"].get("terminationGracePeriodSeconds", 30)
        self.process: PagodaProcess | None = None
        self.num_restarts = 0

    def variables(self) -> dict[str, str]:
        """Those that the container's command line may name."""
        fields = {"status.podIP": self.address, "metadata.name": self.name}
        return {each["name"]: fields[each["valueFrom"]["fieldRef"]["fieldPath"]] for each in self.container["env"]}

    def passes(self, kind: str) -> bool:
        """kind: "readinessProbe" or "livenessProbe"; asked once"""
        probe = self.container[kind]
        (how,) = _PROBES.keys() & probe.keys()
        return _PROBES[how](self.address, probe[how])


class Pods:
    """`with` it, the pods run; they start at once, and `wait_until_ready` waits for them."""

    def __init__(self, folder: Path, mounts: Mapping[str, Path], more: Mapping[str, Sequence[str]]) -> None:
        """mounts: what lies where the containers' volumes are mounted
        more: arguments to add, by container
        """
        self._folder, self._mounts, self._more = folder, mounts, more
        objects = manifests()
        self._deployments = {each["metadata"]["name"]: each for each in objects if each["kind"] == "Deployment"}
        self._services = {each["metadata"]["name"]: each for each in objects if each["kind"] == "Service"}
        self._networks = {name: f"127.77.{number}" for number, name in enumerate(self._deployments, 1)}
        self._pods: dict[str, list[Pod]] = {name: [] for name in self._deployments}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def __enter__(self) -> Pods:
        for name, deployment in self._deployments.items():
            self._pods[name] = [self._new_pod(name, number) for number in range(deployment["spec"]["replicas"])]
        for pod in self.all():
            self._start(pod)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._watcher.join()
        for pod in self.all():
            if pod.process:
                pod.process.close()

    def all(self) -> list[Pod]:
        return list(itertools.chain.from_iterable(self._pods.values()))

    def of(self, deployment: str) -> list[Pod]:
        return list(self._pods[deployment])

    def service(self, name: str) -> str:
        """The address and port of the first pod behind a service."""
        service = self._services[name]["spec"]
        return f"{self._selected(name)[0].address}:{service['ports'][0]['port']}"

    def scale_up(self, deployment: str) -> Pod:
        """One more pod of it."""
        pod = self._new_pod(deployment, len(self._pods[deployment]))
        with self._lock:
            self._pods[deployment].append(pod)
            self._start(pod)
        return pod

    def kill(self, pod: Pod) -> None:
        """SIGKILLs its container, and waits until another one runs."""
        before = pod.num_restarts
        assert pod.process is not None
        pod.process.process.kill()
        poll(lambda: pod.num_restarts > before, START_TIMEOUT_S, f"{pod.name} has been restarted")

    def scale_down(self, pod: Pod) -> int:
        """Takes a pod away: SIGTERM and its time to end. The exit code."""
        with self._lock:
            for pods in self._pods.values():
                with suppress(ValueError):
                    pods.remove(pod)
        assert pod.process is not None
        pod.process.process.send_signal(signal.SIGTERM)
        try:
            return pod.process.wait(pod.grace_s)
        finally:
            pod.process.close()

    def wait_until_ready(self) -> None:
        for pod in self.all():
            poll(lambda pod=pod: pod.passes("readinessProbe"), START_TIMEOUT_S, f"{pod.name} is ready\n{self.output}")

    @property
    def output(self) -> str:
        """The last lines that each container has written."""
        return "\n".join(f"--- {pod.name}\n{pod.process.output[-2000:]}" for pod in self.all() if pod.process)

    def _new_pod(self, deployment: str, number: int) -> Pod:
        address = f"{self._networks[deployment]}.{number + 1}"
        return Pod(f"{deployment}-{number}", address, self._deployments[deployment]["spec"]["template"])

    def _selected(self, service: str) -> list[Pod]:
        selector = self._services[service]["spec"]["selector"].items()
        return [
            pod
            for name, deployment in self._deployments.items()
            if selector <= deployment["spec"]["template"]["metadata"]["labels"].items()
            for pod in self._pods[name]
        ]

    def _start(self, pod: Pod) -> None:
        arguments = [*pod.container["args"], *self._more.get(pod.container["name"], ())]
        pod.process = PagodaProcess(
            self._folder / f"{pod.name}.log",
            *(argument for each in arguments for argument in self._inserted(each, pod)),
        )

    def _inserted(self, argument: str, pod: Pod) -> list[str]:
        for name, value in pod.variables().items():
            argument = argument.replace(f"$({name})", value)
        for mount in pod.container.get("volumeMounts", ()):
            path = re.escape(mount["mountPath"])
            argument = re.sub(rf"(^|=){path}(?=/|$)", rf"\g<1>{self._mounts[mount['mountPath']]}", argument)
        for service in self._services:
            if found := re.fullmatch(rf"(--\w+)={re.escape(service)}:(\d+)", argument):
                option, port = found.groups()
                return [option, *(f"{each.address}:{port}" for each in self._selected(service))]
        return [argument]

    def _watch(self) -> None:
        while not self._closing.wait(_WATCH_INTERVAL_S):
            with self._lock:
                for pod in self.all():
                    if pod.process and pod.process.process.poll() is not None:
                        self._start(pod)
                        pod.num_restarts += 1


def _grpc_health(address: str, probe: Manifest) -> bool:
    with open_blocking_channel(f"{address}:{probe['port']}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        try:
            answer = check(health_pb2.HealthCheckRequest(service=probe.get("service", "")), timeout=_PROBE_TIMEOUT_S)
        except grpc.RpcError:
            return False
    serving: bool = answer.status == health_pb2.HealthCheckResponse.SERVING
    return serving


def _http_get(address: str, probe: Manifest) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}:{probe['port']}{probe['path']}", timeout=_PROBE_TIMEOUT_S):
            return True
    except OSError:
        return False


def _tcp_socket(address: str, probe: Manifest) -> bool:
    try:
        with socket.create_connection((address, probe["port"]), _PROBE_TIMEOUT_S):
            return True
    except OSError:
        return False


_PROBES = {"grpc": _grpc_health, "httpGet": _http_get, "tcpSocket": _tcp_socket}
