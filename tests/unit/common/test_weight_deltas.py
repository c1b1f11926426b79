"""Differences between versions: every bit comes back, whatever it means, and nothing else is accepted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from common import deltas
from common.deltas import Step, apply_difference, changes, check_result, encoded, hashes, write_difference
from common.errors import WeightsError
from common.tensor_file import TensorFile

STEP = Step(epoch=1, base=4, version=5)
DTYPES = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32, "F64": np.uint64, "I8": np.uint8}
NO_LIMIT = 10**9


def write(path: Path, tensors: dict[str, tuple[str, NDArray]], padding: int = 0) -> Path:
    """A safetensors file by hand: the library takes no bfloat16 from numpy."""
    entries, data = {}, b""
    for name, (dtype, array) in tensors.items():
        start, data = len(data), data + array.tobytes()
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, len(data)]}
    header = json.dumps(entries).encode() + b" " * padding
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def difference(base: Path, new: Path, step: Step = STEP, limit: int = NO_LIMIT) -> TensorFile:
    path = new.with_name("difference.safetensors")
    assert write_difference(TensorFile(base), TensorFile(new), path, step, limit=limit)
    return TensorFile(path)


@st.composite
def two_versions(draw: st.DrawFn) -> tuple[dict[str, tuple[str, NDArray]], dict[str, tuple[str, NDArray]]]:
    """Random bits are NaNs with payloads, infinities, denormals and both zeros, too."""
    base, new = {}, {}
    for index in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from(sorted(DTYPES)))
        kind = DTYPES[dtype]
        size = draw(st.sampled_from([0, 1, 7, 300, 70_000]))
        random = np.random.default_rng(draw(st.integers(0, 2**32)))
        before = random.integers(0, np.iinfo(kind).max, size, dtype=kind, endpoint=True)
        after = before.copy()
        changed = random.random(size) < draw(st.sampled_from([0.0, 0.0001, 0.02, 1.0]))
        after[changed] = random.integers(0, np.iinfo(kind).max, changed.sum(), dtype=kind, endpoint=True)
        base[f"t{index}"], new[f"t{index}"] = (dtype, before), (dtype, after)
    return base, new


@settings(max_examples=60, deadline=None)
@given(versions=two_versions(), padding=st.integers(0, 7))
def test_every_bit_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    versions: tuple[dict[str, tuple[str, NDArray]], dict[str, tuple[str, NDArray]]],
    padding: int,
) -> None:
    folder = tmp_path_factory.mktemp("versions")
    base, new = (write(folder / f"{n}.safetensors", v, padding) for n, v in zip("ab", versions, strict=True))
    found = difference(base, new)
    apply_difference(found, base, STEP)
    assert base.read_bytes() == new.read_bytes()
    check_result(found, base)


BF16_NAN, BF16_OTHER_NAN, BF16_ZERO, BF16_MINUS_ZERO = 0x7FC0, 0x7FC1, 0x0000, 0x8000


@pytest.mark.parametrize(("before", "after"), [(BF16_NAN, BF16_OTHER_NAN), (BF16_ZERO, BF16_MINUS_ZERO)])
def test_values_that_compare_strangely_are_bits_like_any_other(tmp_path: Path, before: int, after: int) -> None:
    base = write(tmp_path / "a.safetensors", {"w": ("BF16", np.full(100, before, dtype=np.uint16))})
    bits = np.full(100, before, dtype=np.uint16)
    bits[7] = after
    new = write(tmp_path / "b.safetensors", {"w": ("BF16", bits)})
    found = difference(base, new)
    assert [found.bits("w:gaps").tolist(), found.bits("w:bits").tolist()] == [[7], [after]]
    apply_difference(found, base, STEP)
    assert base.read_bytes() == new.read_bytes()


def test_a_nan_that_stays_is_no_change(tmp_path: Path) -> None:
    bits = {"w": ("F32", np.full(10, 0x7FC00001, dtype=np.uint32))}
    found = difference(write(tmp_path / "a.safetensors", bits), write(tmp_path / "b.safetensors", bits))
    assert found.places == {}


@given(st.sets(st.integers(0, 400_000), min_size=1, max_size=50), st.sampled_from([1, 2, 4, 8]))
def test_gaps_lead_to_every_changed_element(indices: set[int], width: int) -> None:
    where = np.array(sorted(indices), dtype=np.int64)
    gaps, reached = encoded(where, width)
    assert set(where.tolist()) <= set(reached.tolist())
    np.testing.assert_array_equal((gaps.astype(np.int64) + 1).cumsum() - 1, reached)


@pytest.mark.parametrize(("share", "kind"), [(0.05, np.uint8), (0.0005, np.uint16), (1e-6, np.uint32)])
def test_gaps_take_the_integer_that_pays(share: float, kind: type) -> None:
    count = 20_000_000 if share < 1e-5 else 2_000_000
    where = np.flatnonzero(np.random.default_rng(0).random(count) < share)
    gaps, reached = encoded(where, 2)
    assert gaps.dtype == kind
    least = min(len(where) * (np.dtype(k).itemsize + 2) for k in (np.uint16, np.uint32))
    assert gaps.nbytes + 2 * len(reached) <= least or kind is not np.uint8


def test_changes_are_found_across_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas, "_SLICE", 10)
    base = np.arange(35, dtype=np.uint16)
    new = base.copy()
    new[[0, 9, 10, 29, 34]] += 1
    assert changes(base, new).tolist() == [0, 9, 10, 29, 34]


def test_it_is_applied_across_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas, "_SLICE", 10)
    random = np.random.default_rng(0)
    base = write(tmp_path / "a.safetensors", {"w": ("F32", random.integers(0, 9, 1000, dtype=np.uint32))})
    new = write(tmp_path / "b.safetensors", {"w": ("F32", random.integers(0, 9, 1000, dtype=np.uint32))})
    apply_difference(difference(base, new), base, STEP)
    assert base.read_bytes() == new.read_bytes()


def test_one_that_is_too_large_is_not_written(tmp_path: Path) -> None:
    base = write(tmp_path / "a.safetensors", {"w": ("BF16", np.zeros(1000, dtype=np.uint16))})
    new = write(tmp_path / "b.safetensors", {"w": ("BF16", np.ones(1000, dtype=np.uint16))})
    path = tmp_path / "difference.safetensors"
    assert not write_difference(TensorFile(base), TensorFile(new), path, STEP, limit=2999)
    assert not path.exists()
    assert write_difference(TensorFile(base), TensorFile(new), path, STEP, limit=3000)


def test_the_limit_is_that_of_all_tensors_together(tmp_path: Path) -> None:
    tensors = {"a": ("BF16", np.zeros(1000, dtype=np.uint16)), "b": ("BF16", np.zeros(1000, dtype=np.uint16))}
    base = write(tmp_path / "a.safetensors", tensors)
    new = write(tmp_path / "b.safetensors", {name: ("BF16", bits + 1) for name, (_, bits) in tensors.items()})
    path = tmp_path / "difference.safetensors"
    assert not write_difference(TensorFile(base), TensorFile(new), path, STEP, limit=5999)
    assert write_difference(TensorFile(base), TensorFile(new), path, STEP, limit=6000)


# -- what is refused ------------------------------------------------------------------------------------------


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Path, Path]:
    random = np.random.default_rng(0)
    before = random.integers(0, 2**16, 5000, dtype=np.uint16)
    after = before.copy()
    after[::50] ^= 1
    tied = random.integers(0, 2**32, 64, dtype=np.uint32)
    base = write(tmp_path / "a.safetensors", {"w": ("BF16", before), "still": ("F32", tied)})
    return base, write(tmp_path / "b.safetensors", {"w": ("BF16", after), "still": ("F32", tied)})


@pytest.mark.parametrize(
    "step", [Step(epoch=2, base=4, version=5), Step(epoch=1, base=3, version=5), Step(epoch=1, base=4, version=6)]
)
def test_a_difference_for_another_step_is_refused_and_nothing_changes(versions: tuple[Path, Path], step: Step) -> None:
    base, new = versions
    before = base.read_bytes()
    with pytest.raises(WeightsError, match="leads from version 4 to 5 of epoch 1, not from"):
        apply_difference(difference(base, new), base, step)
    assert base.read_bytes() == before


@pytest.mark.parametrize("name", ["w", "still"])
def test_another_base_shows_in_the_result(versions: tuple[Path, Path], name: str) -> None:
    base, new = versions
    found = difference(base, new)
    TensorFile(base, writable=True).bits(name)[1] ^= 4  # of an element that the difference leaves alone
    apply_difference(found, base, STEP)
    with pytest.raises(WeightsError, match=f"differs after .* in 1 tensors, such as '{name}'"):
        check_result(found, base)


def test_a_difference_of_another_model_is_refused(versions: tuple[Path, Path], tmp_path: Path) -> None:
    found = difference(*versions)
    shorter = write(tmp_path / "c.safetensors", {"w": ("BF16", np.zeros(10, dtype=np.uint16))})
    with pytest.raises(WeightsError, match="it changes element"):
        apply_difference(found, shorter, STEP)
    wider = write(tmp_path / "c.safetensors", {"w": ("F32", np.zeros(5000, dtype=np.uint32))})
    with pytest.raises(WeightsError, match="values of uint16"):
        apply_difference(found, wider, STEP)
    other = write(tmp_path / "c.safetensors", {"v": ("BF16", np.zeros(5000, dtype=np.uint16))})
    with pytest.raises(WeightsError, match="changes tensor 'w'"):
        apply_difference(found, other, STEP)
    with pytest.raises(WeightsError, match=r"differs after .* in 3 tensors"):
        check_result(found, other)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_torn_file_is_no_tensor_file(versions: tuple[Path, Path], keep: int) -> None:
    base, _ = versions
    base.write_bytes(base.read_bytes()[:keep])
    with pytest.raises(WeightsError):
        TensorFile(base)


@pytest.mark.parametrize(
    "entries",
    [
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 7]}},
        {"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
        {"w": {"shape": [2], "data_offsets": [0, 8]}},
        {"w": 3},
        [],
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, entries: object) -> None:
    header = json.dumps(entries).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(WeightsError, match=r"torn|no valid"):
        TensorFile(path)


def test_what_the_library_writes_is_read_and_the_other_way_round(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {"odd": random.integers(0, 9, 3, dtype=np.uint8), "w": random.random((4, 5), dtype=np.float32)}
    base, new = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(arrays, base)
    save_file({**arrays, "w": arrays["w"] * np.float32(1.5)}, new)
    found = difference(base, new)
    assert load_file(found.path)["w:bits"].dtype == np.uint32
    apply_difference(found, base, STEP)
    np.testing.assert_array_equal(load_file(base)["w"], arrays["w"] * np.float32(1.5))


def test_every_tensor_has_its_own_hash(versions: tuple[Path, Path]) -> None:
    before, after = (hashes(TensorFile(path)) for path in versions)
    assert {name for name in before if before[name] != after[name]} == {"w"}
