"""The weight store: complete, hashed files of each published policy version in a directory.

Framework-neutral: the learner's engine writes files into a folder, the actor's engine reads them.
A shared directory, a volume or /dev/shm all serve; the manifest on the ``weights`` stream says where.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from common.errors import WeightsError
from common.folders import sha256, write_folder
from common.messages import WeightFile, WeightManifest

_FOLDER: Final = re.compile(r"e(\d{6,})-v(\d{8,})(\.tmp)?")


class WeightStore:
    """Directory store ``ROOT/e000001-v00000042/``; a version appears by one atomic rename, or not at all."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def publish(self, epoch: int, version: int, parent: int, write: Callable[[Path], None]) -> WeightManifest:
        """Let ``write(folder)`` create the files, hash them, make the folder visible. Returns what to announce."""
        final = self.root / f"e{epoch:06d}-v{version:08d}"
        files = write_folder(final, write, durable=False)  # lost weights are published again from the checkpoint
        return WeightManifest(epoch=epoch, version=version, parent=parent, uri=str(final.absolute()), files=files)

    def remove_older_than(self, version: int, epoch: int) -> None:
        """Delete versions below ``version`` and everything of older epochs' forks that is not newer."""
        for folder in self.root.glob("e*-v*"):
            match = _FOLDER.fullmatch(folder.name)
            if match is None:  # not ours
                continue
            folder_epoch, folder_version = int(match[1]), int(match[2])
            if folder_version < version or (folder_epoch < epoch and folder_version <= version):
                shutil.rmtree(folder, ignore_errors=True)


def verified(manifest: WeightManifest) -> list[Path]:
    """The files of a manifest, each checked in size and hash: safetensors alone accepts a flipped bit.

    Raises WeightsError, naming the file, when one is missing, torn or altered.
    """
    label = f"weights of version {manifest.version}"
    if not manifest.files:
        raise WeightsError(f"{label}: the manifest names no file")
    return [_verified(file, Path(manifest.uri), label) for file in manifest.files]


def _verified(file: WeightFile, folder: Path, label: str) -> Path:
    if file.name in ("", "..") or Path(file.name).name != file.name:
        raise WeightsError(f"{label}: {file.name!r} is not a bare file name")
    path = folder / file.name
    try:
        if not path.is_file():  # reading a device or a pipe may never end
            raise WeightsError(f"{label}: {path} is missing or no regular file")
        size, digest = path.stat().st_size, sha256(path)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{label}: {path} cannot be read: {error}") from error
    if (size, digest) != (file.size, file.sha256):
        raise WeightsError(
            f"{label}: {path} has {size} bytes, sha256 {digest[:12]}…; "
            f"the manifest says {file.size} bytes, {file.sha256[:12]}…"
        )
    return path
