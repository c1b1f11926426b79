"""An actor's own copy of the weights: whole files, overwritten in place by the differences of later versions."""

from __future__ import annotations

import shutil
from pathlib import Path

from common.deltas import Step, apply_difference, check_result, is_difference
from common.errors import WeightsError
from common.messages import WeightFile, WeightLink
from common.tensor_file import SUFFIX, TensorFile
from common.weights import verified, verified_file


class DamagedCopy(WeightsError):
    """What came out of the copy and the differences is not what the learner published."""


class Copy:
    """``link`` says what the bytes are; None where nobody knows, as in the middle of a change."""

    def __init__(self, folder: Path) -> None:
        self.link: WeightLink | None = None
        self._whole = folder / "whole"
        self._incoming = folder / "incoming"

    def emptied(self) -> Path:
        """The folder for an anchor's files."""
        self.link = None
        self.incoming()
        return _empty(self._whole)

    def incoming(self) -> Path:
        """The folder for the files of a difference."""
        return _empty(self._incoming)

    def advance(self, step: Step, link: WeightLink) -> None:
        """Apply the files that came in. Raises WeightsError and changes nothing when they are not those of ``link``;
        DamagedCopy when they do not fit.
        """
        files = verified(link, self._incoming)
        self.link = None
        try:
            for path in files:
                self._overwrite(path, step)
        except WeightsError as error:
            raise DamagedCopy(str(error)) from error
        self.link = link

    def _overwrite(self, path: Path, step: Step) -> None:
        if path.suffix == SUFFIX and is_difference(difference := TensorFile(path)):
            apply_difference(difference, self._whole / path.name, step)
        else:
            shutil.copyfile(path, self._whole / path.name)

    def verified(self) -> list[Path]:
        """All files, every byte of them compared with the learner's hashes. Raises DamagedCopy."""
        link, self.link = self.link, None
        assert link is not None, "nothing was copied"
        try:
            for file in link.files:
                self._check(file, f"copy of the weights of version {link.version}")
        except WeightsError as error:
            raise DamagedCopy(str(error)) from error
        self.link = link
        return sorted(self._whole.iterdir())

    def _check(self, file: WeightFile, label: str) -> None:
        difference = self._incoming / file.name
        if difference.suffix == SUFFIX and difference.is_file() and is_difference(found := TensorFile(difference)):
            check_result(found, self._whole / file.name)
        else:
            verified_file(file, self._whole, label)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()  # not its parents: they are gone when the copy was closed meanwhile
    return folder
