"""A cluster on one machine: every role on a host of its own, with the server's configuration, users and TLS of infra/.

Hosts are network namespaces, so an actor's host can be pulled out and another be added. The weights travel through a
folder that all hosts mount. What is not infra/'s own: the server that the tests have knows no TLS, so a proxy with the
certificate stands before it on its host.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import netns
import pytest
from run_harness import DEMO, ROOT, environment, overrides, steps_of, until
from tls import Authority

from cli.embedded import find_server
from common.server import connect, load_functions
from common.streams import Streams

INFRA = ROOT / "infra" / "redis"
PORT, PLAIN_PORT = 6380, 6379
RUN = "demo"
STEPS = 100_000
"""More than there is time for: the run ends by `spark drain`."""
LEASE_S = 4

pytestmark = [
    pytest.mark.skipif(bool(reason := netns.unusable()), reason=reason or "usable"),
    pytest.mark.timeout(300),
]


class Cluster:
    """A server's host, and hosts of roles that know its address, its authority and their own password."""

    def __init__(self, folder: Path, network: netns.Network) -> None:
        self._folder, self._network = folder, network
        self.secrets, self.shared = folder / "secrets", folder / "shared"
        self._redis = network.host("redis")
        url = f"rediss://{self._redis.address}:{PORT}"
        subprocess.run(["sh", INFRA / "make_users.sh", self.secrets, url, RUN], check=True, capture_output=True)
        self._authority = Authority(folder)
        self._start_server()

    def _start_server(self) -> None:
        folder, socket = self._folder / "redis", self._folder / "redis" / "server.sock"
        folder.mkdir()
        places = {"dir /data": f"dir {folder}", "/run/secrets/users.acl": f"{self.secrets}/users.acl"}
        configuration = (INFRA / "redis.conf").read_text(encoding="utf-8")
        for place, here in places.items():
            assert place in configuration
            configuration = configuration.replace(place, here)
        (folder / "redis.conf").write_text(configuration, encoding="utf-8")
        listens = ["--unixsocket", socket, "--bind", "127.0.0.1", "--port", PLAIN_PORT]
        server = self._redis.start(
            list(map(str, [find_server(), folder / "redis.conf", *listens])), environment(), self._folder
        )
        until(lambda: socket.exists() or server.poll() is not None, "the server's socket")
        assert server.poll() is None, self.output()
        password = (self.secrets / "admin.password").read_text()
        self.admin_url = f"unix://admin:{password}@{socket}"
        with closing(connect(self.admin_url)) as admin:
            load_functions(admin)
        certificate, key = self._authority.sign("redis", f"IP:{self._redis.address}")
        proxy = [sys.executable, "-m", "tls", socket, certificate, key, self._redis.address, PORT]
        helpers = {**environment(), "PYTHONPATH": str(ROOT / "tests" / "helpers")}
        self._redis.start(list(map(str, proxy)), helpers, self._folder)

    def start(self, role: str, *arguments: str, host: str = "") -> tuple[netns.Host, subprocess.Popen[bytes]]:
        """One process on a new host, with a folder of its own for what it writes."""
        on = self._network.host(host or role)
        folder = self._folder / on.name
        folder.mkdir()
        return on, on.start(self.command(role, *arguments), self.environment(role), folder)

    def on(self, host: netns.Host, role: str, *command: str) -> int:
        """Exit code of a command that somebody with this role's password gives on that host."""
        given = [sys.executable, "-m", "cli", *command]
        return host.start(given, self.environment(role), self._folder / host.name).wait(timeout=60)

    def command(self, role: str, *arguments: str) -> list[str]:
        settings = overrides(
            f"learner.max_steps={STEPS}",
            f"redis.tls_ca_file={self._authority.certificate}",
            f"redis.lease_s={LEASE_S}",
            f"weights.dir={self.shared}",
        )
        return [sys.executable, "-m", "cli", role, str(DEMO), *arguments, *settings]

    def environment(self, role: str) -> dict[str, str]:
        return {**environment(), "SPARK_REDIS__URL_FILE": str(self.secrets / f"{role}.url")}

    def run_of(self, host: str) -> Path:
        return self._folder / host / "runs" / RUN

    def output(self) -> str:
        """What was said on all hosts."""
        return "\n".join(path.read_text(encoding="utf-8") for path in sorted(self._folder.rglob("*.log")))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with closing(netns.Network()) as network:
        yield Cluster(tmp_path, network)


def test_a_host_is_lost_another_joins_and_the_ledger_balances(cluster: Cluster) -> None:
    learner_host, learner = cluster.start("learner")
    _, recycler = cluster.start("recycler")
    lost, _ = cluster.start("actor", "--name", "actor-a", host="actors-a")
    _, actor_b = cluster.start("actor", "--name", "actor-b", host="actors-b")
    others = {"recycler": recycler, "actor-b": actor_b}
    run = cluster.run_of("learner")

    def alive() -> bool:
        assert all(process.poll() is None for process in others.values()), cluster.output()
        return learner.poll() is None

    with closing(connect(cluster.admin_url)) as admin:
        streams = Streams(admin, RUN)

        def shipped(actor: str) -> int:
            return int((streams.members().get(actor) or {}).get("groups", 0))

        until(lambda: alive() and len(steps_of(run)) >= 2 and shipped("actor-a"), "two steps, and a group of actor-a")
        lost.unplug()
        lost.kill()
        _, others["actor-c"] = cluster.start("actor", "--name", "actor-c", host="actors-c")
        until(lambda: alive() and shipped("actor-c"), "the actor that was added")
        assert cluster.on(learner_host, "learner", "drain", str(run)) == 0, cluster.output()
        until(lambda: not alive(), "the end of the run")
        ledger = streams.conservation()
    assert learner.wait() == 0, cluster.output()
    for process in others.values():
        process.send_signal(signal.SIGTERM)
    assert [process.wait(timeout=60) for process in others.values()] == [0, 0, 0], cluster.output()

    print("ledger:", json.dumps({kind: dict(counts) for kind, counts in ledger.kinds.items()}))
    steps = steps_of(run)
    assert steps == list(range(1, len(steps) + 1))
    assert ledger.balanced
    assert cluster.on(learner_host, "observer", "audit", str(run), "--json") == 0, cluster.output()
