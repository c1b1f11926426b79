"""How large a difference is after a real optimizer step: AdamW on float32 master weights, published in bfloat16."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import save_file

from bench.random_llama import VOCABULARY, config_of, random_llama
from common.deltas import changes
from common.tensor_file import TensorFile
from common.weights import WeightStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    changed: float
    """Share of the elements whose bits differ after a step."""
    size: float
    """Of the difference, over those of the whole version."""
    first_size: float
    """The same for the first step, in which AdamW moves every weight by the whole learning rate."""


def size_of_differences(lr: float, *, megabytes: int = 40, steps: int = 6) -> Size:
    """Means over ``steps`` after the first. The model: typical initialisation, next-token loss on random tokens."""
    model = random_llama(config_of(megabytes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        store = WeightStore(Path(folder), anchor_every=steps + 2)
        published = [_publish(store, model, 0)]
        for step in range(1, steps + 2):
            _step(model, optimizer, generator)
            published.append(_publish(store, model, step))
    whole = published[0][0]
    changed = [share for _, share in published[2:]]
    sizes = [size / whole for size, _ in published[1:]]
    return Size(changed=fmean(changed), size=fmean(sizes[1:]), first_size=sizes[0])


def _step(model: Any, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
    tokens = torch.randint(VOCABULARY, (4, 32), generator=generator)
    model(input_ids=tokens, labels=tokens).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _publish(store: WeightStore, model: Any, version: int) -> tuple[int, float]:
    """Bytes published, and the share of changed elements."""
    before = store.root / f"e000001-v{version - 1:08d}.whole" / "model.safetensors"
    if version == 1:
        before = store.root / "e000001-v00000000" / "model.safetensors"
    share = 0.0

    def write(folder: Path) -> None:
        nonlocal share
        tensors = {name: parameter.detach().to(torch.bfloat16) for name, parameter in model.named_parameters()}
        save_file(tensors, folder / "model.safetensors")
        if before.is_file():
            share = changed_share(TensorFile(before), TensorFile(folder / "model.safetensors"))

    manifest = store.publish(1, version, version - 1, write)
    return sum(file.size for file in manifest.files), share


def changed_share(base: TensorFile, new: TensorFile) -> float:
    changed = sum(len(changes(base.bits(name), new.bits(name))) for name in new.places)
    return changed / sum(len(new.bits(name)) for name in new.places)
