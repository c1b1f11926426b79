"""The weight store as an actor of a LoRA run sees it: what comes is an adapter, what its engine is given is merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from actors.adapters import merged
from actors.fetching import Source
from actors.weight_files import named_tensors
from common.errors import WeightsError
from common.messages import WeightManifest
from common.pretrained import pretrained
from common.settings import Model, Settings
from common.weights_cache import OwnFolder, default_directory
from common.weights_source import WeightSource


def open_source(settings: Settings) -> Source:
    """Where this actor's weights come from. Raises SettingsError when they cannot be fetched or merged here."""
    source = WeightSource.of(settings)
    if settings.lora.rank == 0:
        return source
    return AdapterSource(source, base_weights(settings.model), settings.weights.cache_dir)


def base_weights(settings: Model) -> dict[str, Tensor]:
    """The weights that an adapter is for, on the CPU in the dtype of actors, tied ones once. Raises SettingsError."""
    model: Any = pretrained(
        AutoModelForCausalLM.from_pretrained, settings, dtype=getattr(torch, settings.dtype), use_safetensors=True
    )
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


class AdapterSource:
    """Merges each adapter that ``adapters`` brings into the base, in a file of its own.

    Both engines take whole weights, so a swap in mid-generation is the same with an adapter and without. What that
    costs an actor: the base weights once more in memory, all that is adapted once again while it is merged, and a
    merged copy of everything in the cache directory (which is memory, too, where that is /dev/shm).
    """

    def __init__(self, adapters: Source, base: dict[str, Tensor], cache_dir: Path | None = None) -> None:
        self._adapters = adapters
        self._base = base
        self._merged_in = cache_dir or default_directory()
        self._own: OwnFolder | None = None

    def at_hand(self, manifest: WeightManifest) -> bool:
        """Never: merging takes time, which is spent beside generation."""
        return False

    def fetch(self, manifest: WeightManifest) -> list[Path]:
        """The merged weights, one file. Raises WeightsError, naming what is wrong."""
        files = self._adapters.fetch(manifest)
        try:
            self._own = self._own or OwnFolder(self._merged_in)
            path = self._own.path / "merged.safetensors"
            save_file(merged(self._base, dict(named_tensors(files))), path)
        except (OSError, SafetensorError) as error:  # no room, for example
            raise WeightsError(f"the adapter of version {manifest.version} cannot be merged: {error}") from error
        return [path]

    def close(self) -> None:
        self._adapters.close()
        if self._own is not None:
            self._own.close()
        self._own = None
