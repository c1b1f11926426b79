"""Hosts of a small network on one machine: network namespaces on one switch. Needs root, and ``ip`` of iproute2."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

SUBNET: Final = "10.77.0"


def unusable() -> str:
    """Why hosts cannot be made here; empty if they can."""
    if shutil.which("ip") is None:
        return "there is no ip command (iproute2)"
    name = f"spark-try-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made: {error.stderr.strip()}"
    return ""


class Network:
    """A switch and the hosts on it. Nothing of this machine's own network is touched."""

    def __init__(self) -> None:
        self._prefix = f"spark-{os.getpid()}"
        self._switch = f"{self._prefix}-switch"
        self._hosts: list[Host] = []
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "switch", "up")

    def host(self, name: str) -> Host:
        """A new host with an address of its own."""
        number = len(self._hosts) + 1
        namespace, port = f"{self._prefix}-{name}", f"port{number}"
        _ip("netns", "add", namespace)
        host = Host(name, namespace, f"{SUBNET}.{number}", (self._switch, port))
        self._hosts.append(host)
        _ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("-n", self._switch, "link", "set", port, "master", "switch", "up")
        _ip("-n", namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", namespace, "link", "set", device, "up")
        return host

    def close(self) -> None:
        for host in self._hosts:
            host.kill()
        for namespace in (*(host.namespace for host in self._hosts), self._switch):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


class Host:
    """Processes started here see this host's network only: its own loopback, and the other hosts."""

    def __init__(self, name: str, namespace: str, address: str, port: tuple[str, str]) -> None:
        self.name, self.namespace, self.address = name, namespace, address
        self._port = port
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: list[str], environment: Mapping[str, str], folder: Path) -> subprocess.Popen[bytes]:
        """Output goes to ``HOST.log`` in the folder, in which it runs."""
        with (folder / f"{self.name}.log").open("ab") as output:
            inside = ["ip", "netns", "exec", self.namespace, *command]
            process = subprocess.Popen(inside, cwd=folder, env=dict(environment), stdout=output, stderr=output)
        self._started.append(process)
        return process

    def unplug(self) -> None:
        """Nothing comes or goes any more, and nobody is told."""
        switch, port = self._port
        _ip("-n", switch, "link", "set", port, "down")

    def kill(self) -> None:
        """Whatever runs here, at once."""
        pids = subprocess.run(
            ["ip", "netns", "pids", self.namespace], check=False, capture_output=True, text=True
        ).stdout
        for pid in map(int, pids.split()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:  # it ended meanwhile
                continue
        for process in self._started:
            process.wait(timeout=10)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
