"""The weight store, as the learner sees it: complete, hashed versions in a directory, or behind a URL.

Framework-neutral: the learner's engine writes files into a folder, the actor's engine reads them. A shared directory, a
volume or /dev/shm serves as it is; an object store gets copies. With ``anchor_every`` above 1 most versions are stored
as differences to the one before. The manifest on the ``weights`` stream says what a version consists of, and where.
``weights_source.py`` is the actor's side, docs/weights.md the whole way.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from common.deltas import Step
from common.errors import WeightsError
from common.folders import in_threads, sha256, write_folder
from common.messages import WeightFile, WeightLink, WeightManifest
from common.remote import Remote
from common.settings import Settings
from common.weights_diff import NoDifference, write_differences

log = structlog.get_logger()

_FOLDER: Final = re.compile(r"e(\d{6,})-v(\d{8,})(\.tmp|\.whole)?")
_WHOLE: Final = ".whole"
"""Suffix of the learner's own copy of a version that it published as a difference: the base of the next."""

Write = Callable[[Path], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What the next version may be a difference to."""

    manifest: WeightManifest
    whole: Path
    """Folder with all of its bytes."""


class WeightStore:
    """Directory ``ROOT/e000001-v00000042/``; a version appears by one atomic rename, or not at all.

    With a ``remote`` versions are copied there, and ``root`` keeps only what the next difference needs.
    """

    def __init__(self, root: Path, *, anchor_every: int = 1, remote: Remote | None = None) -> None:
        self.root = root
        self._anchor_every = anchor_every
        self._remote = remote
        self._newest: _Written | None = None
        self._anchors: list[int] = []

    @classmethod
    def of(cls, settings: Settings) -> WeightStore:
        """Raises SettingsError when ``weights.url`` cannot be written from here."""
        weights = settings.weights
        remote = Remote(weights.url, settings.run.name, writing=True) if weights.url else None
        return cls(settings.weights_dir, anchor_every=weights.anchor_every, remote=remote)

    def publish(self, epoch: int, version: int, parent: int, write: Write, *, whole: bool = False) -> WeightManifest:
        """Let ``write(folder)`` create the files, hash them, make them visible. Returns what to announce.

        ``whole``: not as a difference, whatever the settings. Raises OSError, on a full disk among others.
        """
        final = self.root / f"e{epoch:06d}-v{version:08d}"
        chain: tuple[WeightLink, ...] = ()
        base = None
        if self._anchor_every == 1:
            files = write_folder(final, write, durable=False)  # lost weights are published again from the checkpoint
        else:
            fresh = _written(final.with_name(final.name + _WHOLE), write)
            step = Step(epoch=epoch, base=parent, version=version)
            if not whole and (difference := self._as_difference(fresh, final, step)):
                files, chain = difference
                base = fresh
            else:
                files = write_folder(final, partial(_move, fresh), durable=False)
                base = final
        uri = self._remote.upload(final) if self._remote else str(final.absolute())
        manifest = WeightManifest(epoch=epoch, version=version, parent=parent, uri=uri, files=files, chain=chain)
        self._newest = _Written(manifest=manifest, whole=base) if base else None
        self._anchors += [version] if base and not chain else []
        self._tidy(epoch)
        return manifest

    def check(self, manifest: WeightManifest) -> None:
        """Read all that a manifest names. Raises WeightsError when something is missing, torn or altered."""
        for link in manifest.links:
            if self._remote is None:
                verified(link)
            else:
                self._remote.check(link, verified)

    def remove_older_than(self, version: int, epoch: int) -> None:
        """Delete versions below ``version`` and everything of older epochs' forks that is not newer.

        What ``version`` is a difference to stays, back to its anchor.
        """
        oldest = max((anchor for anchor in self._anchors if anchor <= version), default=version)
        self._anchors = [anchor for anchor in self._anchors if anchor >= oldest]
        for name in self._stored():
            match = _FOLDER.fullmatch(name)
            if match is None:  # not ours
                continue
            folder_epoch, folder_version = int(match[1]), int(match[2])
            if folder_version < oldest or (folder_epoch < epoch and folder_version <= version):
                self._remove(name)

    def _as_difference(
        self, fresh: Path, final: Path, step: Step
    ) -> tuple[tuple[WeightFile, ...], tuple[WeightLink, ...]] | None:
        """Files with what changed since the newest version, and their chain; None where they must be whole.

        The first version of an epoch is: what another learner published may be no ancestor of it.
        """
        newest = self._newest
        if newest is None or (newest.manifest.epoch, newest.manifest.version) != (step.epoch, step.base):
            return None
        if step.version <= step.base or len(newest.manifest.links) >= self._anchor_every:
            return None
        try:
            files = write_folder(final, partial(write_differences, newest.whole, fresh, step), durable=False)
        except NoDifference as reason:
            log.info("weights.published_whole", policy_version=step.version, reason=str(reason))
        except WeightsError as error:  # of the base: somebody has altered it
            log.warning("weights.published_whole", policy_version=step.version, reason=str(error))
        else:
            return files, newest.manifest.links
        return None

    def _tidy(self, epoch: int) -> None:
        """Remove bytes that only differences needed, and local ones of what is elsewhere now."""
        base = self._newest.whole.name if self._newest else ""
        for name in _names(self.root):
            match = _FOLDER.fullmatch(name)
            if match is None or int(match[1]) > epoch or name == base:  # a newer learner's, if this one is fenced
                continue
            if match[3] == _WHOLE or self._remote:
                shutil.rmtree(self.root / name, ignore_errors=True)

    def _stored(self) -> list[str]:
        if self._remote is None:
            return _names(self.root)
        try:
            return self._remote.names()
        except OSError as error:  # old versions cost room, and are looked for again with the next one
            log.warning("weights.not_removed", reason=str(error))
            return []

    def _remove(self, name: str) -> None:
        if self._remote is None:
            shutil.rmtree(self.root / name, ignore_errors=True)
            return
        try:
            self._remote.remove(name)
        except OSError as error:
            log.warning("weights.not_removed", folder=name, reason=str(error))


def _names(root: Path) -> list[str]:
    return [path.name for path in root.glob("e*-v*")]


def _written(folder: Path, write: Write) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write(folder)
    return folder


def _move(source: Path, folder: Path) -> None:
    for path in source.iterdir():
        path.rename(folder / path.name)
    source.rmdir()


def verified(link: WeightManifest | WeightLink, folder: Path | None = None) -> list[Path]:
    """The files that a version published, each checked in size and hash: safetensors alone accepts a flipped bit.

    ``folder``: where they lie, if not at the link's own path. Raises WeightsError, naming the file, when one is
    missing, torn or altered.
    """
    label = f"weights of version {link.version}"
    if not link.files:
        raise WeightsError(f"{label}: the manifest names no file")
    return in_threads(lambda file: verified_file(file, folder or Path(link.uri), label), link.files)


def verified_file(file: WeightFile, folder: Path, label: str) -> Path:
    path = folder / bare(file.name, label)
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


def bare(name: str, label: str) -> str:
    """A file name that leads nowhere else. Raises WeightsError."""
    if name in ("", "..") or Path(name).name != name:
        raise WeightsError(f"{label}: {name!r} is not a bare file name")
    return name
