"""Tensors that are written and read one at a time: the same files as those that are written together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from learner.shards import Shards, ShardWriter
from learner.tensor_files import read_tensors, write_tensors

TENSORS = {f"t{index}": torch.arange(10.0 * index, 10.0 * index + 10) for index in range(5)}
SIZES = {name: tensor.nbytes for name, tensor in TENSORS.items()}


def write(folder: Path, most: int) -> list[str]:
    writer = ShardWriter(folder, "model", SIZES, most=most)
    for name, tensor in TENSORS.items():
        writer.add(name, tensor)
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("most", [10_000, 80, 40, 1])
def test_the_files_are_those_of_write_tensors(tmp_path: Path, most: int) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    names = write(one, most)
    write_tensors(TENSORS, other, "model", most=most)
    assert names == sorted(path.name for path in other.iterdir())
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)
    found = dict(read_tensors(one, "model"))
    assert found.keys() == TENSORS.keys()
    with Shards.of(other, "model") as shards:
        assert shards.shapes() == dict.fromkeys(TENSORS, (10,))
        assert all(torch.equal(shards[name], tensor) for name, tensor in TENSORS.items())
        assert "t0" in shards
        assert "t5" not in shards


def test_a_full_file_is_written_before_the_next_tensor_comes(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "model", SIZES, most=80)
    writer.add("t0", TENSORS["t0"])
    assert list(tmp_path.iterdir()) == []
    writer.add("t1", TENSORS["t1"])
    assert [path.name for path in tmp_path.iterdir()] == ["model-00001-of-00003.safetensors"]


def test_no_tensors_are_an_empty_file(tmp_path: Path) -> None:
    ShardWriter(tmp_path, "optimizer", {})
    with Shards.of(tmp_path, "optimizer") as shards:
        assert shards.shapes() == {}


def test_what_cannot_be_written_or_read_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"model\.safetensors cannot be written"):
        ShardWriter(tmp_path / "nowhere", "model", {})
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"), Shards.of(tmp_path, "model"):
        pass
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(OSError, match="cannot be read"), Shards.of(tmp_path, "model"):
        pass
