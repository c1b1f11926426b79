"""Switching telemetry on: the settings, what must be installed, ports, and what the SDK says."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cli.installed import check_installed
from common.errors import SettingsError
from common.settings import Settings
from common.settings_sources import load_settings
from common.telemetry.quiet import QUIET
from common.telemetry.sdk import port_of
from common.telemetry.sdk_log import QUIET_S, sdk_log
from common.telemetry.start import started

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "examples" / "arithmetic" / "run.toml"
ON = Settings(telemetry={"endpoint": "http://collector:4318"})


def test_it_is_off_unless_asked_for() -> None:
    assert not Settings().telemetry.on
    assert ON.telemetry.on
    assert Settings(telemetry={"prometheus_port": 9464}).telemetry.on
    with started(Settings(), role="actor", member="actor-0") as telemetry:
        assert telemetry is QUIET


@pytest.mark.parametrize(
    ("endpoint", "complaint"),
    [
        ("collector:4318", "is no URL"),
        ("grpc://collector", "is no URL"),
        ("http://", "is no URL"),
        ("http://me:hunter2@collector", "holds credentials"),
        ("https://collector?key=hunter2", "holds credentials"),
    ],
)
def test_an_endpoint_that_is_none_or_holds_a_secret_is_refused(endpoint: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint) as caught:
        load_settings(DEMO, [f"telemetry.endpoint={endpoint}"])
    assert "hunter2" not in str(caught.value)


def test_a_run_that_asks_for_it_is_told_how_to_install_it() -> None:
    check_installed(Settings(), lambda _package: None)
    with pytest.raises(SettingsError, match=r"\[telemetry\] needs opentelemetry-.*pip install .*\[telemetry\]"):
        check_installed(ON, lambda _package: None)


def test_a_process_without_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.metrics.export", None)
    monkeypatch.delitem(sys.modules, "common.telemetry.sdk")
    with (
        pytest.raises(SettingsError, match=r"opentelemetry\.sdk\.metrics\.export.*pip install .*\[telemetry\]"),
        started(ON, role="actor", member="actor-0"),
    ):
        pass


def test_off_runs_where_nothing_of_opentelemetry_is_installed() -> None:
    """Entry points, loops and everything that the wiring touches."""
    statement = """
import sys
sys.modules["opentelemetry"] = sys.modules["prometheus_client"] = None
import actors.__main__, actors.actor, learner.__main__, learner.loop, recycler.__main__, cli.commands
from common.settings import Settings
from common.telemetry.start import started
with started(Settings(), role="learner", member="learner") as telemetry:
    assert not telemetry.on
"""
    answer = subprocess.run([sys.executable, "-c", statement], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(
    ("role", "member", "port"),
    [
        ("learner", "learner", 9464),
        ("recycler", "recycler", 9465),
        ("actor", "actor-0", 9466),
        ("actor", "actor-7", 9473),
        ("actor", "actor-12", 9478),
        ("actor", "actor-5f7d-48291", 9466),
        ("actor", "anna", 9466),
    ],
)
def test_every_process_of_a_host_has_its_own_port(role: str, member: str, port: int) -> None:
    assert port_of(9464, role, member) == port


def test_the_sdk_s_warnings_become_events_and_not_once_a_second() -> None:
    now = [0.0]
    handler = sdk_log(lambda: now[0])
    exporter = logging.getLogger("opentelemetry.exporter")
    with capture_logs() as events:
        for _ in range(3):
            exporter.warning("no %s", "collector")
        logging.getLogger("opentelemetry.sdk").info("all is well")
        now[0] += QUIET_S
        try:
            raise ConnectionError("refused")
        except ConnectionError:
            exporter.exception("not sent")
    handler.close()
    exporter.warning("after the end")
    told = [(event["event"], event["said"], event["cause"], event["unsaid"]) for event in events]
    assert told == [
        ("telemetry.trouble", "no collector", "", 0),
        ("telemetry.trouble", "not sent", "ConnectionError('refused')", 2),
    ]
