"""TLS files of the settings: told to the client in the URL, and a mistake is one sentence before anything starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import SettingsError
from common.server import connect
from common.settings_sources import load_settings

Load = Callable[..., str]


@pytest.fixture
def url_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """The URL that a run file with these [redis] settings gives; ca, crt and key files lie beside it."""
    for name in os.environ:
        if name.upper().startswith("SPARK_"):
            monkeypatch.delenv(name)
    for name in ("ca.pem", "a b.pem", "key.pem"):
        (tmp_path / name).write_text("")

    def load(**redis: str) -> str:
        run_file = tmp_path / "run.toml"
        run_file.write_text("[redis]\n" + "\n".join(f'{name} = "{value}"' for name, value in redis.items()))
        return load_settings(run_file).redis.url.get_secret_value()

    return load


def options(url: str) -> dict[str, object]:
    """What the client library makes of a URL."""
    with connect(url) as client:
        return client.connection_pool.connection_kwargs


def test_the_files_reach_the_client(url_of: Load, tmp_path: Path) -> None:
    """Relative to the run file, with the credentials and options that the URL had."""
    url = url_of(
        url="rediss://u:p%40ss@host:1?db=2", tls_ca_file="ca.pem", tls_cert_file="a b.pem", tls_key_file="key.pem"
    )
    found = options(url)
    assert found["ssl_ca_certs"] == str(tmp_path / "ca.pem")
    assert found["ssl_certfile"] == str(tmp_path / "a b.pem")
    assert found["ssl_keyfile"] == str(tmp_path / "key.pem")
    assert [found[name] for name in ("host", "port", "username", "password", "db")] == ["host", 1, "u", "p@ss", 2]


def test_a_url_that_has_them_stays_as_it_is(url_of: Load) -> None:
    """`spark up` hands its own URL to processes that read the same settings."""
    once = url_of(url="rediss://host:1", tls_ca_file="ca.pem")
    assert url_of(url=once, tls_ca_file="ca.pem") == once


def test_a_url_from_a_file_gets_them_too(url_of: Load, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("rediss://u:p@host:1\n")
    assert options(url_of(url_file="secret", tls_ca_file="ca.pem"))["ssl_ca_certs"] == str(tmp_path / "ca.pem")


@pytest.mark.parametrize("url", ["", "unix:///run/spark.sock"])
def test_an_embedded_server_needs_none(url_of: Load, url: str) -> None:
    assert url_of(url=url, tls_ca_file="ca.pem") == url


@pytest.mark.parametrize(
    ("redis", "said"),
    [
        ({"url": "redis://u:secret@h", "tls_ca_file": "ca.pem"}, "needs TLS; write redis.url as rediss://HOST:PORT"),
        ({"url": "rediss://u:secret@h", "tls_ca_file": "/nowhere.pem"}, "redis.tls_ca_file='/nowhere.pem' cannot be"),
        ({"url": "rediss://u:secret@h", "tls_key_file": "key.pem"}, "redis.tls_key_file needs its certificate"),
    ],
)
def test_a_mistake_is_one_sentence(url_of: Load, redis: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError) as error:
        url_of(**redis)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)
