"""A run's server behind TLS: a proxy with a certificate of the test's own stands before the real server."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tls import Authority, TlsProxy

from cli.embedded import EmbeddedServer
from common.consumer import Consumer
from common.errors import ServerError
from common.keys import ACTORS, LEARNER
from common.messages import Task
from common.process import open_streams
from common.server import Client, check_server, connect
from common.settings_sources import load_settings
from common.streams import Ending, Product, Streams

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with openssl")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def behind(server_url: str) -> Iterator[Callable[..., int]]:
    """Put a TLS proxy with this certificate before the server; answers its port."""
    with contextlib.ExitStack() as stack:

        def behind(certificate: Path, key: Path, client_ca: Path | None = None) -> int:
            proxy = TlsProxy(server_url.removeprefix("unix://"), certificate, key, client_ca)
            thread = threading.Thread(target=proxy.serve, daemon=True)
            thread.start()
            stack.callback(thread.join, 10)
            stack.callback(proxy.listener.close)
            stack.callback(proxy.listener.shutdown, socket.SHUT_RDWR)  # wakes accept(), which close() alone does not
            return proxy.port

        yield behind


@pytest.fixture
def url_with(tmp_path: Path) -> Callable[..., str]:
    """The server's URL as a process of a run with these [redis] settings has it."""

    def url(address: str, **files: Path) -> str:
        run_file = tmp_path / "run.toml"
        lines = [f'url = "{address}"', *(f'{name} = "{path}"' for name, path in files.items())]
        run_file.write_text("[redis]\n" + "\n".join(lines))
        return load_settings(run_file).redis.url.get_secret_value()

    return url


def refusal(url: str) -> str:
    """The sentence with which a process would end."""
    with contextlib.closing(connect(url)) as client, pytest.raises(ServerError) as error:
        check_server(client)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)
    return str(error.value)


def deliver(streams: Streams, make_task: Callable[[str], Task]) -> None:
    """A task from the learner to an actor and back, acknowledged."""
    tasks, rollouts = streams.keys.tasks("policy"), streams.keys.rollouts("policy")
    assert streams.take_fence(1, "1:a")
    streams.issue("1:a", 0, [make_task("u")])
    [delivery] = Consumer(streams, ACTORS, "a", [tasks]).claim(1, block_ms=100)
    product = Product(uid="u", payload=bytes(300_000))  # many TLS records
    assert streams.transfer(tasks, ACTORS, rollouts, [(delivery.id, [product])]) == [True]
    [group] = Consumer(streams, LEARNER, "l", [rollouts]).claim(1)
    assert group.payload == product.payload
    ending = Ending(stream=rollouts, id=group.id, uid="u", outcome="trained", kind="policy")
    assert streams.settle("1:a", LEARNER, 1, [ending]) == 1
    assert streams.conservation().balanced


def test_a_run_works_over_tls(
    client: Client, behind: Callable[..., int], authority: Authority, tmp_path: Path, make_task: Callable[[str], Task]
) -> None:
    port = behind(*authority.sign("server"))
    run_file = tmp_path / "run.toml"
    run_file.write_text(
        f'[run]\nname = "tls"\n[redis]\nurl = "rediss://localhost:{port}"\ntls_ca_file = "{authority.certificate}"'
    )
    streams = open_streams(load_settings(run_file), owner=True)
    with contextlib.closing(streams.client):
        deliver(streams, make_task)


def connects_every_time(url: str) -> None:
    """What a new TLS 1.3 session brings with it is never taken for a reply."""
    for _ in range(20):
        with contextlib.closing(connect(url)) as again:
            assert again.ping()


def test_a_connection_without_a_password_works_every_time(
    client: Client, behind: Callable[..., int], authority: Authority, url_with: Callable[..., str]
) -> None:
    port = behind(*authority.sign("server"))
    connects_every_time(url_with(f"rediss://localhost:{port}", tls_ca_file=authority.certificate))


def test_an_authority_that_is_not_ours_is_refused(
    client: Client, behind: Callable[..., int], authority: Authority, tmp_path: Path, url_with: Callable[..., str]
) -> None:
    port = behind(*authority.sign("server"))
    other = Authority(tmp_path, "other").certificate
    said = refusal(url_with(f"rediss://u:secret@localhost:{port}", tls_ca_file=other))
    assert f"the certificate of the server at localhost:{port} is not accepted: " in said
    assert "set redis.tls_ca_file" in said


def test_without_a_ca_file_the_systems_authorities_decide(
    client: Client, behind: Callable[..., int], authority: Authority
) -> None:
    port = behind(*authority.sign("server"))
    assert "unable to get local issuer certificate" in refusal(f"rediss://u:secret@localhost:{port}")


