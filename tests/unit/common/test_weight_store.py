"""The weight store: complete, hashed versions; anything else is noticed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import WeightsError
from common.messages import WeightManifest
from common.weights import WeightStore, verified


def writes(**files: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, content in files.items():
            (folder / f"{name}.bin").write_bytes(content)

    return write


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(tmp_path / "weights")


@pytest.fixture
def published(store: WeightStore) -> WeightManifest:
    return store.publish(1, 5, 4, writes(a=b"first", b=b"second" * 1000))


def names(store: WeightStore) -> list[str]:
    return sorted(path.name for path in store.root.iterdir())


def renamed(manifest: WeightManifest, name: str) -> WeightManifest:
    first, *others = manifest.files
    return dataclasses.replace(manifest, files=(dataclasses.replace(first, name=name), *others))


def test_what_was_published_is_found_and_verified(store: WeightStore, published: WeightManifest) -> None:
    assert (published.epoch, published.version, published.parent) == (1, 5, 4)
    assert [path.read_bytes() for path in verified(published)] == [b"first", b"second" * 1000]
    assert names(store) == ["e000001-v00000005"]
    assert Path(published.uri).is_absolute()


def test_a_relative_store_is_announced_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = WeightStore(Path("weights")).publish(1, 0, -1, writes(a=b"x"))
    monkeypatch.chdir("/")
    assert len(verified(manifest)) == 1


def test_a_flipped_bit_is_noticed(published: WeightManifest) -> None:
    path = Path(published.uri) / "b.bin"
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"version 5: .*b\.bin has 6000 bytes, sha256"):
        verified(published)


@pytest.mark.parametrize("size", [0, 10, 5999, 6001])
def test_a_torn_or_grown_file_is_noticed(published: WeightManifest, size: int) -> None:
    os.truncate(Path(published.uri) / "b.bin", size)
    with pytest.raises(WeightsError, match=rf"b\.bin has {size} bytes"):
        verified(published)


def test_a_missing_file_is_named(published: WeightManifest) -> None:
    (Path(published.uri) / "b.bin").unlink()
    with pytest.raises(WeightsError, match=r"b\.bin is missing"):
        verified(published)


@pytest.mark.parametrize("name", ["../secret", "..", ".", "", "a/b", "/etc/passwd", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(published: WeightManifest, name: str) -> None:
    with pytest.raises(WeightsError):
        verified(renamed(published, name))


def test_a_device_is_not_read(published: WeightManifest) -> None:
    """/dev/zero has no end."""
    with pytest.raises(WeightsError, match="no regular file"):
        verified(dataclasses.replace(renamed(published, "zero"), uri="/dev"))


def test_a_manifest_without_files_is_no_weights(published: WeightManifest) -> None:
    with pytest.raises(WeightsError, match="names no file"):
        verified(dataclasses.replace(published, files=()))


def test_a_write_that_fails_publishes_nothing_and_may_be_tried_again(store: WeightStore) -> None:
    def fails(folder: Path) -> None:
        (folder / "half.bin").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store.publish(1, 5, 4, fails)
    assert names(store) == ["e000001-v00000005.tmp"]
    manifest = store.publish(1, 5, 4, writes(a=b"x"))
    assert [file.name for file in manifest.files] == ["a.bin"]
    assert names(store) == ["e000001-v00000005"]


def test_nothing_is_visible_while_it_is_written(store: WeightStore) -> None:
    seen: list[list[str]] = []

    def write(folder: Path) -> None:
        (folder / "a.bin").write_bytes(b"x")
        seen.append(names(store))

    store.publish(1, 5, 4, write)
    assert seen == [["e000001-v00000005.tmp"]]


def test_a_version_published_again_replaces_the_first(store: WeightStore, published: WeightManifest) -> None:
    again = store.publish(1, 5, 4, writes(c=b"other"))
    assert [path.read_bytes() for path in verified(again)] == [b"other"]
    with pytest.raises(WeightsError):
        verified(published)


def test_old_versions_are_removed_and_the_others_kept(store: WeightStore) -> None:
    for epoch, version in [(1, 3), (1, 4), (1, 5), (1, 9), (2, 4), (2, 5), (2, 6)]:
        store.publish(epoch, version, version - 1, writes(a=b"x"))
    (store.root / "e000001-v00000002.tmp").mkdir()
    store.remove_older_than(5, epoch=2)
    # of the older epoch only what is newer stays: an actor may still be loading it
    assert names(store) == ["e000001-v00000009", "e000002-v00000005", "e000002-v00000006"]


@pytest.mark.parametrize("stranger", ["eval-v2", "e1-v1", "exports-v00000001", "e000001-v00000001.bak"])
def test_folders_of_others_are_left_alone(store: WeightStore, published: WeightManifest, stranger: str) -> None:
    (store.root / stranger).mkdir()
    store.remove_older_than(100, epoch=9)
    assert names(store) == [stranger]


def test_large_numbers_are_removed_too(store: WeightStore) -> None:
    store.publish(1_000_000, 100_000_000, 99_999_999, writes(a=b"x"))
    store.remove_older_than(100_000_001, epoch=1_000_000)
    assert names(store) == []
