"""Where settings come from, which one wins, and how a mistake is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import SettingsError
from common.settings import CONFIGS, Settings
from common.settings_sources import known_keys, load_settings

SECRET = "redis://user:hunter2@host:6379"
Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a run file of this text, in an environment with these variables only."""
    for name in os.environ:
        if name.upper().startswith("SPARK_"):
            monkeypatch.delenv(name)

    def load(text: str = "", *overrides: str, **environment: str) -> Settings:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        run_file = tmp_path / "run.toml"
        run_file.write_text(text)
        return load_settings(run_file, overrides)

    return load


def refused(load: Load, *arguments: str, **environment: str) -> str:
    """The one sentence."""
    with pytest.raises(SettingsError) as error:
        load(*arguments, **environment)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2
    return str(error.value)


def test_defaults_need_nothing(load: Load) -> None:
    assert load().learner == Settings().learner


def test_each_source_overrides_the_ones_before_it(load: Load) -> None:
    text = 'preset = "spark_original"\n[learner]\nwarmup_steps = 22'
    values = load(text, "learner.grad_clip=4", SPARK_LEARNER__WARMUP_STEPS="33").learner
    assert values.updates_per_batch == 8  # preset
    assert values.warmup_steps == 33  # environment, over the file
    assert values.grad_clip == 4  # command line
    assert values.max_steps == 1000  # default
    text += "\nupdates_per_batch = 2\ngrad_clip = 2"
    values = load(text, "learner.warmup_steps=44").learner
    assert values.updates_per_batch == 2  # file, over the preset
    assert values.grad_clip == 2
    assert values.warmup_steps == 44  # command line, over the environment


@pytest.mark.parametrize("where", ["file", "environment", "command line"])
def test_the_preset_can_be_chosen_everywhere(load: Load, where: str) -> None:
    text = 'preset = "grpo"\n' if where == "file" else ""
    overrides = ["preset=grpo"] if where == "command line" else []
    environment = {"SPARK_PRESET": "grpo"} if where == "environment" else {}
    settings = load(text, *overrides, **environment)
    assert (settings.preset, settings.learner.judge_share) == ("grpo", 0.0)


@pytest.mark.parametrize("where", ["environment", "command line"])
def test_a_preset_overrides_what_stands_below_the_source_that_names_it(load: Load, where: str) -> None:
    text = 'preset = "spark_original"\n[learner]\njudge_share = 0.5\nlr = 0.25'
    named = {"SPARK_PRESET": "grpo"} if where == "environment" else {}
    overrides = [] if where == "environment" else ["preset=grpo"]
    settings = load(text, *overrides, **named)
    assert (settings.preset, settings.learner.judge_share, settings.learner.lr) == ("grpo", 0.0, 0.25)
    assert settings.learner.mixing == "joint"  # nothing is left of the preset that it replaces
    assert load(text, *overrides, "learner.judge_share=0.25", **named).learner.judge_share == 0.25
    assert load(text, *overrides, SPARK_LEARNER__JUDGE_SHARE="0.25", **named).learner.judge_share == (
        0.25 if where == "environment" else 0.0
    )


