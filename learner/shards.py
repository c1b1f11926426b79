"""The files of ``learner.tensor_files``, written and read one tensor at a time.

For tensors that come one after another and never are in memory together: gathered from many ranks, or broadcast to
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from learner.tensor_files import SHARD_BYTES


class ShardWriter:
    """A file is written as soon as its last tensor is there, and its tensors are let go."""

    def __init__(self, folder: Path, stem: str, sizes: Mapping[str, int], most: int = SHARD_BYTES) -> None:
        """``sizes``: bytes of every tensor that will be added, in that order. ``most``: of one file.

        Without any, an empty file is written at once: a reader wants one. Raises OSError as ``add`` does.
        """
        parts = _parts(sizes, most)
        names = [f"{stem}-{number:05d}-of-{len(parts):05d}" for number in range(1, len(parts) + 1)]
        paths = [folder / f"{name}.safetensors" for name in (names if len(parts) > 1 else [stem])]
        self._path_after = {part[-1]: path for part, path in zip(parts, paths, strict=True) if part}
        self._held: dict[str, Tensor] = {}
        if not sizes:
            self._write(paths[0])

    def add(self, name: str, tensor: Tensor) -> None:
        """``tensor``: on the host, and nobody's to change. Raises OSError, on a full disk among others."""
        self._held[name] = tensor.contiguous()
        if name in self._path_after:
            self._write(self._path_after[name])

    def _write(self, path: Path) -> None:
        try:
            save_file(self._held, path)
        except SafetensorError as error:  # its own error for a full disk, among others
            raise OSError(f"{path} cannot be written: {error}") from error
        self._held = {}


def _parts(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names per file, in order."""
    parts: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if parts[-1] and held + size > most:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += size
    return parts


class Shards:
    """Tensors of such files by name, read when asked for."""

    def __init__(self, files: Mapping[str, Any]) -> None:
        self._files = files

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self._files.items()}

    @classmethod
    @contextmanager
    def of(cls, folder: Path, stem: str) -> Iterator[Self]:
        """Raises OSError when a file cannot be read, or there is none."""
        paths = sorted([*folder.glob(f"{stem}.safetensors"), *folder.glob(f"{stem}-*-of-*.safetensors")])
        if not paths:
            raise FileNotFoundError(f"{folder} holds no {stem}.safetensors")
        with ExitStack() as opened:
            files: dict[str, Any] = {}
            for path in paths:
                try:
                    file: Any = opened.enter_context(safe_open(path, framework="pt"))
                except SafetensorError as error:
                    raise OSError(f"{path} cannot be read: {error}") from error
                files |= dict.fromkeys(file.keys(), file)
            yield cls(files)
