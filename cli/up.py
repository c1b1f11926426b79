"""`spark up`: a whole run on this machine, from the first check to the report."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
from rich.console import Console

from cli.evaluation import Evaluation, build_pool, table
from cli.plain import plain
from cli.preflight import check_run
from cli.progress import Progress
from cli.report.history import STEP, MetricsReader, paused_s, without_repeats
from cli.rundir import RunDirectory, child_environment
from cli.starts import record_start
from cli.status import as_dict
from cli.steer import in_words, standing
from cli.train import train
from common.errors import SparkError
from common.settings import Settings
from common.streams import Streams

console = Console(highlight=False)
log = structlog.get_logger()


def up(settings: Settings) -> None:
    """Run to the end, or until told to stop; then evaluate before and after, and write the report."""
    check_run(settings)
    run = RunDirectory(settings)
    with run.held():
        run.create()
        run.log_to("up", role="up")
        record_start(run.path, "up")
        _up(run)


def _up(run: RunDirectory) -> None:
    settings = run.settings
    trained = train(
        run,
        lambda states: Progress(settings, run.path, console=console, states=states).watch(),
        announce=lambda streams: _say_steering(run, streams),
        say=_say,
    )
    rows, wall_s = without_repeats(MetricsReader(run.metrics).read()), earlier_wall_s(run.summary) + trained.wall_s
    summary: dict[str, Any] = {
        "ledger": as_dict(trained.ledger),
        "wall_s": round(wall_s, 1),
        "finished": trained.finished,
        "drained": trained.drained,
        "paused_s": round(min(paused_s(rows), wall_s), 1),
        "policy_version": int(rows[-1][STEP]) if rows else 0,  # by it a report knows that the run has gone on since
    }
    if trained.finished and settings.eval.prompts:
        summary |= _evaluate(run)
    run.summary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    _show(run, summary)


def earlier_wall_s(summary: Path) -> float:
    """Seconds that the earlier parts of a run took which was stopped and goes on; 0 when there were none."""
    try:
        earlier = json.loads(summary.read_text(encoding="utf-8"))
        return 0.0 if earlier["finished"] else float(earlier["wall_s"])
    except FileNotFoundError:
        return 0.0
    except (ValueError, KeyError, TypeError) as error:  # cut off while it was written
        log.warning("up.summary_unreadable", path=str(summary), reason=repr(error))
        return 0.0


def pool_name(settings: Settings) -> str:
    """File name of the frozen answers; another one as soon as anything differs that the answers come from."""
    model, held_out = settings.model, settings.eval
    origin = [model.path, model.revision, held_out.prompts, held_out.args, settings.eval_seed, held_out.draws]
    text = json.dumps(origin, sort_keys=True, default=str)
    return f"pool-{hashlib.blake2s(text.encode(), digest_size=6).hexdigest()}.jsonl"


def advice(run: RunDirectory) -> str:
    """How a stopped run goes on. Its config.toml has no redis.url, so a configured one must be given again."""
    redis = run.settings.redis
    again = f"`spark up {run.config}` goes on from the last checkpoint"
    if redis.url.get_secret_value() and redis.url_file is None:
        return f"set SPARK_REDIS__URL to the run's server again (config.toml leaves it out); then {again}"
    return again


def _say_steering(run: RunDirectory, streams: Streams) -> None:
    """What users have told the run before: a run that was paused stays so, which nobody should have to find out."""
    for line in in_words(run, standing(run, streams)):
        console.print(line, markup=False, soft_wrap=True)


def _say(line: str) -> None:
    """Above the display."""
    with contextlib.suppress(OSError):  # a full disk behind stdout: a line for people is not worth the run
        console.print(plain(line, 500), style="yellow", markup=False, soft_wrap=True)


def _evaluate(run: RunDirectory) -> dict[str, Any]:
    """Base model and trained model on the same frozen answers, one process each, side by side."""
    settings = run.settings
    console.print(f"evaluating before and after on {settings.eval.draws} held-out prompts per figure ...")
    run.evaluation.mkdir(exist_ok=True)
    pool = run.evaluation / pool_name(settings)
    if not pool.exists():  # the base model's answers, which both are shown
        build_pool(settings, settings.model.path, pool, settings.eval.draws, settings.eval_seed)
    models = {"before": settings.model.path, "after": str(run.path)}
    files = {name: run.evaluation / f"{name}.json" for name in models}
    running = {
        name: _spark(run, ["eval", model, "--config", str(run.config), "--pool", str(pool), "--json", str(files[name])])
        for name, model in models.items()
    }
    for name, process in running.items():
        if process.wait() != 0:
            raise SparkError(f"the evaluation {name} training failed; its output is {run.logs / 'eval.stderr'}")
    results = {name: Evaluation.from_json(path.read_bytes()) for name, path in files.items()}
    console.print(table(results["before"], results["after"]))
    return _summarise(results)


def _spark(run: RunDirectory, arguments: list[str]) -> subprocess.Popen[bytes]:
    with (run.logs / "eval.stderr").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "cli", *arguments], env=child_environment(""), stdout=output, stderr=output
        )


def _summarise(results: Mapping[str, Evaluation]) -> dict[str, Any]:
    summaries: dict[str, Any] = {name: result.summary() for name, result in results.items()}
    return {**summaries, "intervals": {name: result.intervals() for name, result in results.items()}}


def _show(run: RunDirectory, summary: Mapping[str, Any]) -> None:
    from cli.report import write_report

    balance = "balances" if summary["ledger"]["balanced"] else "DOES NOT BALANCE"
    paused_s = summary["paused_s"]
    paused = f", and {paused_s:.0f} s paused" if paused_s else ""
    console.print(f"ledger {balance}; {summary['wall_s'] - paused_s:.0f} s of training wall time{paused}")
    if not summary["finished"]:
        console.print(f"{'drained' if summary.get('drained') else 'stopped'}; {advice(run)}")
    console.print(f"report: {write_report(run.path)}")
