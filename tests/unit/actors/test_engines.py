"""Choosing an engine, and what is said of one that cannot be had."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog
from engine_shelf import needs_vllm
from tiny_models import save_tiny_model

from actors.engines import close_engine, open_engine
from actors.transformers_engine import TransformersEngine
from common.errors import SettingsError
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
    with pytest.raises(SettingsError, match=r"not installed; install the extra `vllm`.*or set actor\.engine"):
        open_engine(settings(model, actor={"engine": "vllm"}))


def test_engines_are_imported_only_when_they_are_chosen() -> None:
    code = "import sys, actors.engines; print({'torch', 'transformers', 'vllm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@needs_vllm
def test_settings_that_vllm_cannot_work_with_are_settings_errors(model) -> None:
    with pytest.raises(SettingsError, match=r"vLLM does not start with model\.path=.*max_model_len"):
        open_engine(settings(model, actor={"engine": "vllm"}, vllm={"max_model_len": 100_000}))


def test_the_environment_is_prepared_and_vllm_speaks_through_our_log(monkeypatch) -> None:
    from actors.vllm_environment import prepare

    for name in list(os.environ):
        if name.startswith("VLLM_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("VLLM_HOST_IP", "10.0.0.7")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    prepare()
    prepare()
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert os.environ["VLLM_HOST_IP"] == "10.0.0.7", "what is set stays"
    with structlog.testing.capture_logs() as events:
        logging.getLogger("vllm.engine").warning("beware of %s", "this")
        logging.getLogger("vllm.engine").info("nothing to see")
    assert [(event["event"], event["log_level"], event["text"]) for event in events] == [
        ("vllm.said", "warning", "beware of this")
    ]
