"""The trained model: where it comes from, where it runs, and which of its parameters are trained and published."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from common.errors import SettingsError
from common.pretrained import pretrained
from common.settings import Settings
from learner.lora import published, with_adapter

EXPLODED: Final = (
    "the weights after step {} are not finite in {} (its learning rate was {:g}) and are neither published nor saved; "
    "lower learner.lr (`spark set RUN learner.lr=...` when it was set live, else in the run file) and start the run "
    "again, which goes on from its newest checkpoint"
)


def device_of(settings: Settings) -> torch.device:
    """Where the learner trains. Raises SettingsError when a GPU is asked for and there is none."""
    wanted, there = settings.learner.device, torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise SettingsError("learner.device='cuda', but torch finds no GPU; set it to 'auto' or 'cpu'")
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")


def load_model(settings: Settings, *, trained: bool = True) -> Any:
    """The causal LM of ``model.path`` in float32 on its device; ``trained=False``: a frozen copy, the reference.

    With ``lora.rank`` above 0 the trained one has a fresh adapter, and all else of it is frozen.
    In ``eval()``: no dropout, since the ratio compares the same function at two points in time.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any = pretrained(
        AutoModelForCausalLM.from_pretrained,
        settings.model,
        dtype=torch.float32,  # of the learner, whatever actors use: at RL rates bfloat16 weights would never move
        attn_implementation=settings.model.attn_implementation,
        use_safetensors=True,
    )
    model = model.to(device_of(settings)).eval()
    if not trained:
        return model.requires_grad_(False)
    if settings.lora.rank > 0:
        model = with_adapter(model, settings.lora)
    if settings.learner.gradient_checkpointing:
        checkpoint_activations(model)
    return model


def checkpoint_activations(model: Any) -> None:
    """Recompute the layers in the backward pass, without the dropout that training mode would bring.

    transformers looks at ``training`` of the layer itself. Only that flag is set; all that is below stays in eval().
    Call it again after ``model.eval()`` or ``model.train()``. Raises SettingsError when the model cannot do it.
    """
    try:
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    except ValueError as error:
        raise SettingsError(f"learner.gradient_checkpointing is on, but {error}; switch it off") from error
    for layer in model.modules():
        if getattr(layer, "gradient_checkpointing", False):
            layer.training = True
            for name, value in vars(layer).items():
                if "dropout" in name and isinstance(value, float):
                    setattr(layer, name, 0.0)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What the optimizer moves and checkpoints hold, tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def finite_in(tensors: Iterable[Tensor], dtype: torch.dtype) -> bool:
    """Whether all of these can be told to actors in ``dtype``. One pass over them: a small part of what AdamW reads."""
    ends = [end for tensor in tensors if tensor.numel() for end in torch.aminmax(tensor.detach())]
    # not `>`, which would say that nan is none
    return not ends or bool(torch.stack(ends).abs().max() <= torch.finfo(dtype).max)


def published_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What actors load: an adapter alone, else all weights by the names of the Hugging Face model, tied ones once."""
    return published(model) or {name: parameter.detach() for name, parameter in model.named_parameters()}
