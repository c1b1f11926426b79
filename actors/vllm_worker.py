"""What runs in vLLM's workers (this process, or one per GPU): published files into the live model.

vLLM loads this module by name, from ``worker_extension_cls``. Its *layerwise reload* puts every layer on the meta
device, collects the tensors that are loaded into it, and, once a layer is complete, processes it (CPU linears are
packed, for instance) and copies it over the old one in place, so that CUDA graphs stay valid. Between start and finish
no step may run: it would meet layers without data.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    get_layerwise_info,
    initialize_layerwise_reload,
)

from actors.weight_files import named_tensors

BACKEND: Final = "spark-files"
EXTENSION: Final = "actors.vllm_worker.Extension"


@dataclass
class Nothing(WeightTransferInitInfo):  # type: ignore[misc]  # vLLM is not type-checked
    """Files need no connection."""


@dataclass
class Files(WeightTransferUpdateInfo):  # type: ignore[misc]
    """A whole set of weights."""

    paths: list[str]


class FileWeights(WeightTransferEngine[Nothing, Files]):  # type: ignore[misc]
    """vLLM's weight-transfer interface over safetensors files that every worker can read."""

    init_info_cls = Nothing
    update_info_cls = Files
    _expected: frozenset[str]
    _tied: list[Any]

    def init_transfer_engine(self, init_info: Nothing) -> None:
        pass

    def start_weight_update(self) -> None:
        self._expected = frozenset(name for name, _ in self.model.named_parameters())  # tied ones once
        self._tied = _tied_layers(self.model)
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As the base class, which however calls an accelerator's synchronize on a CPU too."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: Files) -> None:
        """Raises RuntimeError when vLLM's model has parameters that the files leave as they are."""
        loaded = self.model.load_weights(tensors_of(update_info))
        if loaded is not None and (left := self._expected - set(loaded)):
            raise RuntimeError(f"{len(left)} of vLLM's parameters get no weights, for example {min(left)}")

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        for layer in self._tied:
            layer.quant_method.process_weights_after_loading(layer)

    def abandon(self) -> None:
        """Give layers that an update left half-way their old tensors back. Those that were done keep the new ones."""
        for layer in self.model.modules():
            info = get_layerwise_info(layer)
            if info.can_load():
                info.load_numel, info.loaded_weights = 0, []
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        pass


def _tied_layers(model: torch.nn.Module) -> list[Any]:
    """Layers with a parameter that another layer has too.

    The reload processes only layers that were loaded into, and a tied output head is not: on a CPU it would go on
    with the packed copy that it made of the old embeddings.
    """
    owners = Counter(id(parameter) for layer in model.modules() for parameter in layer.parameters(recurse=False))
    shared = [layer for layer in model.modules() if any(owners[id(p)] > 1 for p in layer.parameters(recurse=False))]
    return [layer for layer in shared if hasattr(layer, "quant_method")]


def tensors_of(update: Files) -> Iterator[tuple[str, torch.Tensor]]:
    return named_tensors([Path(path) for path in update.paths])


class Extension:
    """Methods added to vLLM's worker class; called by ``collective_rpc``."""

    weight_transfer_engine: FileWeights
    _weight_update_active: bool

    def abandon_weight_update(self) -> None:
        """Make room for a new update after one that failed, in whatever state that left this worker."""
        # the worker's own flag: it stays up when finish fails, or when the update failed in another worker
        self._weight_update_active = False
        self.weight_transfer_engine.abandon()


# it warns of every layer without weights of its own, at every update; FileWeights checks that none is forgotten
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
WeightTransferEngineFactory.register_engine(BACKEND, FileWeights)
