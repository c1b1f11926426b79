"""Weights behind a URL: an object store or a shared folder, through fsspec (https://filesystem-spec.readthedocs.io).

Credentials come the way each backend documents (environment, ~/.aws, ~/.config/fsspec), never in the URL: the URL is
announced in manifests and logged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from common.errors import SettingsError, WeightsError
from common.messages import WeightLink

_READ_ONLY: Final = ("http", "https")
_RENAMING: Final = ("file", "local")
"""Where a folder can be renamed in one step. An object store has objects only, each complete or not there."""


class Remote:
    """Folders of files below ``URL/RUN``. Every failure of a backend is an OSError."""

    def __init__(self, url: str, run: str, *, writing: bool = False) -> None:
        """Raises SettingsError for a URL that cannot be used here, and says what to install."""
        self.url = f"{url.rstrip('/')}/{run}"
        scheme = url.partition("://")[0]
        if writing and scheme in _READ_ONLY:
            raise SettingsError(
                f"weights.url={url!r} can be read only; give the learner the URL of the store behind it"
            )
        self._fs, self._base = _file_system(self.url, scheme)
        self._renames = scheme in _RENAMING

    def upload(self, folder: Path) -> str:
        """Copy a folder's files; returns its URL. Nobody looks for them before they are announced.

        In a shared folder they appear by one rename, in an object store one by one, each complete.
        """
        final = f"{self._base}/{folder.name}"
        target = f"{final}.tmp" if self._renames else final
        with _os_errors(f"{self.url}/{folder.name} cannot be written"):
            for place in {target, final}:
                if self._fs.exists(place):
                    self._fs.rm(place, recursive=True)
            self._fs.makedirs(target, exist_ok=True)
            for path in sorted(folder.iterdir()):
                self._fs.put_file(str(path), f"{target}/{path.name}")
            if target != final:
                self._fs.mv(target, final, recursive=True)
        return f"{self.url}/{folder.name}"

    def download(self, link: WeightLink, name: str, target: Path) -> None:
        """Copy one file of a version, unchecked.

        A manifest says which folder; where folders lie is this process's own setting, which may be another way to
        the same store. Raises WeightsError.
        """
        folder = link.uri.rstrip("/").rpartition("/")[2]
        label = f"weights of version {link.version}: {self.url}/{folder}/{name}"
        try:
            with _os_errors("it cannot be read"):
                self._fs.get_file(f"{self._base}/{folder}/{name}", str(target))
        except OSError as error:
            raise WeightsError(f"{label}: {error}") from error

    def check(self, link: WeightLink, verified: Callable[[WeightLink, Path], Any]) -> None:
        """Read a version's files once and let ``verified`` judge them. Raises WeightsError."""
        with tempfile.TemporaryDirectory(prefix="spark-check-") as folder:
            for file in link.files:
                self.download(link, file.name, Path(folder) / file.name)
            verified(link, Path(folder))

    def names(self) -> list[str]:
        """Of the folders that are there. Raises OSError."""
        with _os_errors(f"{self.url} cannot be listed"):
            self._fs.invalidate_cache()
            return [str(path).rstrip("/").rpartition("/")[2] for path in self._fs.ls(self._base, detail=False)]

    def remove(self, name: str) -> None:
        with _os_errors(f"{self.url}/{name} cannot be removed"):
            self._fs.rm(f"{self._base}/{name}", recursive=True)


def _file_system(url: str, scheme: str) -> tuple[Any, str]:
    import fsspec  # a quarter of a second that only its users need

    try:
        fs, base = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise SettingsError(
            f"weights.url: {scheme} needs a package that is not installed: {error} "
            f"(s3fs and gcsfs in the version of fsspec, {fsspec.__version__})"
        ) from error
    except ValueError as error:
        raise SettingsError(f"weights.url={url!r} cannot be used: {error}") from error
    return fs, str(base).rstrip("/")


@contextmanager
def _os_errors(what: str) -> Iterator[None]:
    """Backends raise whatever their client library raises."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{what}: {type(error).__name__}: {error}") from error
