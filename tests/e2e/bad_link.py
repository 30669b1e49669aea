"""Two network namespaces as two hosts, and between them a link that delays packets and loses some.

Linux's own netem is not in every kernel; this needs root, `ip` and /dev/net/tun. Packets pass through this process, one
after the other, so TCP meets real losses.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import secrets
import select
import shutil
import struct
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_MTU = 9000
_DEVICE = "link0"


def obstacle() -> str:
    """Why there can be no such link here, or ""."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the program ip is not installed"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "network namespaces are not allowed here"


class BadLink:
    """`with` it, the hosts exist; `addresses` are theirs on the link, `prefixes` what commands on them begin with."""

    def __init__(self, *, delay_s: float, loss: float, seed: int) -> None:
        """delay_s: each way
        loss: share of the packets
        """
        name = secrets.token_hex(3)
        self.namespaces = [f"pagoda-{name}-{side}" for side in "ab"]
        self.addresses = ["10.77.0.1", "10.77.0.2"]
        self.prefixes = [["ip", "netns", "exec", each] for each in self.namespaces]
        self.num_passed = self.num_lost = 0
        self._delay_s = delay_s
        self._loss = loss
        self._random = random.Random(seed)
        self._fds: list[int] = []
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._relay)

    def __enter__(self) -> BadLink:
        try:
            for namespace, address in zip(self.namespaces, self.addresses, strict=True):
                _run("ip", "netns", "add", namespace)
                _run("ip", "-n", namespace, "link", "set", "lo", "up")
                # A thread of its own: which namespace one is in holds for the thread.
                with ThreadPoolExecutor(1) as pool:
                    self._fds.append(pool.submit(_open_tun, namespace).result())
                _run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", _DEVICE)
                _run("ip", "-n", namespace, "link", "set", _DEVICE, "mtu", str(_MTU), "up")
            self._thread.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._wake_write, b"!")
        self._thread.join()
        self._remove()

    def _remove(self) -> None:
        for fd in [*self._fds, self._wake_read, self._wake_write]:
            os.close(fd)
        for namespace in self.namespaces:
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)

    def _relay(self) -> None:
        order = itertools.count()
        due: list[tuple[float, int, int, bytes]] = []
        other = dict(zip(self._fds, reversed(self._fds), strict=True))
        while True:
            wait_s = max(0.0, due[0][0] - time.monotonic()) if due else None
            ready, _, _ = select.select([*self._fds, self._wake_read], [], [], wait_s)
            if self._wake_read in ready:
                return
            now = time.monotonic()
            for fd in ready:
                packet = os.read(fd, _MTU + 64)
                if self._random.random() < self._loss:
                    self.num_lost += 1
                else:
                    heapq.heappush(due, (now + self._delay_s, next(order), other[fd], packet))
            while due and due[0][0] <= now:
                _, _, fd, packet = heapq.heappop(due)
                os.write(fd, packet)
                self.num_passed += 1


def _open_tun(namespace: str) -> int:
    with Path(f"/run/netns/{namespace}").open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    return fd


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
