"""A learner that trains an adapter, and actors that merge what it publishes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_lab import batch
from engine_shelf import KINDS, Kind, Shelf, request, run, teacher_forced
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_model
from transformers import AutoModelForCausalLM

from actors.adapter_source import AdapterSource, base_weights, open_source
from common.errors import SettingsError, WeightsError
from common.messages import WeightManifest
from common.settings import Settings
from common.weights import WeightStore
from common.weights_source import WeightSource
from learner.lora import with_adapter
from learner.torch_engine import TorchEngine


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    yield shelf
    shelf.close()


def settings_of(folder: Path, **changes: Any) -> Settings:
    model = folder / "model"
    if not model.exists():
        save_tiny_model("llama", model, seed=0)
    given = {"model": {"path": str(model), "dtype": "float32"}, "lora": {"rank": 4, "alpha": 8.0}, **changes}
    learner = {"lr": 2e-2, "warmup_steps": 0, "tokens_per_microbatch": 64, "device": "cpu"}
    return Settings(run={"name": "lora", "dir": folder / "runs"}, learner=learner, **given)


def trained(settings: Settings, steps: int = 2) -> TorchEngine:
    torch.manual_seed(0)
    engine = TorchEngine(settings)
    for number in range(steps):
        engine.step(batch(number))
    return engine


def adapted(settings: Settings, engine: TorchEngine) -> Any:
    """The trained model once more, with the attention that it came with instead of the learner's packed one."""
    model = with_adapter(AutoModelForCausalLM.from_pretrained(settings.model.path), settings.lora)
    model.load_state_dict(engine.model.state_dict())
    return model


def published(settings: Settings, engine: TorchEngine, version: int = 2) -> WeightManifest:
    return WeightStore.of(settings).publish(1, version, version - 1, engine.write_weights)


def source_of(settings: Settings, cache: Path) -> AdapterSource:
    return AdapterSource(WeightSource(cache_dir=cache), base_weights(settings.model), cache)


@pytest.mark.parametrize("kind", KINDS)
def test_actors_sample_from_what_the_learner_has_trained(kind: Kind, shelf: Shelf, tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    learner, actor = trained(settings), shelf.engine(kind)
    with closing(source_of(settings, tmp_path / "cache")) as source:
        actor.apply(source.fetch(published(settings, learner)), 2)
    (completions,) = run(actor, request(prompt=(1, 5, 9, 4), n=4)).values()
    model, base = adapted(settings, learner), AutoModelForCausalLM.from_pretrained(settings.model.path)
    for completion in completions:
        assert completion.logprobs == pytest.approx(teacher_forced(model, (1, 5, 9, 4), completion), abs=2e-3)
    distance = [abs(c.logprobs - teacher_forced(base, (1, 5, 9, 4), c)).max() for c in completions]
    assert max(distance) > 0.05  # else the adapter has done nothing
    assert list((tmp_path / "cache").iterdir()) == []


def test_only_the_adapter_travels_and_is_kept(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, model={"path": str(tmp_path / "model"), "dtype": "bfloat16"})
    engine = trained(settings)
    tensors = {n: t for file in WeightSource().fetch(published(settings, engine)) for n, t in load_file(file).items()}
    assert all(name.endswith((".lora_A", ".lora_B")) for name in tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    base = dict(AutoModelForCausalLM.from_pretrained(settings.model.path, dtype=torch.float32).named_parameters())
    frozen = {n.replace(".base_layer", ""): p for n, p in engine.model.named_parameters() if "lora_" not in n}
    assert frozen.keys() == base.keys()
    assert all(torch.equal(frozen[name], weight) for name, weight in base.items())
    engine.write_checkpoint(tmp_path)
    assert all("lora_" in name for name in load_file(tmp_path / "model.safetensors"))


def test_a_resumed_adapter_makes_the_same_step(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    first = trained(settings)
    first.write_checkpoint(tmp_path)
    expected = first.step(batch(2))
    torch.manual_seed(1)  # another fresh adapter than the first engine began with
    second = TorchEngine(settings)
    second.read_checkpoint(tmp_path, 2)
    assert second.step(batch(2)) == expected
    other = TorchEngine(settings_of(tmp_path, lora={"rank": 2}))
    with pytest.raises(SettingsError, match=r"another model than model\.path=.* with lora\.rank=2"):
        other.read_checkpoint(tmp_path, 2)


def test_checkpointed_activations_change_no_gradient(tmp_path: Path) -> None:
    plain = trained(settings_of(tmp_path))
    settings = settings_of(tmp_path)
    saving = settings.model_copy(
        update={"learner": settings.learner.model_copy(update={"gradient_checkpointing": True})}
    )
    for name, parameter in trained(saving).model.named_parameters():
        torch.testing.assert_close(parameter, plain.model.get_parameter(name), atol=1e-6, rtol=1e-5)


def test_the_export_is_the_merged_model_and_the_adapter_beside_it(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    engine = trained(settings)
    engine.export(tmp_path / "export")
    ids = torch.tensor([[1, 5, 9, 4, 7]])
    expected = adapted(settings, engine)(input_ids=ids).logits
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    torch.testing.assert_close(whole(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(settings.model.path)
    with_peft = PeftModel.from_pretrained(base, tmp_path / "export" / "adapter")
    torch.testing.assert_close(with_peft(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)


def test_an_adapter_that_does_not_fit_keeps_the_old_weights(shelf: Shelf, tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    engine = trained(settings)
    with closing(source_of(settings, tmp_path / "cache")) as source:
        good = source.fetch(published(settings, engine))
        before = good[0].read_bytes()

        def of_another(folder: Path) -> None:
            save_file({"other.weight.lora_A": torch.zeros(2, 3)}, folder / "model.safetensors")

        strange = WeightStore.of(settings).publish(1, 3, 2, of_another)
        with pytest.raises(WeightsError, match="which the base model does not have"):
            source.fetch(strange)
        assert good[0].read_bytes() == before
        assert source.fetch(published(settings, engine, 4))[0].read_bytes() == before


def test_a_run_without_an_adapter_reads_weights_where_they_lie(tmp_path: Path) -> None:
    assert isinstance(open_source(settings_of(tmp_path)), AdapterSource)
    assert isinstance(open_source(settings_of(tmp_path, lora={"rank": 0})), WeightSource)
