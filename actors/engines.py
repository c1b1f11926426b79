"""The engine that the settings name. Nothing of an engine is imported before it is chosen."""

from __future__ import annotations

from importlib.util import find_spec

from actors.engine import Engine
from common.errors import SettingsError
from common.settings import Settings


def open_engine(settings: Settings, *, groups_per_batch: int | None = None) -> Engine:
    """Load the model of the settings into the engine of the settings. Raises SettingsError.

    ``groups_per_batch``: groups that the transformers engine decodes together, if not ``actor.groups_in_flight``.
    """
    if settings.actor.engine == "vllm":
        return _open_vllm(settings)
    return _open_transformers(settings, groups_per_batch or settings.actor.groups_in_flight)


def close_engine(engine: Engine) -> None:
    """End what the engine started. One that started nothing has nothing to close."""
    if close := getattr(engine, "close", None):
        close()


def _open_transformers(settings: Settings, groups_per_batch: int) -> Engine:
    from actors.transformers_engine import TransformersEngine, load_model

    model, tokenizer = load_model(settings.model)
    return TransformersEngine(
        model,
        tokenizer,
        groups_per_batch=groups_per_batch,
        max_prompt_tokens=settings.sampling.max_prompt_tokens,
        kv_on_update=settings.actor.kv_on_update,
        device=settings.actor.device,
    )


def _open_vllm(settings: Settings) -> Engine:
    if find_spec("vllm") is None:
        raise SettingsError(
            "actor.engine='vllm', but vLLM is not installed; run `make setup-engines` (for CPUs), install the extra "
            "`vllm` (for GPUs), or set actor.engine='transformers'"
        )
    from actors.vllm_environment import prepare

    prepare()
    from actors.vllm_engine import VllmEngine

    return VllmEngine(
        settings.model,
        settings.vllm,
        max_prompt_tokens=settings.sampling.max_prompt_tokens,
        kv_on_update=settings.actor.kv_on_update,
    )
