"""Lossless overwrite-differences between two versions of a safetensors file.

For each tensor the elements whose bits differ, as (where, new bits): NaNs, negative zeros and every dtype are just
bits. *Where* is a gap, the number of elements skipped since the one before, in the smallest integer that pays. A gap
too long for it is crossed on *stones*: elements that did not change and are written all the same. A difference carries
the hash of every tensor of its result, so that what it was applied to, and how, is proven afterwards.

At the learning rates of RL few bfloat16 weights move in one step (docs/weights.md has figures).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.errors import WeightsError
from common.folders import in_threads
from common.tensor_file import Bits, TensorFile, tensor_file_writer

KIND: Final = "spark.difference"
"""Metadata key of a difference; the value says from which version to which, and what comes out."""
_SLICE: Final = 1 << 20
"""Elements handled together: what they need fits a core's cache."""
_GAPS: Final = (np.uint8, np.uint16, np.uint32)

Where = NDArray[np.int64]
"""Indices of elements in a flat tensor, ascending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """From one policy version to another, in one learner epoch."""

    epoch: int
    base: int
    version: int


def is_difference(file: TensorFile) -> bool:
    return KIND in file.metadata


def write_difference(base: TensorFile, new: TensorFile, path: Path, step: Step, *, limit: int) -> bool:
    """Write what turns ``base`` into ``new``. Returns False, and writes nothing, where that takes over ``limit`` bytes.

    Both must be laid out alike: ``base.header == new.header``.
    """
    try:
        with tensor_file_writer(path) as file:
            for name, array in _differences(base, new, limit):
                file.add(name, array)
            file.metadata[KIND] = json.dumps({**asdict(step), "hashes": hashes(new)})
    except _TooLarge:
        return False
    return True


class _TooLarge(Exception):
    """The whole file is the better way to say it."""


def changed_share(base: TensorFile, new: TensorFile) -> float:
    """Share of the elements whose bits differ."""
    changed = sum(len(changes(base.bits(name), new.bits(name))) for name in new.places)
    return changed / max(1, sum(len(new.bits(name)) for name in new.places))


def _differences(base: TensorFile, new: TensorFile, limit: int) -> Iterator[tuple[str, Bits]]:
    left = limit
    for name in new.places:
        bits = new.bits(name)
        where = changes(base.bits(name), bits)
        if not len(where):
            continue
        if len(where) * (1 + bits.itemsize) > left:  # before the work of encoding it
            raise _TooLarge
        gaps, where = encoded(where, bits.itemsize)
        yield f"{name}:gaps", gaps
        yield f"{name}:bits", bits[where]
        left -= gaps.nbytes + len(where) * bits.itemsize


def changes(base: Bits, new: Bits) -> Where:
    """Indices of the elements whose bits differ."""
    differs = np.empty(min(_SLICE, len(new)), dtype=np.bool_)
    found = []
    for start in range(0, len(new), _SLICE):
        end = min(start + _SLICE, len(new))
        view = np.not_equal(base[start:end], new[start:end], out=differs[: end - start])
        found.append(np.flatnonzero(view) + start)
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def encoded(where: Where, width: int) -> tuple[Bits, Where]:
    """Gaps, and where they lead: ``where`` and the stones on the way. ``width``: bytes per element."""
    gaps = np.diff(where, prepend=-1) - 1
    costs = {kind: (len(where) + int(_stones(gaps, kind).sum())) * (np.dtype(kind).itemsize + width) for kind in _GAPS}
    kind = min(costs, key=costs.__getitem__)
    where = _with_stones(where, gaps, kind)
    return (np.diff(where, prepend=-1) - 1).astype(kind), where


def _stones(gaps: Where, kind: type[np.unsignedinteger[Any]]) -> Where:
    """How many stones each gap needs: one takes the longest gap and the element that it is."""
    return gaps // (int(np.iinfo(kind).max) + 1)


def _with_stones(where: Where, gaps: Where, kind: type[np.unsignedinteger[Any]]) -> Where:
    counts = _stones(gaps, kind)
    wide = counts > 0
    if not wide.any():
        return where
    counts = counts[wide]
    first = np.repeat(where[wide] - gaps[wide] - 1, counts)  # the element before each gap; -1 before the first
    nth = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + 1
    stones = first + nth * (int(np.iinfo(kind).max) + 1)
    return np.sort(np.concatenate([where, stones]))


# -- the receiving side -----------------------------------------------------------------------------------------


def apply_difference(difference: TensorFile, target: Path, step: Step) -> None:
    """Overwrite, in place, what ``step`` changed. ``check_result`` says whether it is right.

    Raises WeightsError when the difference is not that of ``step`` or does not fit the file, which then is of no use.
    """
    said = _said(difference)
    if (found := Step(**{key: said[key] for key in ("epoch", "base", "version")})) != step:
        raise WeightsError(f"{difference.path} leads {_words(found)}, not {_words(step)}")
    file = TensorFile(target, writable=True)
    for name in said["hashes"]:
        if f"{name}:gaps" not in difference.places:
            continue
        if name not in file.places or f"{name}:bits" not in difference.places:
            raise WeightsError(f"{difference.path} changes tensor {name!r}, which {target} has not")
        _overwrite(file.bits(name), difference.bits(f"{name}:gaps"), difference.bits(f"{name}:bits"), difference.path)


def _overwrite(target: Bits, gaps: Bits, bits: Bits, path: Path) -> None:
    if len(gaps) != len(bits) or bits.dtype != target.dtype:
        raise WeightsError(f"{path} does not fit: {len(gaps)} places, {len(bits)} values of {bits.dtype}")
    last = -1
    for start in range(0, len(gaps), _SLICE):
        where = last + (gaps[start : start + _SLICE].astype(np.int64) + 1).cumsum()
        last = int(where[-1])
        if last >= len(target):
            raise WeightsError(f"{path} does not fit: it changes element {last} of {len(target)}")
        target[where] = bits[start : start + _SLICE]


def check_result(difference: TensorFile, target: Path) -> None:
    """Compare every tensor with the hash that the learner took. Raises WeightsError, naming one that differs."""
    wanted = _said(difference)["hashes"]
    found = hashes(TensorFile(target))
    if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        raise WeightsError(f"{target} differs after {difference.path} in {len(wrong)} tensors, such as {wrong[0]!r}")


def _said(difference: TensorFile) -> dict[str, Any]:
    try:
        said = json.loads(difference.metadata[KIND])
        whole = {key: int(said[key]) for key in ("epoch", "base", "version")}
        return {**whole, "hashes": dict(said["hashes"])}
    except (KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"{difference.path} is no difference: {error!r}") from error


def _words(step: Step) -> str:
    return f"from version {step.base} to {step.version} of epoch {step.epoch}"


def hashes(file: TensorFile) -> dict[str, str]:
    """sha256 of every tensor."""
    names = sorted(file.places, key=lambda name: file.places[name].start - file.places[name].end)  # largest first
    digests = in_threads(lambda name: hashlib.sha256(file.raw(name).data).hexdigest(), names)
    return dict(zip(names, digests, strict=True))
