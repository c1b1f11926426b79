"""The cluster of docker-compose.yml without docker: its command lines, environments, users and health checks, here.

What a container would give them is made by hand: mounts become folders, names become the loopback address. The images,
the network and the limits of the containers are not in this test.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_rules import filled_in
from run_harness import DEMO, ROOT, environment, until

from cli.embedded import find_server
from common.telemetry.sdk import port_of

STEPS = 3


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Cluster:
    """Services of the profile ``cpu``, each with the secrets and volumes that compose would mount, and no others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
        self.port, self.metrics = free_port(), free_port()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._make_run_file()
        self._make_secrets()
        self._make_commands()

    def _make_run_file(self) -> None:
        shutil.copytree(DEMO.parent, self.folder / "config", ignore=shutil.ignore_patterns("__pycache__"))
        file = self.folder / "config" / "run.toml"
        small = {"max_steps": STEPS, "groups_per_step": 4, "checkpoint_every": 2}
        text = file.read_text()
        for key, value in small.items():
            text, changed = re.subn(rf"^{key} = \d+", f"{key} = {value}", text, flags=re.MULTILINE)
            assert changed == 1
        file.write_text(text)

    def _make_secrets(self) -> None:
        secrets = self.folder / "secrets"
        subprocess.run(["sh", str(ROOT / "infra/compose/prepare.sh"), str(secrets)], check=True)
        for url in secrets.glob("*.url"):
            url.write_text(url.read_text().replace("@redis:6379", f"@127.0.0.1:{self.port}"))

    def _make_commands(self) -> None:
        """``spark``, and a ``hostname`` that differs between containers."""
        for name, line in (("spark", f'exec "{sys.executable}" -m cli "$@"'), ("hostname", 'echo "$CONTAINER"')):
            path = self.folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\n{line}\n")
            path.chmod(0o755)

    def here(self, text: str, service: str) -> str:
        """With the paths and names of the container replaced by those of this machine."""
        text = filled_in(text, {})
        for secret in self.services[service].get("secrets", ()):
            text = text.replace(f"/run/secrets/{secret['target']}", str(self.folder / "secrets" / secret["source"]))
        return re.sub(r"(?<![\w.])/(config|runs|weights)\b", rf"{self.folder}/\1", text)

    def environment(self, service: str, container: str = "") -> dict[str, str]:
        given = {name: self.here(str(value), service) for name, value in self.services[service]["environment"].items()}
        given["SPARK_TELEMETRY__ENDPOINT"] = ""  # no collector is here
        given["SPARK_TELEMETRY__PROMETHEUS_PORT"] = str(self.metrics)
        base = environment()
        path = f"{self.folder / 'bin'}:{base['PATH']}"
        return {**base, **given, "PATH": path, "CONTAINER": container, "PYTHONDONTWRITEBYTECODE": "1"}

    def start(self, service: str, container: str = "") -> None:
        told = self.services[service]
        words = [*told.get("entrypoint", ["spark"]), *told["command"]]
        with (self.folder / f"{container or service}.log").open("wb") as output:
            self.running[container or service] = subprocess.Popen(
                [self.here(word, service) for word in words],
                env=self.environment(service, container),
                cwd=self.folder,
                stdout=output,
                stderr=output,
            )

    def start_server(self) -> None:
        conf = (ROOT / "infra/redis/redis.conf").read_text()
        conf = conf.replace("dir /data", f"dir {self.folder}").replace(
            "/run/secrets/users.acl", str(self.folder / "secrets" / "users.acl")
        )
        (self.folder / "redis.conf").write_text(conf)
        command = [find_server(), self.folder / "redis.conf", "--port", str(self.port), "--bind", "127.0.0.1"]
        with (self.folder / "redis.log").open("wb") as output:
            self.running["redis"] = subprocess.Popen(command, stdout=output, stderr=output)

    def healthy(self, service: str, container: str = "") -> bool:
        """What compose would find."""
        kind, *words = self.services[service]["healthcheck"]["test"]
        command = ["/bin/sh", "-c", *words] if kind == "CMD-SHELL" else words
        done = subprocess.run(
            [self.here(word, service) for word in command],
            env=self.environment(service, container),
            cwd=self.folder,
            capture_output=True,
        )
        return done.returncode == 0

    def metrics_of(self, role: str, container: str = "") -> str:
        """As Prometheus reads them. Here actors share a host, so only the first of them has its port."""
        url = f"http://127.0.0.1:{port_of(self.metrics, role, f'actor-{container}')}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return str(answer.read().decode())

    def ended(self, name: str) -> int:
        return int(until(lambda: (self.running[name].poll() is not None) and [self.running[name].poll()], name)[0])

    def stop(self, name: str) -> int:
        self.running[name].send_signal(signal.SIGTERM)
        return self.running[name].wait(60)

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    cluster.start_server()
    yield cluster
    for process in reversed(cluster.running.values()):
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def test_the_demo_runs_as_compose_would_start_it(cluster: Cluster) -> None:
    """In the order of depends_on; each waits for what compose waits for."""
    cluster.start("bootstrap")
    assert cluster.ended("bootstrap") == 0, cluster.said("bootstrap")
    assert not cluster.healthy("learner")
    cluster.start("learner")
    until(lambda: cluster.healthy("learner") or cluster.running["learner"].poll() is not None, "the learner's health")
    cluster.start("recycler")
    for container in ("3f2a9b1c4d5e", "123456789012"):
        cluster.start("actor", container)
    until(lambda: cluster.healthy("actor", "3f2a9b1c4d5e"), "an actor's health")
    until(lambda: cluster.healthy("actor", "123456789012"), "another's")
    until(lambda: cluster.healthy("recycler"), "the recycler's health")
    assert 'spark_run="demo"' in cluster.metrics_of("recycler")
    assert 'spark_run="demo"' in cluster.metrics_of("actor", "3f2a9b1c4d5e")
    assert cluster.ended("learner") == 0, cluster.said("learner")
    assert [cluster.stop(name) for name in ("3f2a9b1c4d5e", "123456789012", "recycler")] == [0, 0, 0]
    assert '"event": "learner.done"' in cluster.said("learner")  # logs go where docker reads them
    assert {path.name for path in (cluster.folder / "weights").iterdir()}
    assert {path.name for path in (cluster.folder / "runs").iterdir()} == {"demo"}

    status = subprocess.run(
        ["spark", "status", str(cluster.folder / "runs/demo"), "--json"],
        env=cluster.environment("learner"),
        capture_output=True,
        text=True,
    )
    assert status.returncode == 0, status.stderr
    ledger = json.loads(status.stdout)["ledger"]
    assert ledger["balanced"]
    assert ledger["policy"]["trained"] >= STEPS
    assert {name for name in json.loads(status.stdout)["members"] if name.startswith("actor")} == {
        "actor-3f2a9b1c4d5e",
        "actor-123456789012",
    }
