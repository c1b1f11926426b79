"""A model's versions as an optimizer makes them: a few bits of a few tensors move, the rest stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = "model.safetensors"
SHAPES = {"embed": (40, 16), "layer.q": (16, 16), "layer.norm": (16,)}


def save(path: Path, tensors: dict[str, NDArray[np.uint16]]) -> None:
    """bfloat16, by hand: the library takes none from numpy."""
    entries, data = {}, b""
    for name, bits in tensors.items():
        start, data = len(data), data + bits.tobytes()
        entries[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [start, len(data)]}
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


class Model:
    """``model.write`` is what an engine's ``write_weights`` is."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self.tensors = {n: self._random.integers(0, 2**16, s, dtype=np.uint16) for n, s in SHAPES.items()}
        self.others: dict[str, bytes] = {}

    def step(self, share: float = 0.03) -> Model:
        for bits in self.tensors.values():
            bits ^= (self._random.random(bits.shape) < share).astype(np.uint16)
        return self

    def write(self, folder: Path) -> None:
        save(folder / FILE, self.tensors)
        for name, content in self.others.items():
            (folder / name).write_bytes(content)

    def contents(self, folder: Path) -> dict[str, bytes]:
        """What ``write`` writes, by name; ``folder`` is used for it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.write(folder)
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def flip(path: Path, at: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


Damage = Callable[[Path], None]
DAMAGES: dict[str, Damage] = {
    "flipped": flip,
    "torn": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
}