def test_paths_that_are_given_where_the_command_runs_become_absolute(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    for folder in ("base", "data", "code"):
        (here / folder).mkdir(parents=True)
    (here / "held_out.jsonl").touch()
    monkeypatch.chdir(here)
    settings = load(
        "",
        "model.path=base",
        "prompts.source=dataset:data:train",
        'run.python_path=["code"]',
        SPARK_EVAL__PROMPTS="held_out.jsonl",
    )
    assert settings.model.path == str(here / "base")
    assert settings.prompts.source == f"dataset:{here / 'data'}:train"
    assert settings.run.python_path == (here / "code",)
    assert settings.eval.prompts == str(here / "held_out.jsonl")
    hub = load("", "model.path=Qwen/Qwen3", "prompts.source=dataset:openai/gsm8k:train")
    assert (hub.model.path, hub.prompts.source) == ("Qwen/Qwen3", "dataset:openai/gsm8k:train")


@pytest.mark.parametrize("preset", sorted(path.stem for path in CONFIGS.glob("*.toml")))
def test_every_preset_is_valid(load: Load, preset: str) -> None:
    assert load(f'preset = "{preset}"').preset == preset


def test_an_unknown_preset_is_told_with_the_known_ones(load: Load) -> None:
    assert "preset='grp' is unknown; known presets: grpo, spark" in refused(load, 'preset = "grp"')


@pytest.mark.parametrize(
    ("text", "overrides", "environment", "said"),
    [
        ("[learner]\nmax_stepz = 1", [], {}, ["run.toml: unknown setting learner.max_stepz", "learner.max_steps?"]),
        ("[lerner]\nmax_steps = 1", [], {}, ["unknown setting lerner", "did you mean learner?"]),
        ("max_steps = 1", [], {}, ["unknown setting max_steps", "did you mean learner.max_steps?"]),
        ("", ["learner.max_stepz=1"], {}, ["unknown setting learner.max_stepz", "did you mean learner.max_steps?"]),
        ("", ["sampling.group_siz=8"], {}, ["unknown setting sampling.group_siz", "sampling.group_size?"]),
        ("", [], {"SPARK_LEARNER__MAX_STEPZ": "1"}, ["unknown setting learner.max_stepz", "learner.max_steps?"]),
        ("", [], {"SPARK_LERNER__MAX_STEPS": "1"}, ["variable SPARK_LERNER__MAX_STEPS", "did you mean SPARK_LEARNER?"]),
        ("", [], {"spark_lerner__max_steps": "1"}, ["variable spark_lerner__max_steps", "did you mean SPARK_LEARNER?"]),
        ("", ["run.directory=x"], {}, ["unknown setting run.directory", "did you mean run.dir?"]),
        ("", ["quux.zzz=1"], {}, ["unknown setting quux", "docs/configuration.md"]),
    ],
)
def test_an_unknown_key_is_named_with_its_nearest(
    load: Load, text: str, overrides: list[str], environment: dict[str, str], said: list[str]
) -> None:
    sentence = refused(load, text, *overrides, **environment)
    assert all(part in sentence for part in said), sentence


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("learner.max_steps=0", "learner.max_steps=0: input should be greater than or equal to 1"),
        ("learner.max_steps=many", "learner.max_steps='many': input should be a valid integer"),
        ("run.name=../up", "run.name='../up'"),
        ("learner.updates_per_batch=3", "learner.groups_per_step=64 is no multiple of learner.updates_per_batch=3"),
        ("learner", "--set 'learner': write section.key=value"),
    ],
)
def test_a_bad_value_is_named_with_its_key(load: Load, override: str, said: str) -> None:
    assert said in refused(load, "", override)


def test_a_bare_word_on_the_command_line_is_a_string(load: Load) -> None:
    settings = load("", "run.name=demo", "model.revision='abc'", "learner.filter_zero_variance=false")
    assert (settings.run.name, settings.model.revision) == ("demo", "abc")
    assert settings.learner.filter_zero_variance is False


def test_a_missing_or_broken_file_is_one_sentence(load: Load, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml does not exist"):
        load_settings(tmp_path / "nowhere.toml")
    assert "cannot be read" in refused(load, "[learner")


def test_settings_cannot_be_changed_later(load: Load) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().learner.max_steps = 5


def test_every_key_has_a_way_in_by_environment(load: Load) -> None:
    assert "learner.max_steps" in known_keys()
    assert "redis.url_file" in known_keys()
    assert load(SPARK_ACTOR__COUNT="7").actor.count == 7


# -- secrets ----------------------------------------------------------------------------------------------


def test_a_secret_is_not_shown(load: Load) -> None:
    settings = load(SPARK_REDIS__URL=SECRET)
    assert settings.redis.url.get_secret_value() == SECRET
    for shown in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert "hunter2" not in shown


@pytest.mark.parametrize(
    "text", [f'[redis]\nurl = "{SECRET}"\nurll = "{SECRET}"', f'[redis]\nurl = "{SECRET}"\nlease_s = 0']
)
def test_a_secret_is_not_told_with_a_mistake_beside_it(load: Load, text: str) -> None:
    assert "hunter2" not in refused(load, text)


def test_a_secret_comes_from_a_file_by_any_source(load: Load, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    path = tmp_path / "secret"
    for settings in (
        load('[redis]\nurl_file = "secret"'),  # relative to the run file
        load("", f"redis.url_file={path}"),
        load("", SPARK_REDIS__URL_FILE=str(path)),
    ):
        assert settings.redis.url.get_secret_value() == SECRET
        assert "hunter2" not in repr(settings)


def test_a_url_that_is_set_comes_before_the_file(load: Load) -> None:
    settings = load('[redis]\nurl_file = "/nowhere"', "redis.url=unix:///run/spark.sock")
    assert settings.redis.url.get_secret_value() == "unix:///run/spark.sock"


def test_a_secret_file_that_is_missing_or_empty_is_one_sentence(load: Load, tmp_path: Path) -> None:
    sentence = refused(load, '[redis]\nurl_file = "/nowhere/secret"')
    assert "redis.url_file='/nowhere/secret' cannot be read" in sentence
    (tmp_path / "empty").write_text("\n")
    assert "is empty" in refused(load, '[redis]\nurl_file = "empty"')
