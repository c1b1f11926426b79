"""Choosing an engine, and what is said of one that cannot be had."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog
import torch
from engine_shelf import needs_vllm, request
from tiny_models import save_tiny_model

from actors.engines import close_engine, open_engine
from actors.transformers_engine import TransformersEngine
from common.errors import SettingsError, TaskError
from common.settings import Settings

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model("llama", tmp_path_factory.mktemp("model")))


def settings(model: str, **sections: dict[str, object]) -> Settings:
    return Settings(model={"path": model}, **sections)


def test_the_default_is_the_transformers_engine(model) -> None:
    engine = open_engine(settings(model, actor={"groups_in_flight": 3}))
    assert isinstance(engine, TransformersEngine)
    assert engine.policy_version == -1
    close_engine(engine)  # has nothing to close


def test_without_vllm_the_error_says_what_to_do(model, monkeypatch) -> None:
    monkeypatch.setattr("actors.engines.find_spec", lambda _: None)
    words = r"not installed; run `make setup-engines` \(for CPUs\), install the extra `vllm` \(for GPUs\), or set"
    with pytest.raises(SettingsError, match=words):
        open_engine(settings(model, actor={"engine": "vllm"}))


@pytest.mark.parametrize("given", [None, 5])
def test_the_transformers_engine_decodes_as_many_groups_as_are_in_flight_or_asked_for(model, given) -> None:
    engine = open_engine(settings(model, actor={"groups_in_flight": 3}), groups_per_batch=given)
    assert engine._groups_per_batch == (given or 3)


def test_settings_reach_the_transformers_engine(model) -> None:
    changed = settings(model, actor={"kv_on_update": "keep", "device": "cpu"}, sampling={"max_prompt_tokens": 4})
    engine = open_engine(changed)
    assert (engine.kv_on_update, engine.device.type) == ("keep", "cpu")
    with pytest.raises(TaskError, match=r"over sampling\.max_prompt_tokens=4"):
        engine.add(request("r", (1, 5, 9, 4, 3)))


def test_a_gpu_that_is_not_there_is_a_settings_error(model, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match=r"actor\.device='cuda', but torch sees no CUDA device"):
        open_engine(settings(model, actor={"device": "cuda"}))


def test_an_engine_that_has_something_to_close_is_closed() -> None:
    closed = []

    class Closes:
        def close(self) -> None:
            closed.append(self)

    engine = Closes()
    close_engine(engine)
    assert closed == [engine]


def test_engines_are_imported_only_when_they_are_chosen() -> None:
    code = "import sys, actors.engines; print({'torch', 'transformers', 'vllm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@needs_vllm
def test_settings_that_vllm_cannot_work_with_are_settings_errors(model) -> None:
    with pytest.raises(SettingsError, match=r"vLLM does not start with model\.path=.*max_model_len"):
        open_engine(settings(model, actor={"engine": "vllm"}, vllm={"max_model_len": 100_000}))


@pytest.fixture
def variables(monkeypatch) -> dict[str, str]:
    """The environment, without anything of vLLM."""
    ours = ("VLLM_", "TORCHDYNAMO_")
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if not k.startswith(ours)})
    return os.environ


def test_an_engine_in_this_process_is_no_choice_and_the_rest_is(variables) -> None:
    """In a process of its own it would step in the middle of an update."""
    from actors.vllm_environment import prepare

    variables |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_HOST_IP": "10.0.0.7", "VLLM_NO_USAGE_STATS": "0"}
    prepare()
    assert variables["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert (variables["VLLM_HOST_IP"], variables["VLLM_NO_USAGE_STATS"]) == ("10.0.0.7", "0"), "what is set stays"
    assert (variables["VLLM_CONFIGURE_LOGGING"], variables["VLLM_USE_V2_MODEL_RUNNER"]) == ("0", "0"), "the rest is"


@pytest.mark.parametrize("gpu", [False, True])
def test_nothing_is_compiled_on_a_cpu_and_everything_on_a_gpu(gpu, variables, monkeypatch) -> None:
    from actors.vllm_environment import prepare

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    prepare()
    assert variables.get("TORCHDYNAMO_DISABLE") == (None if gpu else "1")


def test_vllm_speaks_through_our_log(variables) -> None:
    from actors.vllm_environment import prepare

    prepare()
    prepare()
    with structlog.testing.capture_logs() as events:
        logging.getLogger("vllm.engine").warning("beware of %s", "this")
        logging.getLogger("vllm.engine").info("nothing to see")
        try:
            raise ValueError("what broke")
        except ValueError:
            logging.getLogger("vllm.worker").exception("it broke")
    assert [(event["event"], event["log_level"], event["text"], event["source"]) for event in events] == [
        ("vllm.said", "warning", "beware of this", "vllm.engine"),
        ("vllm.said", "error", "it broke", "vllm.worker"),
    ]
    assert [event["exc_info"][1].args for event in events[1:]] == [("what broke",)]
