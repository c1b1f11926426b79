"""Weights behind a URL: what fsspec reaches within a process, a shared folder, and reading over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from pydantic import ValidationError
from structlog.testing import capture_logs
from weight_versions import FILE, Model

from common.errors import SettingsError, WeightsError
from common.messages import WeightManifest
from common.remote import Remote
from common.settings import Settings
from common.weights import WeightStore
from common.weights_source import WeightSource


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield f"memory://{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}/shared"
    MemoryFileSystem.store.clear()


def store_of(tmp_path: Path, url: str, run: str = "demo", anchor_every: int = 1) -> WeightStore:
    settings = Settings(run={"name": run, "dir": tmp_path / "runs"}, weights={"url": url, "anchor_every": anchor_every})
    return WeightStore.of(settings)


@pytest.fixture
def source(tmp_path: Path, url: str) -> Iterator[WeightSource]:
    with closing(source_of(tmp_path, url)) as found:
        yield found


def source_of(tmp_path: Path, url: str, run: str = "demo") -> WeightSource:
    cache = {"cache_dir": tmp_path / "cache"}
    return WeightSource.of(Settings(run={"name": run, "dir": tmp_path / "runs"}, weights={"url": url, **cache}))


def listed(url: str) -> list[str]:
    fs, base = fsspec.core.url_to_fs(url)
    return sorted(path.removeprefix(f"{base}/") for path in fs.find(base))


def change(url: str, content: Callable[[bytes], bytes]) -> None:
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe_file(path, content(fs.cat_file(path)))


def contents(source: WeightSource, manifest: WeightManifest) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in source.fetch(manifest)}


@pytest.mark.parametrize("anchor_every", [1, 3])
def test_versions_travel_by_url(tmp_path: Path, url: str, source: WeightSource, anchor_every: int) -> None:
    store, model = store_of(tmp_path, url, anchor_every=anchor_every), Model()
    for version in range(5):
        manifest = store.publish(1, version, version - 1, model.step().write)
        assert manifest.uri == f"{url}/demo/e000001-v{version:08d}"
        assert len(manifest.chain) == version % anchor_every
        assert contents(source, manifest) == model.contents(tmp_path / "expected")
        store.check(manifest)
    assert listed(url) == [f"demo/e000001-v{version:08d}/{FILE}" for version in range(5)]


def test_only_the_base_of_the_next_difference_stays_with_the_learner(tmp_path: Path, url: str) -> None:
    model = Model()
    for anchor_every, left in ((1, []), (2, ["e000001-v00000001.whole"]), (3, ["e000001-v00000002.whole"])):
        store = store_of(tmp_path, url, run=f"every-{anchor_every}", anchor_every=anchor_every)
        for version in range(anchor_every):
            store.publish(1, version, version - 1, model.step().write)
        assert sorted(path.name for path in store.root.iterdir()) == left


@pytest.mark.parametrize("damaged", [0, 1])
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda _: b""])
def test_damage_is_noticed_on_both_sides(
    tmp_path: Path, url: str, source: WeightSource, damaged: int, damage: Callable[[bytes], bytes]
) -> None:
    store, model = store_of(tmp_path, url, anchor_every=4), Model()
    manifests = [store.publish(1, version, version - 1, model.step().write) for version in range(2)]
    change(f"{manifests[damaged].uri}/{FILE}", damage)
    for version in {damaged, 1}:
        with pytest.raises(WeightsError):
            source.fetch(manifests[version])
    with pytest.raises(WeightsError, match=f"version {damaged}"):
        store.check(manifests[1])
    mended = store.publish(1, 1, 0, model.write, whole=True)
    assert contents(source, mended) == model.contents(tmp_path / "expected")


def test_a_folder_that_is_not_there_yet_is_named(tmp_path: Path, url: str, source: WeightSource) -> None:
    manifest = store_of(tmp_path, url).publish(1, 0, -1, Model().write)
    fs, path = fsspec.core.url_to_fs(manifest.uri)
    fs.rm(path, recursive=True)
    with pytest.raises(WeightsError, match=rf"version 0: {url}/demo/e000001-v00000000/{FILE}: it cannot be read"):
        source.fetch(manifest)


def test_old_versions_are_removed_there_and_strangers_left(tmp_path: Path, url: str) -> None:
    store, model = store_of(tmp_path, url, anchor_every=3), Model()
    other = store_of(tmp_path, url, run="other").publish(1, 0, -1, model.write)
    fs, base = fsspec.core.url_to_fs(f"{url}/demo")
    for version in range(6):
        store.publish(1, version, version - 1, model.step().write)
    fs.makedirs(f"{base}/e000001-v00000000.bak", exist_ok=True)
    fs.pipe_file(f"{base}/e000001-v00000000.bak/{FILE}", b"mine")
    store.remove_older_than(4, epoch=1)
    kept = ["e000001-v00000000.bak", *(f"e000001-v{version:08d}" for version in (3, 4, 5))]
    assert listed(url) == [*(f"demo/{name}/{FILE}" for name in kept), f"other/e000001-v00000000/{FILE}"]
    assert other.uri.startswith(url)


def test_an_upload_that_breaks_off_is_not_announced_and_may_be_tried_again(
    tmp_path: Path, url: str, source: WeightSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Exception):
        """As client libraries have them: no OSError."""

    def torn(self: object, _local: str, remote: str, **_: object) -> None:
        self.pipe_file(remote, b"half")  # type: ignore[attr-defined]
        raise Broken("connection lost")

    store, model = store_of(tmp_path, url, anchor_every=3), Model()
    store.publish(1, 0, -1, model.write)
    with monkeypatch.context() as patch:
        for kind in (LocalFileSystem, MemoryFileSystem):
            patch.setattr(kind, "put_file", torn)
        with pytest.raises(OSError, match=r"v00000001 cannot be written: Broken: connection lost"):
            store.publish(1, 1, 0, model.step().write)
    if url.startswith("file"):
        assert f"demo/e000001-v00000001/{FILE}" not in listed(url)  # where folders can be renamed it does not appear
    manifest = store.publish(1, 2, 0, model.step().write)
    assert len(manifest.chain) == 1
    assert contents(source, manifest) == model.contents(tmp_path / "expected")


def test_a_store_that_cannot_be_listed_costs_room_not_the_run(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(tmp_path, url)
    store.publish(1, 0, -1, Model().write)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("not yours")

    for method in ("ls", "rm"):
        with monkeypatch.context() as patch, capture_logs() as logs:
            for kind in (LocalFileSystem, MemoryFileSystem):
                patch.setattr(kind, method, refuse)
            store.remove_older_than(5, epoch=1)
        assert [entry["event"] for entry in logs] == ["weights.not_removed"]
    store.remove_older_than(5, epoch=1)
    assert listed(url) == []


def test_two_runs_share_a_store(tmp_path: Path, url: str) -> None:
    first, second = Model(1), Model(2)
    manifests = [
        store_of(tmp_path, url, run=name).publish(1, 0, -1, model.write)
        for name, model in (("a", first), ("b", second))
    ]
    for name, model, manifest in zip("ab", (first, second), manifests, strict=True):
        with closing(source_of(tmp_path, url, run=name)) as source:
            assert contents(source, manifest) == model.contents(tmp_path / name)


# -- HTTP ---------------------------------------------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    """The shared folder, served on the loopback."""
    shared = tmp_path / "shared"
    shared.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shared))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_actor_reads_the_learners_store_over_http(tmp_path: Path, mirror: str) -> None:
    store, model = store_of(tmp_path, f"file://{tmp_path}/shared", anchor_every=3), Model()
    with closing(source_of(tmp_path, mirror)) as source:
        for version in range(4):
            manifest = store.publish(1, version, version - 1, model.step().write)
            assert manifest.uri.startswith("file://")  # the actor's own setting says how it gets there
            assert contents(source, manifest) == model.contents(tmp_path / "expected")
        missing = store.publish(1, 4, 3, model.step().write)
        store.remove_older_than(99, epoch=9)
        with pytest.raises(WeightsError, match="FileNotFoundError"):
            source.fetch(missing)


def test_a_learner_cannot_publish_over_http(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="can be read only"):
        store_of(tmp_path, "http://127.0.0.1:1/weights")


def test_a_server_that_is_away_is_a_reason_to_try_again(tmp_path: Path) -> None:
    manifest = store_of(tmp_path, f"file://{tmp_path}/shared").publish(1, 0, -1, Model().write)
    with closing(source_of(tmp_path, "http://127.0.0.1:9")) as source, pytest.raises(WeightsError, match="version 0"):
        source.fetch(manifest)


# -- settings ----------------------------------------------------------------------------------------------------


def test_an_actor_without_the_url_says_what_to_set(tmp_path: Path, url: str) -> None:
    manifest = store_of(tmp_path, url).publish(1, 0, -1, Model().write)
    with (
        closing(WeightSource(cache_dir=tmp_path / "cache")) as source,
        pytest.raises(WeightsError, match=r"this actor has no weights\.url"),
    ):
        source.fetch(manifest)


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("abfs", "adlfs")])
def test_a_backend_that_is_not_installed_is_named(scheme: str, package: str) -> None:
    with pytest.raises(SettingsError, match=f"weights.url: {scheme} needs a package .*{package}"):
        Remote(f"{scheme}://bucket/prefix", "demo")


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(SettingsError, match="nosuch"):
        Remote("nosuch://bucket/prefix", "demo")


@pytest.mark.parametrize(
    "url",
    [
        "sftp://me:hunter2@host/weights",
        "https://host/weights?sig=hunter2",
        "https://host/weights#hunter2",
        "abfs://account:hunter2@host/x",
    ],
)
def test_credentials_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValidationError, match="credentials") as error:
        Settings(weights={"url": url})
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("url", ["/mnt/weights", "bucket/prefix", "simplecache::s3://bucket/x"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="no URL"):
        Settings(weights={"url": url})


@pytest.mark.parametrize("url", ["s3://bucket/prefix", "abfs://container@account.host/x", "sftp://me@host/weights"])
def test_urls_without_secrets_are_taken(url: str) -> None:
    assert Settings(weights={"url": url}).weights.url == url
