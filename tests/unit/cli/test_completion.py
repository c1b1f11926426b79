"""The completion scripts, in the shells themselves; bash is always there, the others are where they are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cli.commands import Spark
from cli.completion import script
from cli.completion_spec import SHELLS, commands, settings
from common.errors import SettingsError
from common.live import LIVE

ASK = """
source {script}
compopt() {{ :; }}
COMP_LINE={line}
COMP_POINT={point}
_spark
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "spark.bash"
    path.write_text(script("bash"), encoding="utf-8")
    return path


@pytest.fixture
def offered(bash_script: Path, tmp_path: Path):
    """What bash offers at the end of a line, in a folder with two runs, a run file and a file."""
    for name in ("runs/demo", "runs/other one"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.toml").touch()
    (tmp_path / "run.toml").touch()
    (tmp_path / "notes.txt").touch()

    def ask(line: str, behind: str = "") -> list[str]:
        quoted = "'" + (line + behind).replace("'", "'\\''") + "'"
        text = ASK.format(script=bash_script, line=quoted, point=len(line))
        done = subprocess.run(
            ["bash", "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=20, check=True
        )
        assert done.stderr == ""
        return done.stdout.split("\n")[:-1] if done.stdout != "\n" else []

    return ask


def test_commands_and_the_commands_below_them(offered) -> None:
    assert {"up", "tail", "why", "completion", "doctor"} <= set(offered("spark "))
    assert offered("spark ta") == ["tail"]
    assert offered("spark dead ") == ["list", "show", "retry", "drop"]
    assert offered("spark dead sh") == ["show"]


def test_options_belong_to_their_command(offered) -> None:
    assert {"--follow", "-n", "--json", "--objective", "--actor", "--uid"} <= set(offered("spark tail -"))
    assert offered("spark tail --obj") == ["--objective"]
    assert offered("spark up --act") == ["--actors"]
    assert offered("spark up --obj") == []
    assert offered("spark tail --objective p") == ["pointwise", "pairwise"]


def test_run_directories_are_found_by_their_config(offered) -> None:
    assert offered("spark tail ") == ["runs/demo", "runs/other one"]
    assert offered("spark why runs/d") == ["runs/demo"]
    assert offered("spark dead list ru") == ["runs/demo", "runs/other one"]
    assert offered("spark up ") == ["run.toml", "runs"]


def test_the_place_of_an_argument_does_not_depend_on_options_before_it(offered) -> None:
    assert offered("spark tail -n 3 --actor actor-0 ru") == ["runs/demo", "runs/other one"]
    assert "metrics" in offered("spark tail --json runs/demo -n 3 ")
    assert offered("spark tail runs/demo metrics ") == []


def test_words_with_a_colon_are_completed_behind_it(offered) -> None:
    assert offered("spark tail runs/demo rollouts:") == ["policy", "judge"]
    assert offered("spark tail runs/demo tasks:p") == ["policy"]
    assert offered("spark tail runs/demo we") == ["weights"]


def test_settings_are_completed_up_to_their_value(offered) -> None:
    assert offered("spark up run.toml --set learner.max") == ["learner.max_steps="]
    assert offered("spark up -s archive.") == ["archive.max_mb="]
    assert offered("spark up -s learner.lr=1 run") == ["run.toml", "runs"]


def test_only_what_can_change_in_a_running_run_is_offered_to_set(offered) -> None:
    assert offered("spark set runs/demo ") == [f"{name}=" for name in LIVE]
    assert offered("spark set runs/demo learner.max_steps=5 loss.clip_l") == ["loss.clip_low="]
    assert offered("spark set runs/demo sampling.") == []
    assert "sampling.group_size=" in offered("spark up run.toml --set sampling.")


def test_the_line_is_completed_where_the_cursor_is(offered) -> None:
    assert offered("spark ta", behind=" runs/demo metrics") == ["tail"]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_option_and_setting_is_in_every_script(shell: str) -> None:
    text = script(shell)
    for command in commands(Spark, {}):
        assert command.path[-1] in text
        flags = [flag for option in command.options for flag in option.flags]
        if shell == "fish":
            flags = [f"-l {flag[2:]} " if flag.startswith("--") else f"-s {flag[1:]} " for flag in flags]
        assert [flag for flag in flags if flag not in text] == []
    assert [name for name in settings() if name not in text] == []
    assert "@" not in text.replace('"$@"', "").replace("[@]", "")  # no place was left unfilled


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_can_read_its_script(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "script"
    path.write_text(script(shell), encoding="utf-8")
    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_shell_is_refused() -> None:
    with pytest.raises(SettingsError, match="'tcsh'; there is one for bash, zsh, fish"):
        script("tcsh")
