"""`spark ready` and `spark bootstrap`, against a real server."""

from __future__ import annotations

import time
from contextlib import closing

import pytest

from cli.ready import bootstrap, ready
from common.errors import ServerError
from common.server import Client, connect, functions_loaded
from common.settings import Settings
from common.streams import Streams


@pytest.fixture
def settings(server_url: str) -> Settings:
    return Settings.model_validate({"run": {"name": "test"}, "redis": {"url": server_url, "give_up_s": 2.0}})


def test_a_member_is_ready_from_its_first_heartbeat_until_it_expires(
    streams: Streams, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    streams.heartbeat("actor-x", {"role": "actor"}, ttl_s=0.2)
    ready(settings, "actor-x")
    assert capsys.readouterr().out == "actor-x is ready\n"
    with pytest.raises(ServerError, match="no heartbeat of actor-y in run test"):
        ready(settings, "actor-y")
    give_up_at = time.monotonic() + 10
    while streams.lives("actor-x"):
        assert time.monotonic() < give_up_at
    with pytest.raises(ServerError, match="no heartbeat of actor-x"):
        ready(settings, "actor-x")


def test_nobody_is_ready_without_a_server(settings: Settings) -> None:
    away = settings.model_copy(update={"redis": Settings.model_validate({"redis": {"url": "unix:///nowhere"}}).redis})
    with pytest.raises(ServerError, match="no server answers"):
        ready(away, "learner")
    with pytest.raises(ServerError, match="SPARK_REDIS__URL_FILE"):
        ready(Settings(), "learner")


def test_bootstrap_loads_the_functions_and_may_be_repeated(
    client: Client, settings: Settings, server_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client.function_flush()
    with closing(connect(server_url)) as other:
        assert not functions_loaded(other)
        bootstrap(settings)
        bootstrap(settings)
        assert functions_loaded(other)
    assert "is ready for run test" in capsys.readouterr().out
