"""The server's health check, of compose and of Kubernetes, as the shell in its container runs it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
WELL = "# Persistence\r\nloading:0\r\nasync_loading:0\r\naof_enabled:1\r\naof_last_write_status:ok\r\n"
CLIENT = """#!/bin/sh
echo "$@" >"$STUB/arguments"
echo "$REDISCLI_AUTH" >"$STUB/password"
cat "$STUB/answer"
"""

Check = Callable[[str], bool]


def of_compose() -> str:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    kind, script = services["redis"]["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    return str(script).replace("$$", "$")


def of_kubernetes() -> str:
    text = (ROOT / "infra/k8s/components/redis/server.yaml").read_text()
    [server] = [found for found in yaml.safe_load_all(text) if found["kind"] == "StatefulSet"]
    [container] = server["spec"]["template"]["spec"]["containers"]
    assert container["startupProbe"]["exec"] == container["readinessProbe"]["exec"]
    *shell, script = container["readinessProbe"]["exec"]["command"]
    assert shell == ["/bin/sh", "-c"]
    return str(script)


@pytest.fixture(params=[of_compose, of_kubernetes], ids=["compose", "kubernetes"])
def check(request: pytest.FixtureRequest, tmp_path: Path) -> Check:
    """Whether the check passes when the server answers so."""
    client = tmp_path / "valkey-cli"
    client.write_text(CLIENT)
    client.chmod(0o755)
    (tmp_path / "observer.password").write_text("of the observer")
    script = request.param().replace("/run/secrets", str(tmp_path))
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "STUB": str(tmp_path)}

    def check(answer: str) -> bool:
        (tmp_path / "answer").write_text(answer, newline="")
        done = subprocess.run(["/bin/sh", "-c", script], env=environment, capture_output=True, text=True)
        assert done.stderr == ""
        return done.returncode == 0

    return check


def test_a_server_that_has_its_data_and_writes_its_log_is_ready(check: Check, tmp_path: Path) -> None:
    assert check(WELL)
    assert (tmp_path / "password").read_text() == "of the observer\n"
    assert "--user observer" in (tmp_path / "arguments").read_text()


@pytest.mark.parametrize(
    "answer",
    [
        WELL.replace("\nloading:0", "\nloading:1"),
        WELL.replace("status:ok", "status:err"),  # its disk is full
        "LOADING Redis is loading the dataset in memory\r\n",
        "WRONGPASS invalid username-password pair or user is disabled.\r\n",
        "NOAUTH Authentication required.\r\n",
        "Could not connect to Redis at 127.0.0.1:6379: Connection refused\n",
        "",
    ],
)
def test_any_other_is_not(check: Check, answer: str) -> None:
    assert not check(answer)
