"""What the learner publishes of a LoRA adapter is what actors merge: the same model on both sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_models import FAMILIES, save_tiny_model, tiny_model
from transformers import AutoModelForCausalLM

from actors.adapters import is_adapter, merged
from common.errors import SettingsError, WeightsError
from common.settings import Lora
from learner.lora import export_adapter, published, with_adapter
from learner.lora import merged as merged_copy

IDS = torch.tensor([[1, 5, 9, 4, 7, 3, 20, 11]])


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def trained(model: Any) -> Any:
    """As after some steps: neither matrix is zero."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    return model


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_weights_are_the_adapted_model(family) -> None:
    base, plain = weights_of(tiny_model(family)), tiny_model(family)
    adapted = trained(with_adapter(tiny_model(family), Lora(rank=4, alpha=6.0)))
    whole = merged(base, published(adapted))
    assert whole.keys() == base.keys()
    before = logits(plain)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(whole[name])
    torch.testing.assert_close(logits(plain), logits(adapted), atol=1e-5, rtol=1e-4)
    assert (logits(plain) - before).abs().max() > 0.1


def test_a_fresh_adapter_changes_nothing() -> None:
    base = weights_of(tiny_model("llama"))
    whole = merged(base, published(with_adapter(tiny_model("llama"), Lora(rank=4))))
    assert all(torch.equal(whole[name], weight) for name, weight in base.items())


def test_only_the_adapter_is_published_and_trained() -> None:
    model = with_adapter(tiny_model("qwen3"), Lora(rank=2, targets=("q_proj", "v_proj")))
    tensors = published(model)
    assert is_adapter(tensors)
    assert not is_adapter(weights_of(tiny_model("qwen3")))
    assert set(tensors) == {
        f"model.layers.{layer}.self_attn.{part}.weight.lora_{half}"
        for layer in (0, 1)
        for part in ("q_proj", "v_proj")
        for half in "AB"
    }
    assert all("lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_merging_keeps_the_dtype_of_the_base() -> None:
    base = {name: weight.bfloat16() for name, weight in weights_of(tiny_model("llama")).items()}
    whole = merged(base, published(trained(with_adapter(tiny_model("llama"), Lora(rank=4)))))
    assert {weight.dtype for weight in whole.values()} == {torch.bfloat16}


def test_an_adapter_of_another_model_is_refused() -> None:
    base = weights_of(tiny_model("llama"))
    fitting = published(trained(with_adapter(tiny_model("llama"), Lora(rank=4, targets=("q_proj",)))))
    name = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(WeightsError, match=r"'other\.weight', which the base model does not have"):
        merged(base, {"other.weight.lora_A": fitting[f"{name}.lora_A"], **fitting})
    with pytest.raises(WeightsError, match=f"has no {name}.lora_B"):
        merged(base, {key: value for key, value in fitting.items() if key != f"{name}.lora_B"})
    with pytest.raises(WeightsError, match=f"adapter of {name} is .* times .*, the weight is"):
        merged(base, {**fitting, f"{name}.lora_A": torch.zeros(4, 7)})


def test_a_target_that_no_layer_has_is_a_mistake_in_the_settings() -> None:
    with pytest.raises(SettingsError, match=r"lora.targets=\['q_porj'\] do not fit the model"):
        with_adapter(tiny_model("llama"), Lora(rank=4, targets=("q_porj",)))


# -- export -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_copy_is_a_plain_model_and_leaves_the_adapted_one_alone(family) -> None:
    adapted = trained(with_adapter(tiny_model(family), Lora(rank=4)))
    before = logits(adapted)
    plain = merged_copy(adapted)
    assert weights_of(plain).keys() == weights_of(tiny_model(family)).keys()
    torch.testing.assert_close(logits(plain), before, atol=1e-5, rtol=1e-4)
    assert torch.equal(logits(adapted), before)
    assert published(adapted)


def test_peft_loads_the_exported_adapter(tmp_path: Path) -> None:
    base = save_tiny_model("qwen3", tmp_path / "base")
    lora = Lora(rank=4, alpha=6.0)
    adapted = trained(with_adapter(tiny_model("qwen3"), lora))
    export_adapter(adapted, lora, str(base), tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "adapter"
    )
    torch.testing.assert_close(logits(loaded), logits(adapted), atol=1e-6, rtol=1e-5)
    assert (logits(loaded) - logits(tiny_model("qwen3"))).abs().max() > 0.1
