"""What is refused before anything starts: places of ranks and of weights that cannot be; and whose rank nobody is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from run_harness import DEMO

from cli.preflight import check_run
from cli.rundir import child_environment
from common.errors import SettingsError
from common.settings import Settings
from common.settings_sources import load_settings
from learner.engines import own_place

LAUNCHED = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def settings(tmp_path: Path, *overrides: str) -> Settings:
    return load_settings(DEMO, [f"run.dir={tmp_path}/runs", *overrides])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["weights.url=https://example.org/weights"], "can be read only"),
        (["weights.url=nosuch://bucket/prefix"], "weights.url='nosuch://bucket/prefix/demo' cannot be used: .*nosuch"),
        (["learner.processes=2"], "learner.engine='torch' trains in one process, but learner.processes=2"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        check_run(settings(tmp_path, *overrides))


def test_a_good_place_for_weights_is_not_made_yet(tmp_path: Path) -> None:
    check_run(settings(tmp_path, f"weights.url=file://{tmp_path}/shared", "weights.anchor_every=4"))
    check_run(settings(tmp_path, f"weights.dir={tmp_path}/weights"))
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_is_asked_about_only_by_a_learner_that_it_may_have_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    check_run(settings(tmp_path))
    with pytest.raises(SettingsError, match="trains in one process, but WORLD_SIZE=8"):
        check_run(settings(tmp_path), LAUNCHED)


def test_processes_of_a_run_are_no_ranks_of_a_job_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {"LOCAL_WORLD_SIZE": "8", "ROLE_RANK": "3", "TORCHELASTIC_USE_AGENT_STORE": "True", "SPARK_RUN__SEED": "7"}
    for name, value in {**LAUNCHED, **others}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    environment = child_environment("redis://127.0.0.1:1")
    assert not (LAUNCHED.keys() | others.keys()) & environment.keys()
    assert environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert environment["SPARK_REDIS__URL"] == "redis://127.0.0.1:1"
    place = own_place(settings(tmp_path), environment)
    assert (place.rank, place.world_size, place.launched) == (0, 1, False)


def test_a_model_without_a_tokenizer_is_refused_in_one_whole_sentence(tmp_path: Path) -> None:
    base = Path(shutil.copytree(DEMO.parent / "base", tmp_path / "base"))
    for path in base.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(SettingsError) as error:
        check_run(settings(tmp_path, f"model.path={base}"))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) > 150  # transformers' own reason has several lines; none is left out


def test_a_chat_that_the_template_refuses_is_refused_before_anything_starts(tmp_path: Path) -> None:
    base = Path(shutil.copytree(DEMO.parent / "base", tmp_path / "base"))
    (base / "chat_template.jinja").write_text("{{ raise_exception('no system message') }}")
    with pytest.raises(SettingsError, match=r"prompt 0 cannot be put to the model: .*no system message"):
        check_run(settings(tmp_path, f"model.path={base}"))


def test_a_model_that_the_hub_does_not_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SettingsError, match=r"model.path=.no/such-model. cannot be loaded"):
        check_run(settings(tmp_path, "model.path=no/such-model"))
