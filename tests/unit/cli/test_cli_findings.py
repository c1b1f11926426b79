"""What the commands do around a run: stale exports, dead servers, foreign variables, what a resume keeps."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live

from cli import evaluate, evaluation
from cli import export as export_module
from cli import train as train_module
from cli import up as up_module
from cli.commands import Evaluate
from cli.embedded import EmbeddedServer
from cli.rundir import RunDirectory, server_of
from cli.status import streams_of
from cli.train import Trained, prepare, train
from cli.up import advice, earlier_wall_s, pool_name
from common.errors import ServerError, SettingsError, SparkError
from common.messages import OUTCOMES
from common.records import Ledger
from common.server import Client, connect
from common.settings import Settings
from common.settings_sources import load_settings
from common.steering import Steering
from common.streams import Streams
from learner.checkpoint import CheckpointStore, State
from learner.torch_engine import TorchEngine
from learner.uid_ledger import UidLedger

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
DEMO = ROOT / "examples" / "arithmetic"
BALANCED = Ledger(kinds={"policy": dict.fromkeys(("issued", *OUTCOMES, "in_flight"), 0)})


@pytest.fixture
def demo(tmp_path: Path) -> Callable[..., RunDirectory]:
    """The demo's run directory with other settings; ``create`` was not called."""

    def make(*overrides: str) -> RunDirectory:
        folder = f"run.dir={json.dumps(str(tmp_path / 'runs'))}"
        return RunDirectory(load_settings(DEMO / "run.toml", [folder, *overrides]))

    return make


# -- the export that is evaluated ----------------------------------------------------------------------


def save_checkpoint(run: RunDirectory, policy_version: int) -> None:
    state = State(epoch=1, policy_version=policy_version, cursor=0, endings=(), ended=UidLedger())
    CheckpointStore(run.path / "checkpoints", 2).save(state, lambda _folder: None)


def test_an_export_says_which_policy_version_it_is(demo: Callable[..., RunDirectory]) -> None:
    run = demo()
    engine = TorchEngine(run.settings)
    engine.policy_version = 7
    engine.export(run.export)
    assert export_module.exported_version(run.export) == 7
    assert (run.export / "config.json").is_file()


