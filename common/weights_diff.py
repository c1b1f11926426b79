"""A version as files that turn the version before into it: differences where files are alike, whole files elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from common.deltas import Step, write_difference
from common.tensor_file import SUFFIX, TensorFile

WORTH: Final = 0.5
"""A difference over this share of the whole is not worth what applying it costs."""


class NoDifference(Exception):
    """The version has to be published whole; the text says why."""


def write_differences(base: Path, new: Path, step: Step, folder: Path) -> None:
    """Write to ``folder``, for every file of ``new``, what changed since ``base``.

    Raises NoDifference, and WeightsError when the base is damaged.
    """
    if not base.is_dir():
        raise NoDifference("the learner's copy of the version before is gone")
    names = sorted(path.name for path in new.iterdir())
    if names != sorted(path.name for path in base.iterdir()):
        raise NoDifference("the versions consist of other files")
    whole = sum((new / name).stat().st_size for name in names)
    left = int(WORTH * whole)
    for name in names:
        if not _differs_little(base / name, new / name, folder / name, step, left):
            shutil.copyfile(new / name, folder / name)
        left -= (folder / name).stat().st_size
        if left < 0:
            raise NoDifference(f"what changed takes more than {WORTH:.0%} of {whole} bytes")


def _differs_little(base: Path, new: Path, path: Path, step: Step, limit: int) -> bool:
    """Write the difference of two tensor files of one layout, unless it is over ``limit`` bytes."""
    if new.suffix != SUFFIX:
        return False
    old, fresh = TensorFile(base), TensorFile(new)
    return old.header == fresh.header and write_difference(old, fresh, path, step, limit=limit)
