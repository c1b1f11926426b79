"""A user's mistake: one clear sentence, a non-zero exit code, no traceback, nothing started."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from run_harness import DEMO, spark

from cli.embedded import EmbeddedServer
from cli.export import refuse_foreign
from cli.rundir import RunDirectory
from common.settings import Settings


def refuse(result: CompletedProcess[str], exit_code: int, *words: str) -> None:
    assert result.returncode == exit_code, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("spark: ")
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("learner.max_stps=3", ("unknown setting learner.max_stps", "did you mean learner.max_steps?")),
        ("learner.lr=-1", ("learner.lr=-1", "greater than 0")),
        ("preset=sparkle", ("preset='sparkle'", "spark_original")),
        ("model.path=/nowhere/model", ("model.path='/nowhere/model'", "does not exist")),
        ("model.path=", ("model.path is empty",)),
        ("prompts.source=/nowhere.jsonl", ("/nowhere.jsonl",)),
        ("templates.path=/nowhere.toml", ("/nowhere.toml",)),
        ("learner.lr", ("--set 'learner.lr'", "section.key=value")),
    ],
)
def test_wrong_settings(override: str, words: tuple[str, ...], tmp_path: Path) -> None:
    refuse(spark("up", str(DEMO), "--set", override, cwd=tmp_path), 2, *words)
    assert not (tmp_path / "runs").exists()


def test_malformed_prompt_line_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "1 +1", "answer": "2"}\n{"prompt": "1 +2", "answr": "3"}\n', encoding="utf-8")
    source = f"prompts.source={prompts}"
    refuse(spark("up", str(DEMO), "--set", source, cwd=tmp_path), 2, f"{prompts}", "2", "answr", "answer")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("verifier", "words"), [("choice", ("prompt 0 cannot be scored",)), ("exactt", ("exactt", "did you mean"))]
)
def test_task_that_no_verifier_can_score(verifier: str, words: tuple[str, ...], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        json.dumps({"prompt": "Which?", "answer": "Paris", "verifier": verifier}) + "\n", encoding="utf-8"
    )
    source = f"prompts.source={prompts}"
    refuse(spark("up", str(DEMO), "--set", source, cwd=tmp_path), 2, *words)


def test_missing_run_file_and_no_run_directory(tmp_path: Path) -> None:
    refuse(spark("up", "nowhere.toml", cwd=tmp_path), 2, "nowhere.toml does not exist")
    refuse(spark("status", str(tmp_path), cwd=tmp_path), 2, "no run directory")
    refuse(spark("export", str(tmp_path), cwd=tmp_path), 2, "no run directory")


def test_run_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = spark("up", str(DEMO), "--set", f"run.dir={tmp_path / 'file'}", cwd=tmp_path)
    refuse(result, 1, "Not a directory", str(tmp_path / "file"))


def test_unknown_environment_variable(tmp_path: Path) -> None:
    refuse(spark("up", str(DEMO), cwd=tmp_path, SPARK_LERNER__LR="1"), 2, "SPARK_LERNER__LR", "did you mean")


def test_wrong_value_in_the_environment_is_blamed_on_the_environment(tmp_path: Path) -> None:
    refuse(spark("up", str(DEMO), cwd=tmp_path, SPARK_LEARNER__LR="fast"), 2, "environment variable SPARK_LEARNER__LR")
    refuse(spark("up", str(DEMO), cwd=tmp_path, SPARK_LEARNER="fast"), 2, "environment", "key by key")


def test_server_given_as_a_string_does_not_print_its_password(tmp_path: Path) -> None:
    run_file = tmp_path / "run.toml"
    run_file.write_text('redis = "redis://user:s3cret@localhost"\n', encoding="utf-8")
    result = spark("up", str(run_file), cwd=tmp_path)
    refuse(result, 2, "redis")
    assert "s3cret" not in result.stdout + result.stderr


def test_unreachable_server_hides_the_password(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = spark("up", str(DEMO), cwd=tmp_path, SPARK_REDIS__URL=f"redis://user:s3cret@127.0.0.1:{port}")
    refuse(result, 3, f"no server answers at 127.0.0.1:{port}")
    assert "s3cret" not in result.stdout + result.stderr


@pytest.mark.parametrize("role", ["actor", "recycler", "learner"])
def test_a_process_without_a_server_leaves_nothing_behind(role: str, tmp_path: Path) -> None:
    refuse(spark(role, str(DEMO), cwd=tmp_path), 3, "redis.url is empty")
    assert list(tmp_path.iterdir()) == []


def test_no_draws_and_a_folder_of_something_else(tmp_path: Path) -> None:
    refuse(spark("eval", "model", "--draws", "0", cwd=tmp_path), 2, "draws", "greater than or equal to 1")
    run = RunDirectory(Settings.model_validate({"run": {"name": "r", "dir": str(tmp_path)}}))
    run.create()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    result = spark("export", str(run.path), "--to", str(tmp_path / "mine"), cwd=tmp_path)
    refuse(result, 2, "mine is neither empty nor an earlier export")
    refuse_foreign(tmp_path / "new")
    (tmp_path / "mine" / "spark.json").write_text('{"policy_version": 3}')
    refuse_foreign(tmp_path / "mine")


def test_server_with_eviction_is_refused(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "server", options={"maxmemory-policy": "allkeys-lru"}) as server:
        result = spark("up", str(DEMO), cwd=tmp_path, SPARK_REDIS__URL=server.url)
    refuse(result, 3, "allkeys-lru", "noeviction")


def test_every_command_explains_itself_without_torch(tmp_path: Path) -> None:
    for name in ("up", "actor", "recycler", "learner", "eval", "export", "status", "doctor"):
        result = spark(name, "--help", cwd=tmp_path)
        assert result.returncode == 0
        assert f"usage: spark {name}" in result.stdout