@pytest.mark.parametrize(
    ("exported", "saved", "anew"), [(None, 3, True), (2, 3, True), (3, 3, False), (4, 3, False), (3, None, False)]
)
def test_an_export_older_than_the_newest_checkpoint_is_written_anew(
    exported: int | None,
    saved: int | None,
    anew: bool,
    demo: Callable[..., RunDirectory],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = demo()
    run.export.mkdir(parents=True)
    (run.export / "config.json").write_text("{}", encoding="utf-8")
    if exported is not None:
        (run.export / "spark.json").write_text(json.dumps({"policy_version": exported}), encoding="utf-8")
    if saved is not None:
        save_checkpoint(run, saved)
    written: list[Path] = []
    monkeypatch.setattr(export_module, "export", lambda path, _to: written.append(path))
    assert evaluate._exported(run) == run.export
    assert written == ([run.path] if anew else [])


def test_the_folder_of_the_figures_is_made_before_they_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "missing" / "dir" / "x.json"

    def measure(*_args: object, **_more: object) -> None:
        assert file.parent.is_dir()
        raise SparkError("measured")

    monkeypatch.setattr(evaluation, "evaluate", measure)
    monkeypatch.setattr(evaluate.log, "configure", lambda **_: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    fields = {"model": str(DEMO / "base"), "config": DEMO / "run.toml", "json": file}
    with pytest.raises(SparkError, match="measured"):
        evaluate.run(Evaluate.model_validate(fields))


# -- the server of a run -------------------------------------------------------------------------------


@pytest.mark.parametrize("functions", [True, False])
def test_a_server_that_knows_nothing_of_the_run_is_one_sentence(client: Client, functions: bool) -> None:
    if not functions:
        client.function_flush("SYNC")
    with pytest.raises(ServerError, match=r"the server at .* knows nothing of run elsewhere"):
        Streams(client, "elsewhere").conservation()


def test_a_run_whose_server_was_killed_is_read_from_its_data(demo: Callable[..., RunDirectory]) -> None:
    run = demo()
    with EmbeddedServer(run.server_data) as server:
        assert server_of(run) == server.url
        with contextlib.closing(prepare(run.settings, server.url).client) as client:
            client.hset(f"spark:{{{run.settings.run.name}}}:progress", "policy_version", 5)
    (run.server_data / "url").write_text("unix:///nowhere/server.sock", encoding="utf-8")
    assert server_of(run) is None
    with streams_of(run) as streams:
        assert streams.progress() == {"policy_version": "5"}
        assert streams.conservation().balanced
        streams.client.close()


def test_a_run_that_is_up_is_read_from_its_own_server(demo: Callable[..., RunDirectory]) -> None:
    run = demo()
    with EmbeddedServer(run.server_data) as server:
        with contextlib.closing(connect(server.url)) as client:
            before = client.info("server")["process_id"]
        prepare(run.settings, server.url).client.close()
        with streams_of(run) as streams, contextlib.closing(streams.client) as client:
            assert client.info("server")["process_id"] == before


# -- variables of others -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SPARK_HOME", "/opt/spark"),
        ("SPARK_CONF_DIR", "/etc/spark"),
        ("SPARK_LOCAL_IP", "127.0.0.1"),
        ("SPARK_REDIS_PORT", "tcp://10.0.0.1:6379"),
        ("SPARK_REDIS_SERVICE_HOST", "10.0.0.1"),
        ("SPARK_REDIS_PORT_6379_TCP_ADDR", "10.0.0.1"),
        ("SPARK_LEARNER_PORT", "tcp://10.0.0.1:80"),
    ],
)
def test_variables_of_others_change_nothing(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_settings(DEMO / "run.toml").model_dump()
    monkeypatch.setenv(name, value)
    assert load_settings(DEMO / "run.toml").model_dump() == expected


@pytest.mark.parametrize("name", ["SPARK_PRESTE", "SPARK_LERNER", "SPARK_LERNER__LR", "SPARK_QUUX__LR"])
def test_misspelt_variables_of_ours_are_still_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=f"environment variable {name} sets nothing"):
        load_settings(DEMO / "run.toml")


# -- weights in shared memory --------------------------------------------------------------------------


def test_runs_of_one_name_in_two_folders_do_not_share_their_weights(tmp_path: Path) -> None:
    def weights_dir(folder: Path) -> Path:
        return Settings(run={"name": "same", "dir": folder}, weights={"shared_memory": True}).weights_dir

    assert weights_dir(tmp_path / "a") != weights_dir(tmp_path / "b")
    assert weights_dir(tmp_path / "a") == weights_dir(tmp_path / "a")
    assert weights_dir(tmp_path / "a").name.startswith("spark-same-")


