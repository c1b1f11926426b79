"""The whole evaluation on the demo's base model, small: loose bounds only, and what the seed does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cli.evaluation import Evaluation, build_pool, evaluate
from cli.evaluation.engine import _Verifiers
from common.errors import SettingsError
from common.messages import ChatMessage, Completion, Sampling, Task
from common.settings import Settings
from common.settings_sources import load_settings

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
DEMO = ROOT / "examples" / "arithmetic"


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(DEMO / "run.toml", ["eval.args.size=256"])


@pytest.fixture(scope="module")
def pool(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "answers.jsonl"
    built = build_pool(settings, settings.model.path, path, size=64, seed=9)
    assert len(built.items) == 64
    return path


def run(settings: Settings, pool: Path | None, seed: int) -> Evaluation:
    return evaluate(settings, settings.model.path, pool_path=pool, draws=64, seed=seed, rounds=1, votes=2)


@pytest.fixture(scope="module")
def measured(settings: Settings, pool: Path) -> Evaluation:
    return run(settings, pool, seed=1)


def test_the_base_is_where_its_warm_up_left_it(measured: Evaluation) -> None:
    summary = measured.summary()
    required = {"policy", "pointwise", "tpr", "tnr", "pairwise", "fix", "break", "tts"}
    assert required <= summary.keys()
    assert 0.2 <= summary["policy"] <= 0.7
    assert 0.35 <= summary["pointwise"] <= 0.7
    assert summary["tnr"] > summary["tpr"] + 0.2  # it mostly says no
    assert 0.35 <= summary["pairwise"] <= 0.65
    assert 0.1 <= summary["fix"] <= 0.5
    assert 0.1 <= summary["break"] <= 0.5
    assert summary["unparsed"] < 0.05
    assert summary["tts_r0"] == summary["policy"]
    assert (summary["draws"], summary["pool_items"]) == (64, 64)


def test_equal_seeds_reproduce_and_others_do_not(settings: Settings, pool: Path, measured: Evaluation) -> None:
    assert run(settings, pool, seed=1) == measured
    other = run(settings, pool, seed=2)
    assert other.pool == measured.pool
    changed = [name for name, figure in measured.figures.items() if other.figures[name] != figure]
    assert {"policy", "pointwise", "pairwise", "fix"} <= set(changed)


def test_without_a_pool_the_model_judges_its_own_answers(settings: Settings, measured: Evaluation) -> None:
    own = run(settings, None, seed=1)
    assert own.pool != measured.pool
    assert own.figures["policy"] == measured.figures["policy"]
    assert 0 < own.counts["pool_items"] < 64


def test_an_existing_pool_is_never_overwritten(settings: Settings, pool: Path) -> None:
    before = pool.read_bytes()
    with pytest.raises(SettingsError, match="is frozen"):
        build_pool(settings, settings.model.path, pool, size=1, seed=1)
    assert pool.read_bytes() == before


def test_bad_arguments_end_before_a_model_is_loaded(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="draws=0"):
        evaluate(settings, "missing", pool_path=None, draws=0, seed=1, rounds=1, votes=2)
    with pytest.raises(SettingsError, match="cannot be read"):
        evaluate(settings, "missing", pool_path=tmp_path / "no.jsonl", draws=1, seed=1, rounds=1, votes=2)
    with pytest.raises(SettingsError, match=r"\./missing"):
        evaluate(settings, "./missing", pool_path=None, draws=1, seed=1, rounds=1, votes=2)


def test_other_verifiers_run_in_the_pool(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "where_am_i.py").write_text("import os\ndef verify(text, answer): return os.getpid() != int(answer)\n")
    task = Task(
        uid="u",
        objective="solve",
        messages=(ChatMessage.user("q"),),
        question="q",
        answer=str(os.getpid()),
        verifier="python:where_am_i:verify",
        sampling=Sampling(n=1, max_new_tokens=1),
    )
    completion = Completion(
        token_ids=np.ones(1, dtype=np.int32),
        logprobs=np.zeros(1, dtype=np.float32),
        spans=((0, 0),),
        finish_reason="stop",
        text="\\boxed{1}",
    )
    here = settings.model_copy(update={"run": settings.run.model_copy(update={"python_path": (tmp_path,)})})
    verifiers = _Verifiers(here)
    try:
        assert verifiers.submit(task, (completion,)).verdicts()[0].correct
    finally:
        verifiers.close()


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, cli.evaluation; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
