"""Named tensors in a folder, as safetensors files of bounded size: nothing that a loader would have to execute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

SHARD_BYTES: Final = 2 * 10**9
"""Of one file at most, unless it is one tensor: what is held in memory twice while it is written."""


def write_tensors(
    tensors: Mapping[str, Tensor], folder: Path, stem: str, dtype: torch.dtype | None = None, most: int = SHARD_BYTES
) -> None:
    """``STEM.safetensors``, or ``STEM-00001-of-00003.safetensors`` and so on. ``dtype``: floats are cast to it.

    Raises OSError, a full disk among others, which safetensors has its own error for.
    """
    parts = list(_parts(tensors, dtype, most))
    for index, names in enumerate(parts):
        path = folder / (f"{stem}-{index + 1:05d}-of-{len(parts):05d}" if len(parts) > 1 else stem)
        part = {name: _cast(tensors[name], dtype).contiguous() for name in names}
        try:
            save_file(part, path := path.with_name(path.name + ".safetensors"))
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error


def read_tensors(folder: Path, stem: str) -> Iterator[tuple[str, Tensor]]:
    """What ``write_tensors`` wrote, one file in memory at a time. Raises FileNotFoundError when there is none."""
    paths = sorted([*folder.glob(f"{stem}.safetensors"), *folder.glob(f"{stem}-*-of-*.safetensors")])
    if not paths:
        raise FileNotFoundError(f"{folder} holds no {stem}.safetensors")
    for path in paths:
        yield from load_file(path).items()


def _parts(tensors: Mapping[str, Tensor], dtype: torch.dtype | None, most: int) -> Iterable[list[str]]:
    """Names per file, in order."""
    part: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        of_tensor = tensor.numel() * (dtype.itemsize if dtype and tensor.is_floating_point() else tensor.element_size())
        if part and size + of_tensor > most:
            yield part
            part, size = [], 0
        part.append(name)
        size += of_tensor
    yield part


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