@pytest.mark.parametrize("ends_well", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_shared_memory_is_freed_at_the_end_of_a_run_whatever_way_it_ends(
    shared: bool,
    ends_well: bool,
    demo: Callable[..., RunDirectory],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = tmp_path / "shm"

    class Ending:
        def __init__(self, *_args: object, **_options: object) -> None: ...

        async def run(self, _watch: object) -> bool:
            (weights / "v1").mkdir(parents=True)
            if not ends_well:
                raise SparkError("a process is beyond help")
            return True

    class Balanced:
        def conservation(self) -> Ledger:
            return BALANCED

        def steering(self) -> Steering:
            return Steering()

    monkeypatch.setattr(Settings, "weights_dir", property(lambda _self: weights))
    monkeypatch.setattr(train_module, "server", lambda _run: contextlib.nullcontext(("unix:///nowhere", None)))
    monkeypatch.setattr(train_module, "prepare", lambda _settings, _url: Balanced())
    monkeypatch.setattr(train_module, "Supervisor", Ending)

    async def watch(_states: object) -> None: ...

    with contextlib.nullcontext() if ends_well else pytest.raises(SparkError, match="beyond help"):
        train(demo(f"weights.shared_memory={str(shared).lower()}"), watch)
    assert weights.exists() is not shared


# -- what a resumed run keeps --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("earlier", "seconds"),
    [(None, 0.0), ({"finished": False, "wall_s": 40.5}, 40.5), ({"finished": True, "wall_s": 40.5}, 0.0)],
)
def test_wall_time_of_a_resumed_run_counts_all_its_parts(
    earlier: dict[str, object] | None,
    seconds: float,
    demo: Callable[..., RunDirectory],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = demo('eval.prompts=""')
    run.path.mkdir(parents=True)
    if earlier is not None:
        run.summary.write_text(json.dumps(earlier), encoding="utf-8")
    trained = Trained(finished=True, ledger=BALANCED, wall_s=10.0)
    monkeypatch.setattr(up_module, "check_run", lambda _settings: None)
    monkeypatch.setattr(up_module, "train", lambda *_, **__: trained)
    monkeypatch.setattr(up_module, "_show", lambda *_: None)
    monkeypatch.setattr(RunDirectory, "log_to", lambda *_, **__: None)
    up_module.up(run.settings)
    assert json.loads(run.summary.read_text(encoding="utf-8"))["wall_s"] == 10.0 + seconds


def test_what_was_paused_is_told_beside_the_time_of_training(
    demo: Callable[..., RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = demo('eval.prompts=""')
    run.create()
    row = {"policy_version": 7, "seconds/step": 1.0, "seconds/paused": 79.0}
    run.metrics.write_text(json.dumps(row) + "\n", encoding="utf-8")
    trained = Trained(finished=True, ledger=BALANCED, wall_s=118.0)
    console = Console(file=io.StringIO(), width=300, record=True)
    monkeypatch.setattr(up_module, "console", console)
    monkeypatch.setattr(up_module, "check_run", lambda _settings: None)
    monkeypatch.setattr(up_module, "train", lambda *_, **__: trained)
    monkeypatch.setattr("cli.report.write_report", lambda path: path)
    monkeypatch.setattr(RunDirectory, "log_to", lambda *_, **__: None)
    up_module.up(run.settings)
    assert "39 s of training wall time, and 79 s paused" in console.export_text()
    summary = json.loads(run.summary.read_text(encoding="utf-8"))
    assert (summary["wall_s"], summary["paused_s"], summary["policy_version"]) == (118.0, 79.0, 7)


def test_a_line_stands_above_the_display_and_steers_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, record=True)
    monkeypatch.setattr(up_module, "console", console)
    with Live("the display", console=console, auto_refresh=False):
        up_module._say("actor-0 died with exit code 1: [red]\x1b[2J")
    lines = console.export_text().splitlines()
    assert any(line.endswith("actor-0 died with exit code 1: [red]\\x1b[2J") for line in lines[:-1])
    assert lines[-1].endswith("the display")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"finished": false}'])
def test_a_summary_that_was_cut_off_does_not_stop_a_run(text: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(text, encoding="utf-8")
    assert earlier_wall_s(tmp_path / "summary.json") == 0.0


def test_frozen_answers_are_made_anew_when_what_they_come_from_changes(demo: Callable[..., RunDirectory]) -> None:
    changes = ["eval.prompts=other.jsonl", "eval.args.size=7", "eval.seed=9", "eval.draws=3", "model.path=other"]
    names = [pool_name(demo(*change).settings) for change in ([], *([change] for change in changes))]
    assert len(set(names)) == len(names)
    assert pool_name(demo("learner.max_steps=7", "eval.rounds=1").settings) == names[0]


def test_advice_to_go_on_names_the_server_that_config_toml_leaves_out(
    demo: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    assert "SPARK_REDIS__URL" not in advice(demo())
    configured = advice(demo("redis.url=redis://user:s3cret@host"))
    assert "SPARK_REDIS__URL" in configured
    assert "s3cret" not in configured
    (tmp_path / "url").write_text("redis://host", encoding="utf-8")
    assert "SPARK_REDIS__URL" not in advice(demo(f"redis.url_file={json.dumps(str(tmp_path / 'url'))}"))


def test_one_underscore_too_few_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_REDIS_URL", "redis://127.0.0.1:6379")
    with pytest.raises(SettingsError, match="SPARK_REDIS_URL sets nothing; did you mean SPARK_REDIS__URL"):
        load_settings(DEMO / "run.toml")
