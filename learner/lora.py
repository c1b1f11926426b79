"""LoRA in the learner: PEFT wraps the model; what is published is named after the weights it adapts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from torch import Tensor

from common.errors import SettingsError
from common.settings import Lora

WRAPPED: Final = "base_model.model."
"""What PEFT puts before the names of the model that it wraps."""


def with_adapter(model: Any, lora: Lora) -> Any:
    """The model with a fresh adapter, the only part that is trained: B is zero, so nothing changes at first.

    Raises SettingsError when a target names no linear layer.
    """
    from peft import LoraConfig, get_peft_model

    targets: Any = list(lora.targets) or "all-linear"
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets, bias="none")
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise SettingsError(f"lora.targets={list(lora.targets)} do not fit the model: {error}") from error


def published(model: Any) -> dict[str, Tensor]:
    """The adapter as actors take it: ``NAME.lora_A`` [rank, in] and ``NAME.lora_B`` [out, rank] times alpha / rank."""
    return dict(_published(model))


def _published(model: Any) -> Iterator[tuple[str, Tensor]]:
    for name, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        weight = f"{name.removeprefix(WRAPPED)}.weight"
        for adapter, scaling in module.scaling.items():
            yield f"{weight}.lora_A", module.lora_A[adapter].weight.detach().contiguous()
            yield f"{weight}.lora_B", (module.lora_B[adapter].weight.detach() * scaling).contiguous()
