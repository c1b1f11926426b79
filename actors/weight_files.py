"""Published weights as named tensors: safetensors files, names as in Hugging Face, tied weights once.

The one place where files become tensors, for both engines: what is to be merged into base weights is merged here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from common.errors import WeightsError

Shapes = Mapping[str, tuple[int, ...]]


def named_tensors(files: Sequence[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor, on the CPU, one at a time. Raises SafetensorError or OSError for a file that is none."""
    for path in files:
        with safe_open(path, framework="pt") as opened:
            for name in opened.offset_keys():
                yield name, opened.get_tensor(name)


def check_fit(files: Sequence[Path], expected: Shapes, policy_version: int) -> None:
    """Raise WeightsError unless the files hold the expected names and shapes, each once. Reads headers only."""
    try:
        problem = misfit(_shapes(files), expected)
    except (OSError, ValueError, SafetensorError) as error:
        problem = str(error)
    if problem:
        raise WeightsError(f"weights of version {policy_version} do not load: {problem}")


def misfit(shapes: Shapes, expected: Shapes) -> str:
    """Why tensors of these shapes are not a whole set of weights; empty if they are."""
    if missing := expected.keys() - shapes.keys():
        return f"{len(missing)} tensors are missing, for example {min(missing)}"
    if unknown := shapes.keys() - expected.keys():
        return f"{len(unknown)} tensors are unknown, for example {min(unknown)}"
    for name, shape in expected.items():
        if shapes[name] != shape:
            return f"{name} has shape {list(shapes[name])}, the model's is {list(shape)}"
    return ""


def _shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with safe_open(path, framework="pt") as opened:
            for name in opened.offset_keys():
                if name in shapes:
                    raise ValueError(f"{name} comes twice")
                shapes[name] = tuple(opened.get_slice(name).get_shape())
    return shapes
