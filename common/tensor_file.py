"""safetensors files as raw bytes: a tensor is a flat array of unsigned integers, whatever its dtype means.

The format (https://huggingface.co/docs/safetensors): 8 bytes N, little-endian; N bytes of JSON that give each tensor's
dtype, shape and place in the data after it. The safetensors package reads it as tensors of a framework; comparing and
overwriting bits needs neither, nor an array library that knows bfloat16.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.errors import WeightsError

SUFFIX: Final = ".safetensors"
_HEADER_LIMIT: Final = 100_000_000
"""Bytes; the safetensors package takes no longer ones either."""
_WIDTHS: Final = {"F16": 2, "BF16": 2, "I16": 2, "U16": 2, "F32": 4, "I32": 4, "U32": 4, "F64": 8, "I64": 8, "U64": 8}
"""Bytes per element; every other dtype is looked at byte by byte."""

Bits = NDArray[Any]
"""Unsigned integers of 1, 2, 4 or 8 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a tensor lies in the data of its file, in bytes."""

    width: int
    start: int
    end: int


class TensorFile:
    """A mapped safetensors file. Views of it stay valid after the object; ``writable`` ones change the file.

    Raises WeightsError for a file that is missing, torn or no safetensors file.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        try:
            self._bytes = np.asarray(np.memmap(path, dtype=np.uint8, mode="r+" if writable else "r"))
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise WeightsError(f"{path} cannot be read: {error}") from error
        length = int.from_bytes(self._bytes[:8].tobytes(), "little")
        if len(self._bytes) < 8 or length > min(_HEADER_LIMIT, len(self._bytes) - 8):
            raise WeightsError(f"{path} is no safetensors file, or torn")
        self.header = self._bytes[8 : 8 + length].tobytes()
        self.metadata, self.places = _parsed(self.header, path)
        self._data = self._bytes[8 + length :]
        if max((place.end for place in self.places.values()), default=0) != len(self._data):
            raise WeightsError(f"{path} is torn: it has {len(self._data)} bytes of data, its header says otherwise")

    def __len__(self) -> int:
        """Bytes."""
        return len(self._bytes)

    def bits(self, name: str) -> Bits:
        """The elements of a tensor as unsigned integers of their width, flat; a view."""
        place = self.places[name]
        return self._data[place.start : place.end].view(f"<u{place.width}")

    def raw(self, name: str) -> NDArray[np.uint8]:
        place = self.places[name]
        return self._data[place.start : place.end]


def _parsed(header: bytes, path: Path) -> tuple[dict[str, str], dict[str, Place]]:
    try:
        entries = json.loads(header)
        metadata = {str(key): str(value) for key, value in entries.pop("__metadata__", {}).items()}
        places = {name: _place(entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} has no valid safetensors header: {error!r}") from error
    return metadata, places


def _place(entry: Mapping[str, Any]) -> Place:
    start, end = entry["data_offsets"]
    width = _WIDTHS.get(entry["dtype"], 1)
    if not 0 <= start <= end or (end - start) % width:
        raise ValueError(f"data_offsets {start}, {end} of dtype {entry['dtype']}")
    if width > 1 and math.prod(entry["shape"]) * width != end - start:
        raise ValueError(f"shape {entry['shape']} in {end - start} bytes")
    return Place(width=width, start=start, end=end)


class TensorWriter:
    """A new safetensors file of flat arrays of unsigned integers; only one of them is in memory at a time."""

    def __init__(self, body: Any) -> None:
        self.metadata: dict[str, str] = {}
        self._body = body
        self._entries: dict[str, Any] = {}

    def add(self, name: str, array: Bits) -> None:
        start = self._body.tell()
        self._body.write(np.ascontiguousarray(array).data)
        offsets = [start, self._body.tell()]
        self._entries[name] = {"dtype": f"U{8 * array.itemsize}", "shape": [len(array)], "data_offsets": offsets}

    def header(self) -> bytes:
        text = json.dumps({"__metadata__": self.metadata, **self._entries}, separators=(",", ":")).encode()
        return text + b" " * (-len(text) % 8)


@contextmanager
def tensor_file_writer(path: Path) -> Iterator[TensorWriter]:
    """Writes ``path`` when the block ends; nothing when it raises."""
    with tempfile.TemporaryFile(dir=path.parent) as body:  # the header comes first, and needs all sizes
        writer = TensorWriter(body)
        yield writer
        header = writer.header()
        body.seek(0)
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            shutil.copyfileobj(body, file, 1 << 20)