def test_an_expired_certificate_is_refused(
    client: Client, behind: Callable[..., int], authority: Authority, url_with: Callable[..., str]
) -> None:
    try:
        certificate = authority.sign("expired", days=-1)
    except subprocess.CalledProcessError:
        pytest.skip("this openssl signs nothing for the past")
    port = behind(*certificate)
    said = refusal(url_with(f"rediss://localhost:{port}", tls_ca_file=authority.certificate))
    assert "is not accepted: certificate has expired" in said


def test_a_certificate_of_another_host_is_refused(
    client: Client, behind: Callable[..., int], authority: Authority, url_with: Callable[..., str]
) -> None:
    port = behind(*authority.sign("elsewhere", "DNS:redis.example"))
    said = refusal(url_with(f"rediss://localhost:{port}", tls_ca_file=authority.certificate))
    assert "Hostname mismatch, certificate is not valid for 'localhost'" in said
    assert "write the host in redis.url as it is named there" in said


def test_plain_redis_against_tls_is_told_of_rediss(
    client: Client, behind: Callable[..., int], authority: Authority
) -> None:
    port = behind(*authority.sign("server"))
    said = refusal(f"redis://u:secret@127.0.0.1:{port}")
    assert f"no server answers at 127.0.0.1:{port}: " in said
    assert "write rediss:// if it wants TLS" in said


def test_tls_against_plain_redis_is_told_of_redis(client: Client) -> None:
    """What is no TLS record ends the handshake. A real server waits for the rest of a command it does not see."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(1 << 16)
                accepted.sendall(b"-ERR Protocol error\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        said = refusal(f"rediss://u:secret@127.0.0.1:{listener.getsockname()[1]}")
        thread.join(10)
    assert "no TLS connection with the server" in said
    assert "write redis:// if it has no TLS" in said


def test_a_server_may_ask_for_a_certificate(
    client: Client, behind: Callable[..., int], authority: Authority, url_with: Callable[..., str]
) -> None:
    port = behind(*authority.sign("server"), client_ca=authority.certificate)
    address, ca = f"rediss://localhost:{port}", authority.certificate
    assert "set redis.tls_cert_file and redis.tls_key_file" in refusal(url_with(address, tls_ca_file=ca))
    certificate, key = authority.sign("actor")
    url = url_with(address, tls_ca_file=ca, tls_cert_file=certificate, tls_key_file=key)
    with contextlib.closing(connect(url)) as welcome:
        check_server(welcome)


@pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_check_hostname=false", "ssl_cert_reqs=optional"])
def test_checks_cannot_be_switched_off(option: str) -> None:
    with pytest.raises(
        ServerError, match=f"redis.url sets {option.split('=')[0]}, but certificates are always checked"
    ):
        connect(f"rediss://u:secret@localhost:1?{option}")


def test_a_server_that_turns_untrusted_is_given_up_with_the_reason(
    client: Client, behind: Callable[..., int], authority: Authority
) -> None:
    port = behind(*authority.sign("server"))
    now = 0.0

    def sleep(delay_s: float) -> None:
        nonlocal now
        now += delay_s

    with contextlib.closing(connect(f"rediss://localhost:{port}")) as stranger:
        streams = Streams(stranger, "test", give_up_s=1.0, clock=lambda: now, sleep=sleep)
        with pytest.raises(ServerError, match=r"has not answered for 1 s: .*certificate verify failed"):
            streams.progress()


def test_a_server_with_tls_of_its_own(
    tmp_path: Path, authority: Authority, url_with: Callable[..., str], make_task: Callable[[str], Task]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    certificate, key = authority.sign("server")
    tls = {"tls-port": port, "tls-cert-file": certificate, "tls-key-file": key, "tls-auth-clients": "no"}
    options = {name: str(value) for name, value in tls.items()}
    options |= {"tls-ca-cert-file": str(authority.certificate), "bind": "127.0.0.1", "appendonly": "no"}
    server = EmbeddedServer(tmp_path / "data", options=options)
    try:
        server.start()
    except ServerError as error:
        pytest.skip(f"the server of this machine has no TLS: {error}")
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        stack.enter_context(contextlib.closing(connect(server.url))).config_set("requirepass", "secret")
        url = url_with(f"rediss://:secret@localhost:{port}", tls_ca_file=authority.certificate)
        streams = open_streams_at(url, tmp_path)
        with contextlib.closing(streams.client):
            deliver(streams, make_task)
        connects_every_time(url)
        assert "is not accepted" in refusal(f"rediss://localhost:{port}")
        assert "write rediss://" in refusal(f"redis://localhost:{port}")


def open_streams_at(url: str, folder: Path) -> Streams:
    run_file = folder / "run.toml"
    run_file.write_text("")
    return open_streams(load_settings(run_file, [f"redis.url={url}"]), owner=True)
