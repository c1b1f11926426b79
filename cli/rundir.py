"""A run directory: where everything of one run lies, and how to find the run again from it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import tomli_w

from cli.embedded import EmbeddedServer, locked, write_whole
from cli.starts import FILE as STARTS
from common import log
from common.errors import ServerError, SettingsError
from common.server import connect, loaded
from common.settings import Settings
from common.settings_sources import load_settings
from learner.ranks.place import NEEDED

LAUNCHER: Final = frozenset(
    (*NEEDED, "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE")
)
"""What tells a process that it is one of several ranks; vLLM and DeepSpeed read some of them too."""
CONFIG: Final = "config.toml"
TORCHRUN: Final = "TORCHELASTIC_"


class RunDirectory:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.path = settings.run.directory.absolute()

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def server_data(self) -> Path:
        return self.path / "server"

    @property
    def evaluation(self) -> Path:
        return self.path / "eval"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def create(self) -> None:
        """Make the directory and write the resolved settings. Secrets are left out: they come from the environment."""
        self.path.mkdir(parents=True, exist_ok=True)
        values = self.settings.model_dump(mode="json", exclude={"redis": {"url", "rebuild"}}, exclude_none=True)
        values["run"]["dir"] = str(self.settings.run.dir.absolute())
        write_whole(self.config, tomli_w.dumps(values))  # a process that is started again may be reading it

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else brings this run up meanwhile. Raises ServerError when somebody does."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "up.lock").open("a") as lock:
            if not locked(lock):
                raise ServerError(f"run {self.path} is up already: another `spark up` works on it; nothing was changed")
            yield

    def log_to(self, member: str, *, role: str) -> None:
        """Send this process's events to logs/MEMBER.log, or to stderr with ``run.log_to``."""
        file = self.logs / f"{member}.log" if self.settings.run.log_to == "file" else None
        log.configure(file=file, run=self.settings.run.name, role=role, member=member)


def open_run(path: Path, overrides: Iterable[str] = ()) -> RunDirectory:
    """The run of a directory (or of its config.toml). Raises SettingsError when it is none."""
    config = path if path.is_file() else path / CONFIG
    if not config.is_file():
        raise SettingsError(f"{path} is no run directory: it has no config.toml")
    settings = settings_of(config, overrides)
    if config.name == CONFIG and config.absolute().parent.name != settings.run.name:
        raise SettingsError(
            f"{config.parent} holds run {settings.run.name!r}, and a run's folder bears its name; rename it to that"
        )
    return RunDirectory(settings)


def settings_of(run_file: Path, overrides: Iterable[str] = ()) -> Settings:
    """Of a run file. Of a run's own config.toml with the run where that file is now, wherever it was made."""
    settings, folder = load_settings(run_file, overrides), run_file.absolute().parent
    if run_file.name == CONFIG and folder.name == settings.run.name and (folder / STARTS).is_file():
        return settings.model_copy(update={"run": settings.run.model_copy(update={"dir": folder.parent})})
    return settings


def server_of(run: RunDirectory) -> str | None:
    """URL of the server of a run: the configured one, or the embedded one while it is up.

    The URL that an embedded server left behind when it was killed does not count.
    """
    if configured := run.settings.redis.url.get_secret_value():
        return configured
    recorded = EmbeddedServer.url_of(run.server_data)
    if recorded is None:
        return None
    with closing(connect(recorded)) as client:
        return recorded if loaded(client) else None


def child_environment(url: str, *, rebuild: bool = False) -> dict[str, str]:
    """Environment of a run's process. config.toml is resolved already, so nothing else may override it.

    Nor is it a rank of whatever job `spark up` itself may have been started in: a learner would wait for the others.
    """
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("SPARK_", TORCHRUN))}
    kept = {name: value for name, value in kept.items() if name not in LAUNCHER}
    threads: dict[str, Any] = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    redis = {"SPARK_REDIS__URL": url, "SPARK_REDIS__REBUILD": str(rebuild).lower()}
    return {**kept, **threads, **redis, "PYTHONUNBUFFERED": "1"}
