"""The weight store, as an actor sees it: a manifest becomes complete, verified files for its engine.

Whole weights in a directory are verified and read where they lie. Weights behind a URL, and differences, go into a copy
of the actor's own: an anchor is copied, then differences overwrite what changed, in place, and every tensor of the
result is compared with the learner's hash before the engine sees it. Whatever does not fit (a link missed, a delivery
out of order, a flipped bit in the copy itself) makes the copy start again from the anchor; only when that fails too,
something is wrong with what was published.
"""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import structlog

from common.deltas import Step
from common.errors import WeightsError
from common.messages import WeightFile, WeightLink, WeightManifest
from common.remote import Remote
from common.settings import Settings
from common.weights import bare, verified
from common.weights_cache import OwnFolder, default_directory
from common.weights_copy import Copy, DamagedCopy

log = structlog.get_logger()


class WeightSource:
    """``fetch`` gives files that are valid until it is called again. Folders appear when the first copy is made."""

    def __init__(self, *, remote: Remote | None = None, cache_dir: Path | None = None) -> None:
        self._remote = remote
        self._cache_dir = cache_dir or default_directory()
        self._folder: OwnFolder | None = None
        self._copy: Copy | None = None

    @classmethod
    def of(cls, settings: Settings) -> WeightSource:
        """Raises SettingsError when ``weights.url`` cannot be used here."""
        remote = Remote(settings.weights.url, settings.run.name) if settings.weights.url else None
        return cls(remote=remote, cache_dir=settings.weights.cache_dir)

    def at_hand(self, manifest: WeightManifest) -> bool:
        """Whether the files are complete where they lie, and need no copy."""
        return not manifest.chain and not _is_url(manifest.uri)

    def fetch(self, manifest: WeightManifest) -> list[Path]:
        """Complete files of these weights, each verified. Raises WeightsError, naming what is wrong."""
        if self.at_hand(manifest):
            return verified(manifest)
        if not manifest.files:
            raise WeightsError(f"weights of version {manifest.version}: the manifest names no file")
        try:
            copy = self._opened()
            known = copy.link in manifest.links
            try:
                return self._brought(copy, manifest)
            except DamagedCopy as error:
                if not known:  # it came from the anchor just now
                    raise
                log.warning("weights.copy_started_again", reason=str(error), policy_version=manifest.version)
                return self._brought(copy, manifest)
        except OSError as error:  # no room, for example
            raise WeightsError(f"weights of version {manifest.version}: no copy can be made: {error}") from error

    def close(self) -> None:
        """Remove the copy."""
        if self._folder is not None:
            self._folder.close()
        self._folder = self._copy = None

    def _opened(self) -> Copy:
        if self._copy is None:
            self._folder = OwnFolder(self._cache_dir)
            self._copy = Copy(self._folder.path)
        return self._copy

    def _brought(self, copy: Copy, manifest: WeightManifest) -> list[Path]:
        """The copy, moved on to a version; from its anchor where it stands on no link of the chain."""
        links = manifest.links
        if copy.link not in links:
            folder = copy.emptied()
            for file in links[0].files:
                self._obtain(links[0], file, folder)
            copy.link = links[0]
        for base, link in pairwise(links[links.index(copy.link) :]):
            folder = copy.incoming()
            for file in link.files:
                self._obtain(link, file, folder)
            copy.advance(Step(epoch=manifest.epoch, base=base.version, version=link.version), link)
        return copy.verified()

    def _obtain(self, link: WeightLink, file: WeightFile, folder: Path) -> None:
        """Copy a file, unchecked. Raises WeightsError."""
        label = f"weights of version {link.version}"
        target = folder / bare(file.name, label)
        if not _is_url(link.uri):
            source = Path(link.uri) / file.name
            if not source.is_file():
                raise WeightsError(f"{label}: {source} is missing or no regular file")
            shutil.copyfile(source, target)
        elif self._remote is None:
            raise WeightsError(f"{label} are at {link.uri}, and this actor has no weights.url; set the learner's")
        else:
            self._remote.download(link, file.name, target)


def _is_url(uri: str) -> bool:
    return "://" in uri
