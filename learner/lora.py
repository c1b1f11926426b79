"""LoRA in the learner: PEFT puts an adapter into the model's own layers, so that it stays the same Hugging Face model.

What is published is named after the weights that it adapts; ``actors/adapters.py`` merges it there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file
from torch import Tensor

from common.errors import SettingsError
from common.settings import Lora

ADAPTER: Final = "default"
"""The one adapter of a model, by PEFT's own name for it."""


def with_adapter(model: Any, lora: Lora) -> Any:
    """The same model with a fresh adapter, the only part that is trained: B is zero, so nothing changes at first.

    Raises SettingsError when a target names no linear layer.
    """
    from peft import inject_adapter_in_model

    try:
        return inject_adapter_in_model(_config(lora), model)
    except ValueError as error:
        raise SettingsError(f"lora.targets={list(lora.targets)} do not fit the model: {error}") from error


def published(model: Any) -> dict[str, Tensor]:
    """The adapter as actors take it: ``NAME.lora_A`` [rank, in] and ``NAME.lora_B`` [out, rank] times alpha / rank."""
    tensors = {}
    for name, layer in _adapted(model):
        tensors[f"{name}.weight.lora_A"] = layer.lora_A[ADAPTER].weight.detach()
        tensors[f"{name}.weight.lora_B"] = layer.lora_B[ADAPTER].weight.detach() * layer.scaling[ADAPTER]
    return tensors


def merged(model: Any) -> Any:
    """A copy of the model with the adapter in its weights, as plain as the base model."""
    plain = copy.deepcopy(model)
    for name, layer in list(_adapted(plain)):
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(plain.get_submodule(parent), child, layer.get_base_layer())
    return plain


def export_adapter(model: Any, lora: Lora, base: str, folder: Path) -> None:
    """The adapter alone, as PEFT's ``from_pretrained`` and ``vllm serve --lora-modules`` load it."""
    from peft import get_peft_model_state_dict

    config = _config(lora)
    config.base_model_name_or_path, config.task_type, config.inference_mode = base, "CAUSAL_LM", True
    config.target_modules = {name.rpartition(".")[2] for name, _ in _adapted(model)}
    config.save_pretrained(str(folder))
    state = get_peft_model_state_dict(model, adapter_name=ADAPTER)
    save_file({f"base_model.model.{k}": v.contiguous() for k, v in state.items()}, folder / "adapter_model.safetensors")


def _config(lora: Lora) -> Any:
    from peft import LoraConfig

    targets: Any = list(lora.targets) or "all-linear"
    return LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets, bias="none")


def _adapted(model: Any) -> Iterator[tuple[str, Any]]:
    """Name and layer of every linear layer with an adapter."""
    return ((name, layer) for name, layer in model.named_modules() if hasattr(layer, "lora_A"))
